import io

import matplotlib.image
import numpy as np
import pytest

from softmax_jax import figures

ROW = {"train_loss": 1.5, "test_loss": 1.6, "train_accuracy": 0.5, "test_accuracy": 0.4}


def rows(n):
    return [{"epoch": epoch, **ROW} for epoch in range(1, n + 1)]


def names(q):
    return [f"class {j}" for j in range(q)]


def weights(q):
    return np.random.default_rng(0).normal(size=(6, q)).astype(np.float32)


def assert_is_a_picture(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(io.BytesIO(png))
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 2


@pytest.mark.parametrize("epochs", [1, 2, 3, 100])
def test_learning_curves_are_drawn(epochs):
    assert_is_a_picture(figures.to_png(figures.learning_curves(rows(epochs))))


def test_learning_curves_show_the_rows():
    figure = figures.learning_curves(rows(3))
    loss, accuracy = figure.axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[1.5] * 3, [1.6] * 3]
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[0.5] * 3, [0.4] * 3]
    assert loss.get_ylabel() == "loss (nats)"


def test_a_single_epoch_is_a_visible_point():
    figure = figures.learning_curves(rows(1))
    assert all(line.get_marker() == "o" for axes in figure.axes for line in axes.lines)


@pytest.mark.parametrize("q", [2, 10, 11])
def test_weight_images_are_drawn(q):
    assert_is_a_picture(figures.to_png(figures.weight_images(weights(q), (2, 3), names(q))))


@pytest.mark.parametrize("q", [2, 10, 11])
def test_each_class_has_its_image(q):
    w = weights(q)
    figure = figures.weight_images(w, (2, 3), names(q))
    shown = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in shown] == names(q)
    for j, axes in enumerate(shown):
        np.testing.assert_array_equal(axes.images[0].get_array(), w[:, j].reshape(2, 3))


def test_all_classes_share_one_symmetric_scale():
    w = weights(10)
    figure = figures.weight_images(w, (2, 3), names(10))
    limits = {axes.images[0].get_clim() for axes in figure.axes if axes.get_title()}
    largest = float(np.abs(w).max())
    assert limits == {(-largest, largest)}


def test_weights_of_zero_are_drawn():
    assert_is_a_picture(figures.to_png(figures.weight_images(np.zeros((6, 2)), (2, 3), names(2))))
