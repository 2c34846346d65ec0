"""The pictures. Colours are told apart by colour-blind readers and in grey print."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from softmax_jax.calibration import Band, Bins
from softmax_jax.calibration.selective import RiskCoverage
from softmax_jax.codelength.online import Codelength
from softmax_jax.solvers import Solution

# Okabe and Ito's palette, without its yellow, which is too faint for lines.
BLUE, ORANGE = "#0072B2", "#D55E00"
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 10,
}


def weight_images(
    w: np.typing.ArrayLike, image_shape: tuple[int, int], class_names: Sequence[str]
) -> Figure:
    """Draws the weights of each class as an image: pixels speak for a class, or against it.

    Args:
      w: ``[height * width, q]``, of which the first 60 classes are drawn.
      image_shape: height and width.
      class_names: ``q`` names.

    Example:
      >>> figure = weight_images(np.eye(6)[:, :2], (2, 3), ["cat", "dog"])
      >>> [ax.get_title() for ax in figure.axes[:2]]
      ['cat', 'dog']
    """
    weights = np.asarray(w, np.float32)[:, :60]
    q = weights.shape[1]
    columns = min(q, 4)
    rows = -(-q // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.4 * columns + 0.8, 1.55 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        largest = float(np.max(np.abs(weights))) or 1.0
        for ax in axes.flat[q:]:
            ax.set_visible(False)
        for j, name in enumerate(class_names[:q]):
            ax = axes.flat[j]
            shown = ax.imshow(
                weights[:, j].reshape(image_shape), cmap="PuOr", vmin=-largest, vmax=largest
            )
            ax.set_title(short_name(name), fontsize=10)
            ax.set_axis_off()
        figure.colorbar(shown, ax=axes, label="weight", shrink=0.8)
    return figure


def confusion_matrix(counts: np.typing.ArrayLike, class_names: Sequence[str]) -> Figure:
    """Draws how often each class was taken for each other one; shade is the share of its row.

    Args:
      counts: ``[q, q]``, by class in rows and by prediction in columns.
      class_names: ``q`` names.

    Example:
      >>> figure = confusion_matrix([[3, 1], [0, 2]], ["cat", "dog"])
      >>> [text.get_text() for text in figure.axes[0].texts]  # a cell without cases stays empty
      ['3', '1', '2']
    """
    counts = np.asarray(counts, np.float64)
    q = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        size = min(max(0.42 * q + 1.6, 3.2), 12)
        figure = Figure(figsize=(size + 0.8, size), layout="constrained")
        ax = figure.subplots()
        shown = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if q <= 20:
            turned: dict[str, Any] = {}
            if max(map(len, class_names)) > 3:
                turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
            for (i, j), count in np.ndenumerate(counts):
                colour = "white" if shares[i, j] > 0.5 else "black"
                if count:
                    text = f"{count:.0f}" if count == round(count) else f"{count:.1f}"
                    ax.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
            names = list(map(short_name, class_names))
            ax.set_xticks(range(q), names, **turned)
            ax.set_yticks(range(q), names)
        ax.set_xlabel("predicted")
        ax.set_ylabel("true class")
        figure.colorbar(shown, ax=ax, label="share of the true class", shrink=0.8)
    return figure


def surprising_examples(
    images: np.typing.ArrayLike,
    bits: Sequence[float] | np.ndarray,
    labels: Sequence[str],
    predictions: Sequence[str],
) -> Figure:
    """Draws images with their class, what was predicted instead, and the surprisal of the class.

    Args:
      images: ``[n, height, width]``.
      bits: ``n`` surprisals.
      labels: ``n`` names of their classes.
      predictions: ``n`` names of the most probable classes.

    Example:
      >>> figure = surprising_examples(np.zeros((1, 2, 2)), [3.5], ["cat"], ["dog"])
      >>> figure.axes[0].get_title().splitlines()
      ['cat', 'taken for dog', '3.5 bits']
    """
    images = np.asarray(images)
    columns = min(len(images), 4)
    rows = -(-len(images) // columns)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.6 * columns, 2.0 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, image, surprisal, label, guess in zip(
            axes.flat, images, bits, labels, predictions, strict=False
        ):
            ax.imshow(image, cmap="gray_r")
            taken = "recognised" if guess == label else f"taken for {short_name(guess)}"
            ax.set_title(f"{short_name(label)}\n{taken}\n{surprisal:.1f} bits", fontsize=9)
    return figure


def reliability_diagram(
    bins: Bins,
    edges: np.typing.ArrayLike,
    *,
    chance: Band | None = None,
    band: Band | None = None,
    title: str = "",
) -> Figure:
    """Draws how often predictions come true against how probable they were; below, how many.

    Args:
      bins: ``[bins]`` sums of `calibration.reliability`, for any number of classes.
      edges: ``[bins + 1]`` of the bins.
      chance: where a calibrated model would be, from `calibration.consistency`: a grey box.
      band: of the observed frequencies, from `calibration.bootstrap_band`: a whisker.
      title: above.

    Example:
      >>> from softmax_jax import calibration
      >>> edges = calibration.equal_width_edges(2)
      >>> bins = calibration.reliability(np.array([0.25, 0.75, 0.75]), np.array([0, 1, 0]), edges)
      >>> figure = reliability_diagram(bins, edges, title="digits")
      >>> figure.axes[0].lines[-1].get_ydata().tolist()  # none came true, and one of two
      [0.0, 0.5]
    """
    weight, confidence, outcome = (np.asarray(a, np.float64) for a in bins[:3])
    edges, some = np.asarray(edges, np.float64), weight > 0
    width, middle = np.diff(edges), (edges[1:] + edges[:-1]) / 2
    mean_confidence, mean_outcome = (a[some] / weight[some] for a in (confidence, outcome))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4, 4.8), layout="constrained")
        ax, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        ax.plot([0, 1], [0, 1], color="0.4", linewidth=1, label="calibrated")
        if chance is not None:
            low, high = chance
            box = {"color": "0.85", "label": "chance, if calibrated"}
            ax.bar(middle[some], (high - low)[some], width[some], low[some], **box)
        if band is not None:
            low, high = (end[some] for end in band)
            # Of few examples the mean may be at an end of the band, or by rounding beyond it.
            errors = np.maximum([mean_outcome - low, high - mean_outcome], 0)
            ax.errorbar(mean_confidence, mean_outcome, errors, fmt="none", ecolor=BLUE, capsize=2)
        observed: dict[str, Any] = {"color": BLUE, "markersize": 4, "clip_on": False}
        ax.plot(mean_confidence, mean_outcome, "o", label="observed", **observed)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1)
        ax.set_ylabel("share that came true")
        ax.set_title(title, fontsize="medium")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize="small")
        counts.bar(middle, weight, width, color=BLUE, edgecolor="white")
        counts.set_xlabel("confidence")
        counts.set_ylabel("examples")
        counts.yaxis.set_major_locator(MaxNLocator(3))
        counts.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return figure


def risk_coverage_curve(curve: RiskCoverage) -> Figure:
    """Draws the share of wrong answers against that of cases answered, most confident first.

    Example:
      >>> from softmax_jax import calibration
      >>> figure = risk_coverage_curve(calibration.risk_coverage([0.9, 0.8, 0.6], [1, 1, 0]))
      >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
      ('coverage (share answered)', 'risk (share of answers wrong)')
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4, 3.2), layout="constrained")
        ax = figure.subplots()
        coverage, risk = np.append(0, curve.coverage), np.append(curve.risk[0], curve.risk)
        ax.plot(coverage, risk, color=BLUE, drawstyle="steps-pre", label="by confidence")
        ax.axhline(curve.risk[-1], color="0.4", linestyle="--", linewidth=1, label="at random")
        ax.set_xlim(0, 1)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("coverage (share answered)")
        ax.set_ylabel("risk (share of answers wrong)")
        ax.legend(frameon=False)
    return figure


