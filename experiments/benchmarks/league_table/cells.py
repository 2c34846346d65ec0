"""Problems of the league: generators with a fixed seed, and the table of cells."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np


class Problem(NamedTuple):
    """Features, labels, and the strength of the penalty."""

    x: Any
    """``[n, d]``, a NumPy array or a CSR array of SciPy's, as stored."""
    y: np.ndarray
    """``[n]`` class ids."""
    l2: float
    """Strength of ``|W|^2/2``."""
    divisor: float = 1.0
    """Number by which features are divided."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row of the table: one problem, or several that are solved one after the other."""

    generate: Callable[[int], Problem]
    """A pure function of the seed."""
    copies: int = 1
    """How many problems there are, with seeds from 0."""
    eliminate: bool = False
    """Whether columns are dropped one by one, the last first, and each width is a problem."""
    quick: bool = False
    """Whether it belongs to the quick part."""

    def problems(self) -> list[Problem]:
        """Returns all problems of the cell."""
        made = [self.generate(seed) for seed in range(self.copies)]
        if self.eliminate:
            return [p._replace(x=p.x[:, :w]) for p in made for w in range(p.x.shape[1], 0, -1)]
        return made


def frozen(seed: int, n: int, d: int, q: int, l2: float | None = None) -> Problem:
    """Imitates features of a frozen network, in float32.

    Classes come in groups, whose means have a common part. The covariance within classes decays as
    a power law. A random rotation spreads it over all columns, and an offset takes their means away
    from zero. The rotation is two rounds of random signs and a discrete cosine transform: a few
    reflections would be as cheap, and leave all but a few directions as they are.
    """
    rng = np.random.default_rng(seed)
    scale = np.arange(1, d + 1, dtype=np.float32) ** -0.5
    group = np.arange(q) % max(1, round(q**0.5))
    means = rng.standard_normal((group.max() + 1, d), np.float32)[group]
    means = (means + 0.7 * rng.standard_normal((q, d), np.float32)) * scale**1.5
    y = _labels(rng, n, q)
    x = rng.standard_normal((n, d), np.float32)
    x *= scale
    x += means[y]
    x = _rotated(rng, x) * np.float32(np.sqrt(d) / 4)
    x += rng.standard_normal(d, np.float32) * np.float32(0.5)
    return Problem(x, y, l2 or 1 / n)


def text(seed: int, n: int, d: int, q: int, *, words: int, length: float) -> Problem:
    """Imitates tf-idf values of documents, in a sparse array of float32 with rows of size 1.

    Words have the frequencies of Zipf, times factors that depend on the class. They are hashed to
    columns.

    Args:
      seed: of the random numbers.
      n: documents.
      d: columns.
      q: classes.
      words: how many there are.
      length: median number of words of a document.
    """
    import scipy.sparse

    rng = np.random.default_rng(seed)
    columns = rng.permutation(d)[:words] if words <= d else rng.integers(d, size=words)
    zipf = 1 / (np.arange(words) + 10.0)
    y = _labels(rng, n, q)
    lengths = np.maximum(5, length * np.exp(0.7 * rng.standard_normal(n))).astype(int)
    rows = np.repeat(np.arange(n, dtype=np.int32), lengths)
    found = np.empty(len(rows), np.int32)
    for k in range(q):
        at = y[rows] == k
        below = np.cumsum(zipf * np.exp(0.8 * rng.standard_normal(words)))
        drawn = np.searchsorted(below, rng.uniform(0, below[-1], size=at.sum()))
        found[at] = columns[np.minimum(drawn, words - 1)]
    counts = scipy.sparse.csr_array((np.ones(len(rows), np.float32), (rows, found)), shape=(n, d))
    counts.sum_duplicates()
    documents = np.bincount(counts.indices, minlength=d)
    idf = np.log((1 + n) / (1 + documents)) + 1
    values = (1 + np.log(counts.data)) * idf[counts.indices]
    sizes = np.sqrt(np.add.reduceat(values**2, counts.indptr[:-1]))
    counts.data = (values / np.repeat(sizes, np.diff(counts.indptr))).astype(np.float32)
    return Problem(counts, y, 1 / n)


