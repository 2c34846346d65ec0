"""The pictures. Colours are told apart by colour-blind readers and in grey print."""

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's palette, without its yellow, which is too faint for lines.
BLUE, ORANGE = "#0072B2", "#D55E00"
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 10,
}


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss in nats and accuracy against the epoch, on training and test data.

    Args:
      rows: one an epoch, with ``epoch`` and ``train_loss``, ``test_loss``, ``train_accuracy``,
        ``test_accuracy``; those on training data are means over the epoch.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.subplots(1, 2)
        epochs = [row["epoch"] for row in rows]
        marker = "o" if len(rows) < 3 else None
        for ax, score, unit in (
            (axes[0], "loss", "loss (nats)"),
            (axes[1], "accuracy", "accuracy"),
        ):
            for split, colour, line in (("train", BLUE, "-"), ("test", ORANGE, "--")):
                values = [row[f"{split}_{score}"] for row in rows]
                ax.plot(epochs, values, line, color=colour, label=split, marker=marker)
            ax.set_xlabel("epoch")
            ax.set_ylabel(unit)
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.legend(frameon=False)
    return figure


def path_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Losses, accuracy and size of solutions against the strength of their regularisation.

    The size is the number of weights that are not zero, or where none has reason to be, as l1 is
    zero, the norm of the weights. The axis is l2, or l1 if only that varies; if both do, there is a
    curve for each l1. What is not certified is an empty circle.

    Args:
      rows: one a solution, in any order, with ``l2``, ``l1``, ``train_loss``, ``test_loss``,
        ``test_accuracy``, ``nonzero_weights``, ``weight_norm`` and ``status``; None for a loss
        leaves its point out.
    """
    along, across = ("l2", "l1") if len({row["l2"] for row in rows}) > 1 else ("l1", "l2")
    groups = sorted({row[across] for row in rows})
    size, unit = "weight_norm", "norm of the weights"
    if any(row["l1"] > 0 for row in rows):
        size, unit = "nonzero_weights", "weights other than zero"
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        axes = figure.subplots(1, 3)
        shades = mpl.colormaps["cividis"](np.linspace(0, 0.85, len(groups)))
        several = len(groups) > 1
        for group, shade in zip(groups, shades, strict=True):
            curve = [row for row in rows if row[across] == group]
            curve.sort(key=lambda row: row[along])
            strengths = np.array([row[along] for row in curve])
            certified = np.array([row["status"] == "certified" for row in curve])
            for ax, key, style, colour in (
                (axes[0], "train_loss", "-", BLUE),
                (axes[0], "test_loss", "--", ORANGE),
                (axes[1], "test_accuracy", "--", ORANGE),
                (axes[2], size, "-", BLUE),
            ):
                colour = shade if several else colour
                values = np.array([row[key] for row in curve], np.float64)
                ax.plot(strengths, values, style, color=colour)
                for some, face in ((certified, colour), (~certified, "white")):
                    ax.plot(
                        strengths[some],
                        values[some],
                        "o",
                        color=colour,
                        markerfacecolor=face,
                        markersize=5,
                    )
        for ax, label in zip(axes, ("loss (nats)", "test accuracy", unit), strict=True):
            _strength_axis(ax, {row[along] for row in rows})
            ax.set_xlabel(f"{along} (weak → strong)")
            ax.set_ylabel(label)
        axes[2].set_ylim(bottom=0)

        def key_to(label, style, colour, **marker):
            return Line2D([], [], linestyle=style, color=colour, label=label, **marker)

        colours = ("0.3", "0.3") if several else (BLUE, ORANGE)
        keys = [key_to("train", "-", colours[0]), key_to("test", "--", colours[1])]
        for label, is_so, face in (("certified", True, "0.3"), ("not certified", False, "white")):
            if any((row["status"] == "certified") == is_so for row in rows):
                keys.append(key_to(label, "", "0.3", marker="o", markerfacecolor=face))
        if several:
            keys += [
                key_to(f"{across} = {group:.3g}", "-", shade)
                for group, shade in zip(groups, shades, strict=True)
            ]
        # Outside, as a curve may run through any corner.
        figure.legend(
            handles=keys, loc="outside upper center", ncols=min(len(keys), 8), frameon=False
        )
    return figure


def _strength_axis(ax: Axes, strengths: Collection[float]) -> None:
    """Logarithmic, with a place for zero if it is among them."""
    positive = [strength for strength in strengths if strength > 0]
    if len(positive) < len(strengths):
        ax.set_xscale("symlog", linthresh=min(positive, default=1.0), linscale=0.5)
    else:
        ax.set_xscale("log")


def weight_images(
    w: np.typing.ArrayLike, image_shape: tuple[int, int], class_names: Sequence[str]
) -> Figure:
    """The weights of each class as an image: which pixels speak for it and which against.

    Args:
      w: ``[height * width, q]``.
      image_shape: height and width.
      class_names: ``q`` names.
    """
    weights = np.asarray(w, np.float32)
    q = weights.shape[1]
    columns = min(q, 5)
    rows = -(-q // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.6 * columns + 0.8, 1.75 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        largest = float(np.max(np.abs(weights))) or 1.0
        for ax in axes.flat[q:]:
            ax.set_visible(False)
        for j, name in enumerate(class_names):
            ax = axes.flat[j]
            shown = ax.imshow(
                weights[:, j].reshape(image_shape), cmap="PuOr", vmin=-largest, vmax=largest
            )
            ax.set_title(name, fontsize=10)
            ax.set_axis_off()
        figure.colorbar(shown, ax=axes, label="weight", shrink=0.8)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file of 120 dots per inch."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()
