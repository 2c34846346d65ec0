import jax
import numpy as np
import pytest

from softmax_jax import losses, model
from softmax_jax.data import classroom
from softmax_jax.data.classroom import CLASS_NAMES, NOISE, PROTOTYPES, bayes_weights
from softmax_jax.model import Params


@pytest.fixture(scope="module")
def big_sample():
    return classroom(num_train=100_000, num_test=2).train


def mean_loss(w, b, sample):
    params = Params(w.astype(np.float32), b.astype(np.float32))
    return float(losses.objective(jax.device_put(params), sample.x, sample.targets))


def test_it_is_deterministic():
    first, second = classroom(), classroom()
    np.testing.assert_array_equal(first.train.x, second.train.x)
    np.testing.assert_array_equal(first.train.targets, second.train.targets)
    np.testing.assert_array_equal(first.test.x, second.test.x)
    np.testing.assert_array_equal(first.test.targets, second.test.targets)


def test_seeds_draw_different_images():
    assert not np.array_equal(classroom(seed=0).train.x, classroom(seed=1).train.x)


def test_train_and_test_are_drawn_apart():
    dataset = classroom()
    assert not np.array_equal(dataset.train.x, dataset.test.x)


def test_images_are_2x2_in_three_named_classes():
    dataset = classroom(num_train=50, num_test=40)
    assert dataset.train.x.shape == (50, 4)
    assert dataset.test.x.shape == (40, 4)
    assert dataset.image_shape == (2, 2)
    assert dataset.class_names == CLASS_NAMES == ("cat", "chicken", "dog")


def test_images_scatter_around_the_prototype_of_their_class(big_sample):
    for j, prototype in enumerate(PROTOTYPES):
        images = big_sample.x[big_sample.targets == j]
        np.testing.assert_allclose(images.mean(axis=0), prototype, atol=0.01)
        np.testing.assert_allclose(images.std(axis=0), NOISE, atol=0.005)


def test_classes_are_equally_likely(big_sample):
    np.testing.assert_allclose(np.bincount(big_sample.targets) / 100_000, 1 / 3, atol=0.01)


def test_bayes_weights_give_the_probabilities_of_bayes_rule():
    x = classroom().test.x.astype(np.float64)
    distances = ((x[:, None, :] - PROTOTYPES.astype(np.float64)) ** 2).sum(axis=-1)
    densities = np.exp(-distances / (2 * NOISE**2))
    expected = densities / densities.sum(axis=1, keepdims=True)
    w, b = (a.astype(np.float32) for a in bayes_weights())
    actual = model.probabilities(jax.device_put(Params(w, b)), x.astype(np.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_perturbed_bayes_weights_lose_more(big_sample, seed):
    w, b = bayes_weights()
    generator = np.random.default_rng(seed)
    for size in (0.3, 1.0, 3.0):
        perturbed = mean_loss(
            w + size * generator.normal(size=w.shape),
            b + size * generator.normal(size=b.shape),
            big_sample,
        )
        assert mean_loss(w, b, big_sample) < perturbed


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.2])
def test_bayes_weights_are_neither_too_sure_nor_too_timid(big_sample, factor):
    w, b = bayes_weights()
    assert mean_loss(w, b, big_sample) < mean_loss(factor * w, factor * b, big_sample)