def tall(seed: int, n: int, d: int, q: int) -> Problem:
    """Draws correlated columns, and labels from a softmax of them, in float32."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(d, dtype=np.float32) + 0.3 * rng.standard_normal((d, d), np.float32)
    x = rng.standard_normal((n, d), np.float32) @ mixing
    return Problem(x, _drawn(rng, x @ rng.standard_normal((d, q), np.float32) / d**0.5), 1 / n)


def wide(seed: int, n: int, d: int, q: int) -> Problem:
    """Imitates expressions of genes, in float32: few factors for all, few columns for the class."""
    rng = np.random.default_rng(seed)
    y = _labels(rng, n, q)
    x = rng.standard_normal((n, 20), np.float32) @ rng.standard_normal((20, d), np.float32)
    x = x / np.float32(5) + rng.standard_normal((n, d), np.float32)
    x[:, :50] += rng.standard_normal((q, 50), np.float32)[y]
    return Problem(x + np.float32(7), y, 1 / n)


def badly_scaled(seed: int, n: int, d: int, q: int) -> Problem:
    """Draws columns of sizes from 1e-4 to 1e6, near copies of them and a date, in float64."""
    rng = np.random.default_rng(seed)
    original = rng.standard_normal((n, d - d // 3 - 1))
    near = original[:, : d // 3] + 1e-3 * rng.standard_normal((n, d // 3))
    y = _drawn(rng, original @ rng.standard_normal((original.shape[1], q)))
    sizes = rng.permutation(np.logspace(-4, 6, original.shape[1]))
    date = 1.6e9 + 1e8 * rng.uniform(size=(n, 1))
    x = np.hstack([original * sizes, near * sizes[: d // 3], date])
    return Problem(x, y, 1 / n)


def flowers(seed: int) -> Problem:
    """Returns the flowers of iris."""
    from sklearn.datasets import load_iris

    x, y = load_iris(return_X_y=True)
    return Problem(x, y, 1 / len(y))


def digits(seed: int) -> Problem:
    """Returns the digits of scikit-learn."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return Problem(x, y, 1 / len(y))


def fashion(seed: int, folder: str) -> Problem:
    """Returns the training images of Fashion-MNIST."""
    from softmax_jax import data

    split = data.load("fashion_mnist", folder=folder).train
    return Problem(split.x, split.targets, 1e-4, 255.0)


def table(folder: str = "") -> Mapping[str, Cell]:
    """Returns all cells by name.

    Args:
      folder: with the IDX files of Fashion-MNIST, by default the one in ``$SOFTMAX_JAX_DATA``.
        Without either the cell is not there, for nothing is downloaded.
    """
    cells = {
        "iris": Cell(flowers, quick=True),
        "digits": Cell(digits, quick=True),
        "fashion-mnist": Cell(partial(fashion, folder=folder)),
        "frozen-160x4096x20": Cell(partial(frozen, n=160, d=4096, q=20), quick=True),
        "frozen-616x1024x77": Cell(partial(frozen, n=616, d=1024, q=77)),
        "frozen-1600x768x100": Cell(partial(frozen, n=1600, d=768, q=100)),
        "frozen-2000x4096x2": Cell(partial(frozen, n=2000, d=4096, q=2)),
        "frozen-2000x20000x5": Cell(partial(frozen, n=2000, d=20_000, q=5)),
        "frozen-200x100000x3": Cell(partial(frozen, n=200, d=100_000, q=3)),
        "frozen-5000x2048x300": Cell(partial(frozen, n=5000, d=2048, q=300)),
        "frozen-12800x384x1000": Cell(partial(frozen, n=12_800, d=384, q=1000, l2=1e-4)),
        "text": Cell(partial(text, n=11_314, d=130_000, q=20, words=130_000, length=145)),
        "hashed-text": Cell(partial(text, n=3000, d=2**20, q=4, words=200_000, length=69)),
        "binary": Cell(partial(tall, n=1_000_000, d=30, q=2)),
        "tall": Cell(partial(tall, n=1_000_000, d=50, q=10)),
        "wide": Cell(partial(wide, n=200, d=5000, q=4)),
        "badly-scaled": Cell(partial(badly_scaled, n=5000, d=60, q=5)),
        "elimination": Cell(partial(tall, n=200, d=25, q=3), eliminate=True),
        "many-frozen": Cell(partial(frozen, n=616, d=1024, q=77), copies=20),
        "many-small": Cell(partial(tall, n=150, d=4, q=3), copies=1000),
    }
    at = pathlib.Path(os.environ.get("SOFTMAX_JAX_DATA", ""), "fashion_mnist")
    if not folder and not ("SOFTMAX_JAX_DATA" in os.environ and at.is_dir()):
        del cells["fashion-mnist"]
    return cells


def _labels(rng: np.random.Generator, n: int, q: int) -> np.ndarray:
    """Returns labels of all classes, as often as one another."""
    return rng.permutation(np.arange(n) % q)


def _drawn(rng: np.random.Generator, logits: np.ndarray) -> np.ndarray:
    """Draws a label from each row of logits."""
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def _rotated(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """Returns the rows after a random rotation, the same for all."""
    from scipy.fft import dct

    for _ in range(2):
        x *= rng.choice(np.array([-1, 1], np.float32), x.shape[1])
        x = dct(x, axis=1, norm="ortho", overwrite_x=True)
    return x