def codelength_curves(
    curves: Mapping[str, Codelength], controls: Mapping[str, Codelength]
) -> Figure:
    """Draws the bits a label that the first examples take, against their number.

    Args:
      curves: by the name of the way to learn; two at most are told apart by colour.
      controls: of the control task, by the same names: dotted.

    Example:
      >>> curve = Codelength(seen=np.array([10, 20]), bits=np.array([10.0, 14.0]), uniform=20.0)
      >>> figure = codelength_curves({"refit": curve}, controls={})
      >>> [line.get_label() for line in figure.axes[0].lines]
      ['refit', 'uniform']
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.5, 4), layout="constrained")
        ax = figure.subplots()
        for some, line, suffix in ((curves, "-", ""), (controls, ":", ", control")):
            for (name, curve), colour in zip(some.items(), (BLUE, ORANGE), strict=False):
                marker = "o" if len(curve.seen) < 20 else None
                bits = np.asarray(curve.bits) / np.asarray(curve.seen)
                style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3}
                ax.plot(curve.seen, bits, line, label=f"{name}{suffix}", **style)
        first = next(iter(curves.values()))
        ax.axhline(first.uniform / first.seen[-1], color="0.4", linewidth=1, label="uniform")
        ax.set_xscale("log")
        ax.set_ylim(bottom=0)
        ax.set_xlabel("labels sent")
        ax.set_ylabel("codelength (bits a label)")
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return figure


def coefficient_path(path: Solution, class_names: Sequence[str]) -> Figure:
    """Draws the weights of each class against the strength of l1, and how many are not zero.

    Where a feature's weights are penalised together, see how they leave zero at one strength.

    Args:
      path: solutions for several l1, of one weighting.
      class_names: ``q`` names, of which the first 12 are drawn.

    Raises:
      ValueError: if there are other axes than that of the path, or an l1 of zero.

    Example:
      >>> from softmax_jax import solvers
      >>> x, y = np.array([[0.0, 1], [1, 0], [2, 0], [3, 1]]), np.array([0, 0, 1, 1])
      >>> path = solvers.fit_path(x, y, l2=0.0, l1="auto", strengths=5)
      >>> figure = coefficient_path(path, ["low", "high"])
      >>> [ax.get_title() for ax in figure.axes]
      ['low', 'high', '', '']
    """
    strengths, w = np.asarray(path.l1), np.asarray(path.params.w)
    if strengths.ndim != 1 or not (strengths > 0).all():
        raise ValueError(f"path: l1 of shape {strengths.shape}; expected [strengths], all above 0")
    shown = min(w.shape[-1], 12, len(class_names))
    columns = min(shown, 4)
    rows = -(-shown // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * columns + 0.8, 2.1 * rows + 2.2), layout="constrained")
        grid = figure.add_gridspec(rows + 1, columns)
        first = None
        for j in range(shown):
            ax = figure.add_subplot(grid[divmod(j, columns)], sharex=first, sharey=first)
            first = first or ax
            own = w[..., j]
            largest = own[:, np.argsort(np.abs(own).max(axis=0))]
            ax.plot(strengths, largest, linewidth=0.8)
            ax.set_title(short_name(class_names[j]), fontsize=10)
            ax.label_outer()
        assert first is not None
        first.set_xscale("log")
        first.invert_xaxis()
        figure.supylabel("weight", fontsize=10)
        _draw_numbers(figure.add_subplot(grid[rows, :]), path)
    return figure


def _draw_numbers(ax: Axes, path: Solution) -> None:
    """Draws how many weights and features of a path are not zero, and the deviance explained."""
    strengths, w = np.asarray(path.l1), np.asarray(path.params.w)
    ax.plot(strengths, path.nonzeros.sum(axis=-1), color=BLUE, label="weights that are not zero")
    ax.plot(
        strengths,
        np.any(w != 0, axis=-1).sum(axis=-1),
        color=BLUE,
        linestyle=":",
        label="features with any",
    )
    ax.set_xscale("log")
    ax.invert_xaxis()
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("l1 (strong to weak)")
    ax.set_ylabel("number")
    share = ax.twinx()
    share.plot(strengths, path.deviance_explained, color=ORANGE, label="deviance explained")
    share.set_ylim(0, 1)
    share.grid(visible=False)
    share.set_ylabel("share")
    lines = [*ax.lines, *share.lines]
    ax.legend(lines, [str(line.get_label()) for line in lines], frameon=False, fontsize=8)


def short_name(text: str, most: int = 20) -> str:
    """Returns a name of the user's as text: no mathematics, shown in legends, not too long."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.replace("$", r"\$").replace("_", " _", text.startswith("_"))


def to_png(figure: Figure, *, title: str = "softmax_jax") -> bytes:
    """Returns the figure as a PNG file of 120 dots per inch, with a title in its metadata.

    Example:
      >>> to_png(weight_images(np.eye(6)[:, :2], (2, 3), ["cat", "dog"]))[1:4]
      b'PNG'
    """
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Title": title})
    return stream.getvalue()
