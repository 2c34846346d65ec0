"""The pictures. Colours are told apart by colour-blind readers and in grey print."""

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from softmax_jax.calibration import Band, Bins
from softmax_jax.calibration.selective import RiskCoverage
from softmax_jax.codelength.online import Codelength
from softmax_jax.status import Status

# Okabe and Ito's palette, without its yellow, which is too faint for lines.
BLUE, ORANGE = "#0072B2", "#D55E00"
_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 10,
}


def learning_curve(rows: Sequence[Mapping[str, Any]], score: str) -> Figure:
    """Loss in nats or accuracy against the epoch, on training, test and validation data.

    Args:
      rows: one an epoch, with ``epoch`` and ``train_SCORE``, ``test_SCORE``, and where data are
        held out ``validation_SCORE``; those on training data are means over the epoch.
      score: ``loss`` or ``accuracy``.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4, 3.2), layout="constrained")
        ax = figure.subplots()
        epochs = [row["epoch"] for row in rows]
        marker = "o" if len(rows) < 3 else None
        lines = (("train", BLUE, "-"), ("test", ORANGE, "--"), ("validation", "black", ":"))
        for split, colour, line in lines:
            values = [row[f"{split}_{score}"] for row in rows if f"{split}_{score}" in row]
            if len(values) < len(rows):
                continue
            ax.plot(epochs, values, line, color=colour, label=split, marker=marker)
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss (nats)" if score == "loss" else score)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.legend(frameon=False)
    return figure


def compared_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Loss and accuracy on test data against the step, a curve a run.

    Args:
      runs: by name, rows with ``step``, ``test_loss`` and ``test_accuracy``.
    """
    styles = ("-", "--", ":", "-.")
    # Names that differ early, such as those of folders, are told apart by their ends.
    names = [name if len(name) <= 70 else "…" + name[-69:] for name in runs]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9, 3.4 + 0.2 * len(runs)), layout="constrained")
        axes = figure.subplots(1, 2)
        shades = mpl.colormaps["cividis"](np.linspace(0, 0.85, len(runs)))
        for i, (name, rows) in enumerate(zip(names, runs.values(), strict=True)):
            steps = [row["step"] for row in rows]
            for ax, key in zip(axes, ("test_loss", "test_accuracy"), strict=True):
                ax.plot(
                    steps,
                    [row[key] for row in rows],
                    styles[i % len(styles)],
                    color=shades[i],
                    label=_name(name, 70) if ax is axes[0] else None,
                    marker="o" if len(rows) < 3 else None,
                )
        for ax, label in zip(axes, ("test loss (nats)", "test accuracy"), strict=True):
            ax.set_xlabel("step")
            ax.set_ylabel(label)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        figure.legend(loc="outside upper left", ncols=1, frameon=False)
    return figure


