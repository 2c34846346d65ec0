import io

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from softmax_jax import calibration, figures
from softmax_jax.calibration import selective
from softmax_jax.codelength import online


def names(q):
    return [f"class {j}" for j in range(q)]


def weights(q):
    return np.random.default_rng(0).normal(size=(6, q)).astype(np.float32)


def assert_is_a_picture(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = matplotlib.image.imread(io.BytesIO(png))
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 2


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


@pytest.mark.slow
@pytest.mark.parametrize("q", [2, 10, 30])
def test_a_confusion_matrix_is_drawn(q):
    counts = np.random.default_rng(0).integers(0, 50, size=(q, q))
    counts[0] = 0  # a class that is not in the data
    assert_is_a_picture(figures.to_png(figures.confusion_matrix(counts, names(q))))


def test_a_confusion_matrix_shows_counts_and_shares_of_rows():
    figure = figures.confusion_matrix([[3, 1], [0, 2]], ["a", "b"])
    ax = figure.axes[0]
    assert sorted(text.get_text() for text in ax.texts) == ["1", "2", "3"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25], [0, 1]])


@pytest.mark.parametrize("n", [1, 4, 15])
def test_surprising_examples_are_drawn(n):
    images = np.random.default_rng(0).integers(0, 255, size=(n, 4, 3))
    figure = figures.surprising_examples(images, np.arange(n) + 0.25, ["cat"] * n, ["dog"] * n)
    assert_is_a_picture(figures.to_png(figure))
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert titles == [f"cat\ntaken for dog\n{i}.2 bits" for i in range(n)]


def test_a_surprising_example_may_have_been_recognised():
    figure = figures.surprising_examples(np.zeros((1, 2, 2)), [0.9], ["cat"], ["cat"])
    assert figure.axes[0].get_title() == "cat\nrecognised\n0.9 bits"


@pytest.fixture(scope="module")
def bins():
    """Returns five bins, one of them empty and one of a single example."""
    confidence = jnp.array([0.1, 0.3, 0.3, 0.3, 0.9, 0.95, 1.0])
    outcome = jnp.array([0, 1, 0, 0, 1, 1, 1])
    edges = jnp.linspace(0, 1, 6)
    return confidence, outcome, edges, calibration.reliability(confidence, outcome, edges)


def test_a_reliability_diagram_shows_the_means_of_bins_that_are_not_empty(bins):
    *examples, sums = bins
    edges = examples[-1]
    band = calibration.bootstrap_band(jax.random.key(0), *examples, draws=20)
    chance, _ = calibration.consistency(jax.random.key(0), *examples, draws=20)
    figure = figures.reliability_diagram(sums, edges, chance=chance, band=band, title="some")
    ax, counts = figure.axes
    points = next(line for line in ax.lines if line.get_label() == "observed")
    np.testing.assert_allclose(points.get_xdata(), [0.1, 0.3, 0.95], rtol=1e-5)
    np.testing.assert_allclose(points.get_ydata(), [0, 1 / 3, 1], rtol=1e-5)
    np.testing.assert_allclose([bar.get_height() for bar in counts.patches], [1, 3, 0, 0, 3])
    assert ax.get_title() == "some"
    assert_is_a_picture(figures.to_png(figure))


def test_a_reliability_diagram_needs_no_bands(bins):
    *_, edges, sums = bins
    assert_is_a_picture(figures.to_png(figures.reliability_diagram(sums, edges)))


def test_a_risk_coverage_curve_ends_with_all_answered():
    curve = selective.risk_coverage([0.9, 0.8, 0.7], [1, 0, 1])
    figure = figures.risk_coverage_curve(curve)
    x, y = figure.axes[0].lines[0].get_data()
    np.testing.assert_allclose(x, [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(y, [0, 0, 1 / 2, 1 / 3])
    assert_is_a_picture(figures.to_png(figure))


def test_codelength_curves_have_a_line_each():
    def curve(*bits):
        return online.Codelength(np.array([1, 10]), np.array(bits), uniform=30.0)

    figure = figures.codelength_curves({"fit": curve(3, 20)}, {"fit": curve(3, 33)})
    lines = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert lines == [[3, 2], [3, 3.3], [3, 3]]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["fit", "fit, control", "uniform"]
    assert_is_a_picture(figures.to_png(figure))


def test_of_many_classes_the_first_are_drawn():
    figure = figures.weight_images(np.zeros((4, 500)), (2, 2), [str(j) for j in range(500)])
    assert sum(ax.get_title() != "" for ax in figure.axes) == 60


def test_names_are_shown_as_they_are():
    names = ["<$10k", "$10k-$50k", "_under", "a name of more than twenty characters"]
    figure = figures.confusion_matrix(np.eye(4), names)
    figures.to_png(figure)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == [r"<\$10k", r"\$10k-\$50k", " _under", "a name of more than…"]
