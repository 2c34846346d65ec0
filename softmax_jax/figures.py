"""The pictures. Colours are told apart by colour-blind readers and in grey print."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

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
