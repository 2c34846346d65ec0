"""Pictures of rows show what the rows say."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from runs import row_plots
from softmax_jax import figures


def assert_is_drawn(figure):
    """It has pixels of more than two colours."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 2


ROW = {"train_loss": 1.5, "test_loss": 1.6, "train_accuracy": 0.5, "test_accuracy": 0.4}


def rows(n):
    return [{"epoch": epoch, **ROW} for epoch in range(1, n + 1)]


@pytest.mark.parametrize("score", ["loss", "accuracy"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 100])
def test_learning_curves_are_drawn(epochs, score):
    assert_is_drawn(row_plots.learning_curve(rows(epochs), score))


@pytest.mark.parametrize(
    ("score", "label", "train", "test"),
    [("loss", "loss (nats)", 1.5, 1.6), ("accuracy", "accuracy", 0.5, 0.4)],
)
def test_learning_curves_show_the_rows(score, label, train, test):
    (ax,) = row_plots.learning_curve(rows(3), score).axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[train] * 3, [test] * 3]
    assert ax.get_ylabel() == label


def test_a_single_epoch_is_a_visible_point():
    figure = row_plots.learning_curve(rows(1), "loss")
    assert all(line.get_marker() == "o" for axes in figure.axes for line in axes.lines)


def solutions(l2, l1=(0.0,), **changes):
    """Rows of a path: losses grow with l2, and sizes fall."""
    return [
        {
            "l2": strength,
            "l1": other,
            "train_loss": 1.0 + i,
            "test_loss": 2.0 + i,
            "test_accuracy": 0.9 - i / 100,
            "nonzero_weights": 90 - i,
            "weight_norm": 30.0 - i,
            "status": "certified",
            **changes,
        }
        for other in l1
        for i, strength in enumerate(l2)
    ]


def curves_of(ax):
    """The lines; the marks on them are lines without a style."""
    return [line for line in ax.lines if line.get_linestyle() != "None"]


def marks_of(ax, face):
    marks = [line for line in ax.lines if line.get_linestyle() == "None"]
    return [x for line in marks if line.get_markerfacecolor() == face for x in line.get_xdata()]


@pytest.mark.slow
@pytest.mark.parametrize("l2", [[0.1], [1e-6, 1.0], [0.0, 0.1], [0.0]], ids=str)
@pytest.mark.parametrize("l1", [[0.0], [0.0, 0.5], [0.5]], ids=str)
def test_path_curves_are_drawn(l2, l1):
    assert_is_drawn(row_plots.path_curves(solutions(l2, l1)))


def test_path_curves_show_the_rows_in_the_order_of_their_strengths():
    figure = row_plots.path_curves(solutions([1e-3, 1e-1, 1e-2]))
    loss, accuracy, size = figure.axes
    assert [ax.get_xscale() for ax in figure.axes] == ["log"] * 3
    for ax, values in (
        (loss, [[1.0, 3.0, 2.0], [2.0, 4.0, 3.0]]),
        (accuracy, [[0.9, 0.88, 0.89]]),
        (size, [[30.0, 28.0, 29.0]]),
    ):
        assert [line.get_ydata().tolist() for line in curves_of(ax)] == values
        assert all(line.get_xdata().tolist() == [1e-3, 1e-2, 1e-1] for line in curves_of(ax))


def test_path_curves_say_what_is_on_their_axes():
    figure = row_plots.path_curves(solutions([1e-3, 1e-1]))
    assert {ax.get_xlabel() for ax in figure.axes} == {"l2 (weak → strong)"}
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == ["loss (nats)", "test accuracy", "norm of the weights"]


def test_path_curves_count_the_weights_where_l1_makes_some_zero():
    size = row_plots.path_curves(solutions([1e-3, 1e-1], [0.5])).axes[2]
    assert size.get_ylabel() == "weights other than zero"
    assert curves_of(size)[0].get_ydata().tolist() == [90, 89]


def test_path_curves_are_over_l1_if_only_that_varies():
    figure = row_plots.path_curves(solutions([0.1], [0.5, 0.25]))
    assert {ax.get_xlabel() for ax in figure.axes} == {"l1 (weak → strong)"}
    assert curves_of(figure.axes[1])[0].get_xdata().tolist() == [0.25, 0.5]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_path_curves_have_one_for_each_l1_if_both_vary():
    figure = row_plots.path_curves(solutions([0.1, 0.2], [0.5, 0.0]))
    assert legend_of(figure) == ["train", "test", "certified", "l1 = 0", "l1 = 0.5"]
    assert [len(curves_of(ax)) for ax in figure.axes] == [4, 2, 2]
    colours = {tuple(line.get_color()) for line in curves_of(figure.axes[1])}
    assert len(colours) == 2


