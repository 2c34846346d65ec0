"""The classroom example: 2x2 grey images of a cat, a chicken or a dog."""

import numpy as np

from softmax_jax._annotations import Float, NDArray
from softmax_jax.data.dataset import Dataset, from_arrays

CLASS_NAMES = ("cat", "chicken", "dog")
# The mean image of each class, row by row: brightness of the four pixels.
PROTOTYPES = np.array(
    [[0.8, 0.3, 0.3, 0.8], [0.2, 0.8, 0.2, 0.6], [0.7, 0.7, 0.3, 0.2]], dtype=np.float32
)
NOISE = 0.2


def classroom(*, num_train: int = 3000, num_test: int = 3000, seed: int = 0) -> Dataset:
    """Draws images around one prototype a class, classes equally likely.

    With noise of one variance σ² for all, Bayes' rule gives the log-odds of the classes exactly as
    ``o_j = μ_j·x / σ² - |μ_j|² / (2 σ²)``: softmax regression is the true model here, and
    `bayes_weights` the parameters that no other can beat.

    Example:
      >>> from softmax_jax import data
      >>> images = data.classroom(num_train=100, num_test=10)
      >>> images.train.x.shape, images.image_shape, images.class_names
      ((100, 4), (2, 2), ('cat', 'chicken', 'dog'))
    """
    generator = np.random.default_rng(seed)

    def draw(n):
        labels = generator.integers(len(CLASS_NAMES), size=n)
        noise = generator.normal(scale=NOISE, size=(n, PROTOTYPES.shape[1]))
        return (PROTOTYPES[labels] + noise).astype(np.float32).reshape(n, 2, 2), labels

    return from_arrays(*draw(num_train), *draw(num_test), class_names=CLASS_NAMES)


def bayes_weights() -> tuple[Float[NDArray, "4 3"], Float[NDArray, " 3"]]:
    """Returns ``w: [4, 3]`` and ``b: [3]`` of the optimal classifier for `classroom`."""
    w = PROTOTYPES.T / NOISE**2
    return w, -0.5 * np.sum(PROTOTYPES**2, axis=1) / NOISE**2