def excess_curve(steps: Sequence[int], excess: Sequence[float], lowest: float) -> Figure:
    """Draws how far a loss is above the lowest possible one, against the step.

    Args:
      steps: at which it was measured.
      excess: the loss less the lowest possible one, in nats.
      lowest: possible loss, in nats, for the title.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.5, 3.6), layout="constrained")
        ax = figure.subplots()
        ax.plot(steps, excess, color=BLUE, marker="o", markersize=3)
        ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.set_ylabel("test loss above the lowest (nats)")
        ax.set_title(f"down to {excess[-1]:.3g} above {lowest:.4g} nats", fontsize="medium")
        ax.grid(alpha=0.3, which="both")
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
            certified = np.array([row["status"] == Status.CERTIFIED for row in curve])
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
        for label, is_so, face in (
            (Status.CERTIFIED, True, "0.3"),
            (Status.NOT_CERTIFIED, False, "white"),
        ):
            if any((row["status"] == Status.CERTIFIED) == is_so for row in rows):
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
      w: ``[height * width, q]``, of which the first 60 classes are drawn.
      image_shape: height and width.
      class_names: ``q`` names.
    """
    weights = np.asarray(w, np.float32)[:, :60]
    q = weights.shape[1]
    columns = min(q, 4)
    rows = -(-q // columns)
    with mpl.rc_context(_STYLE):
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
            ax.set_title(_name(name), fontsize=10)
            ax.set_axis_off()
        figure.colorbar(shown, ax=axes, label="weight", shrink=0.8)
    return figure


def confusion_matrix(counts: np.typing.ArrayLike, class_names: Sequence[str]) -> Figure:
    """Draws how often each class was taken for each other one; shade is the share of its row.

    Args:
      counts: ``[q, q]``, by class in rows and by prediction in columns.
      class_names: ``q`` names.
    """
    counts = np.asarray(counts, np.float64)
    q = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-300)
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
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
            names = list(map(_name, class_names))
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
    """Images with their class, what was predicted instead, and the surprisal of the class.

    Args:
      images: ``[n, height, width]``.
      bits: ``n`` surprisals.
      labels: ``n`` names of their classes.
      predictions: ``n`` names of the most probable classes.
    """
    images = np.asarray(images)
    columns = min(len(images), 4)
    rows = -(-len(images) // columns)
    with mpl.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.6 * columns, 2.0 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, image, surprisal, label, guess in zip(
            axes.flat, images, bits, labels, predictions, strict=False
        ):
            ax.imshow(image, cmap="gray_r")
            taken = "recognised" if guess == label else f"taken for {_name(guess)}"
            ax.set_title(f"{_name(label)}\n{taken}\n{surprisal:.1f} bits", fontsize=9)
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
    """
    weight, confidence, outcome = (np.asarray(a, np.float64) for a in bins[:3])
    edges, some = np.asarray(edges, np.float64), weight > 0
    width, middle = np.diff(edges), (edges[1:] + edges[:-1]) / 2
    mean_confidence, mean_outcome = (a[some] / weight[some] for a in (confidence, outcome))
    with mpl.rc_context(_STYLE):
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
    """Share of wrong answers against the share of cases answered, the most confident first."""
    with mpl.rc_context(_STYLE):
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
    """Bits a label to send those of the first examples, against their number.

    Args:
      curves: by the name of the way to learn; two at most are told apart by colour.
      controls: of the control task, by the same names: dotted.
    """
    with mpl.rc_context(_STYLE):
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


def sweep_map(members: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Figure:
    """Test loss over the settings that a sweep varies.

    One setting makes a curve, two make a map. Of more, the two with the most values are shown, with
    the lowest loss over all others. Where settings go hand in hand the curve is over the members. A
    cross is what diverged.

    Args:
      members: with ``member``, the ``keys``, ``test`` (with ``nats``, None if it has none) and
        ``diverged_at_step``, None for a member that did not.
      keys: the settings that differ.
    """
    values = {key: sorted({member[key] for member in members}) for key in keys}
    combinations = int(np.prod([len(some) for some in values.values()]))
    places = len({tuple(member[key] for key in keys) for member in members})
    if not keys or combinations > places:
        keys, values = ["member"], {"member": sorted(member["member"] for member in members)}
    keys = sorted(keys, key=lambda key: -len(values[key]))[:2]
    lowest: dict[tuple[Any, ...], float] = {}
    for member in members:
        place = tuple(member[key] for key in keys)
        loss = member["test"]["nats"]
        is_good = loss is not None and member["diverged_at_step"] is None
        lowest[place] = min(lowest.get(place, np.inf), loss if is_good else np.inf)
    with mpl.rc_context({**_STYLE, "axes.grid": len(keys) == 1}):
        draw = _sweep_curve if len(keys) == 1 else _sweep_map
        return draw(lowest, *((key.replace("_", " "), values[key]) for key in keys))


def _sweep_curve(lowest: Mapping[tuple[Any, ...], float], along: tuple[str, list[Any]]) -> Figure:
    name, values = along
    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    ax = figure.subplots()
    losses = np.array([lowest[(value,)] for value in values])
    ax.plot(np.where(np.isfinite(losses), losses, np.nan), "o-", color=BLUE)
    for at in np.flatnonzero(~np.isfinite(losses)):
        ax.plot(at, 0.05, "x", color=ORANGE, transform=ax.get_xaxis_transform())
    _ticks(ax.set_xticks, values)
    ax.set_xlabel(name)
    ax.set_ylabel("test loss (nats)")
    return figure


def _sweep_map(
    lowest: Mapping[tuple[Any, ...], float],
    across: tuple[str, list[Any]],
    up: tuple[str, list[Any]],
) -> Figure:
    table = np.array([[lowest[x, y] for x in across[1]] for y in up[1]])
    height, width = table.shape
    size = (min(0.6 * width + 2.4, 14), min(0.5 * height + 1.5, 10))
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    good = np.where(np.isfinite(table), table, np.nan)
    # A few bad members must not take all of the colours.
    low, high = np.nanmin(good), np.nanpercentile(good, 90)
    shown = ax.imshow(good, "cividis_r", vmin=low, vmax=high, aspect="auto", origin="lower")
    for (i, j), loss in np.ndenumerate(table):
        if np.isinf(loss):
            ax.text(j, i, "×", ha="center", va="center", color=ORANGE, fontsize=14)
        elif table.size <= 150:
            colour = "white" if loss > (low + high) / 2 else "black"
            ax.text(j, i, f"{loss:.3f}", ha="center", va="center", color=colour, fontsize=8)
    for setting, ticks, label in (
        (across, ax.set_xticks, ax.set_xlabel),
        (up, ax.set_yticks, ax.set_ylabel),
    ):
        _ticks(ticks, setting[1])
        label(setting[0])
    extend = "max" if np.nanmax(good) > high else "neither"
    figure.colorbar(shown, ax=ax, label="test loss (nats)", extend=extend)
    return figure


def _ticks(place: Callable[..., Any], values: Sequence[Any]) -> None:
    """At most a dozen labels."""
    step = -(-len(values) // 12)
    places = range(0, len(values), step)
    place(places, [brief(values[i]) for i in places])


def _name(text: str, most: int = 20) -> str:
    """Returns a name of the user's as text: no mathematics, shown in legends, not too long."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text.replace("$", r"\$").replace("_", " _", text.startswith("_"))


def brief(value: Any) -> str:
    """A setting in few characters; seeds in full."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def to_png(figure: Figure, *, title: str = "softmax_jax") -> bytes:
    """The figure as a PNG file of 120 dots per inch, with a title in its metadata."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120, metadata={"Title": title})
    return stream.getvalue()