def test_what_is_not_certified_is_an_empty_circle():
    rows = [*solutions([0.1, 0.3]), *solutions([0.2], status="not certified")]
    figure = row_plots.path_curves(rows)
    assert legend_of(figure) == ["train", "test", "certified", "not certified"]
    for ax in figure.axes:
        assert set(marks_of(ax, "white")) == {0.2}
    assert set(marks_of(figure.axes[1], figures.ORANGE)) == {0.1, 0.3}


def test_an_infinite_loss_is_left_out():
    rows = [*solutions([0.1, 0.2]), *solutions([0.3], test_loss=None)]
    figure = row_plots.path_curves(rows)
    test = curves_of(figure.axes[0])[1]
    assert np.isnan(test.get_ydata()).tolist() == [False, False, True]


def test_zero_has_its_place_left_of_the_weakest_strength():
    figure = row_plots.path_curves(solutions([0.0, 1e-4, 1e-2]))
    ax = figure.axes[0]
    zero, weak, strong = (ax.transData.transform((x, 1.0))[0] for x in (0.0, 1e-4, 1e-2))
    assert zero < weak < strong
    assert 0.05 < (weak - zero) / (strong - zero) < 0.5


def members(**settings):
    """A member for each combination; the loss is the sum of its settings."""
    combinations = itertools.product(*settings.values())
    return [
        {
            "member": i,
            **dict(zip(settings, values, strict=True)),
            "test": {"nats": float(sum(values))},
            "diverged_at_step": None,
        }
        for i, values in enumerate(combinations)
    ]


def test_a_sweep_of_two_settings_is_a_map():
    some = members(l2=(0.0, 0.1), learning_rate=(1.0, 2.0, 3.0))
    some[-1]["diverged_at_step"] = 7
    figure = row_plots.sweep_map(some, ["l2", "learning_rate"])
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "l2")
    np.testing.assert_allclose(
        np.ma.filled(ax.images[0].get_array(), np.nan), [[1, 2, 3], [1.1, 2.1, np.nan]]
    )
    assert [text.get_text() for text in ax.texts] == [
        "1.000",
        "2.000",
        "3.000",
        "1.100",
        "2.100",
        "×",
    ]
    assert_is_drawn(figure)


def test_of_more_settings_the_lowest_loss_over_the_others_is_shown():
    some = members(l2=(0.0, 0.1), learning_rate=(1.0, 2.0, 3.0), init_seed=(4, 5, 6, 7))
    figure = row_plots.sweep_map(some, ["l2", "learning_rate", "init_seed"])
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("init seed", "learning rate")
    np.testing.assert_allclose(ax.images[0].get_array()[0], [5, 6, 7, 8])


@pytest.mark.parametrize("n", [2, 64])
def test_a_sweep_of_one_setting_is_a_curve(n):
    some = members(init_seed=range(10**6, 10**6 + n))
    some[1]["test"]["nats"] = None
    figure = row_plots.sweep_map(some, ["init_seed"])
    (ax,) = figure.axes
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels[0] == "1000000"
    assert len(labels) <= 12
    assert len(ax.lines) == 2  # the curve and a cross
    assert_is_drawn(figure)


def test_settings_hand_in_hand_make_a_curve_over_the_members():
    some = members(l2=(0.0, 0.1), learning_rate=(1.0, 2.0))[1:3]
    figure = row_plots.sweep_map(some, ["l2", "learning_rate"])
    assert figure.axes[0].get_xlabel() == "member"


def test_compared_curves_have_a_line_a_run():
    curve = [{"step": i, "test_loss": 1 / i, "test_accuracy": i / 9} for i in range(1, 9)]
    figure = row_plots.compared_curves({"first": curve, "second": curve[:2]})
    assert [len(ax.lines) for ax in figure.axes] == [2, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first", "second"]
    assert_is_drawn(figure)


@pytest.mark.parametrize("keys", [[], ["l2", "learning_rate"]])
def test_members_that_repeat_make_a_curve(keys):
    some = [
        {
            "member": i,
            "l2": l2,
            "learning_rate": rate,
            "test": {"nats": 1.0},
            "diverged_at_step": None,
        }
        for i, (l2, rate) in enumerate([(0.0, 1.0), (0.0, 1.0), (0.1, 2.0), (0.1, 2.0)])
    ]
    figure = row_plots.sweep_map(some, keys)
    assert figure.axes[0].get_xlabel() == "member"
    assert_is_drawn(figure)


def test_a_name_that_looks_like_mathematics_is_drawn():
    curve = [{"step": i, "test_loss": 1 / i, "test_accuracy": i / 9} for i in range(1, 9)]
    assert_is_drawn(row_plots.compared_curves({r"r$\frac$": curve}))
