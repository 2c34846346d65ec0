"""Pictures of the rows that runs write: curves, paths of solutions, maps of sweeps."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from runs import table
from softmax_jax.figures import BLUE, ORANGE, STYLE, short_name
from softmax_jax.status import Status


def learning_curve(rows: Sequence[Mapping[str, Any]], score: str) -> Figure:
    """Draws loss in nats or accuracy against the epoch, on training, test and validation data.

    Args:
      rows: one an epoch, with ``epoch`` and ``train_SCORE``, ``test_SCORE``, and where data are
        held out ``validation_SCORE``; those on training data are means over the epoch.
      score: ``loss`` or ``accuracy``.
    """
    with mpl.rc_context(STYLE):
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
    """Draws loss and accuracy on test data against the step, a curve a run.

    Args:
      runs: by name, rows with ``step``, ``test_loss`` and ``test_accuracy``.
    """
    styles = ("-", "--", ":", "-.")
    # Names that differ early, such as those of folders, are told apart by their ends.
    names = [name if len(name) <= 70 else "…" + name[-69:] for name in runs]
    with mpl.rc_context(STYLE):
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
                    label=short_name(name, 70) if ax is axes[0] else None,
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
    with mpl.rc_context(STYLE):
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
    """Draws losses, accuracy and size of solutions against the strength of their regularisation.

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
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        axes = figure.subplots(1, 3)
        shades = dict(
            zip(groups, mpl.colormaps["cividis"](np.linspace(0, 0.85, len(groups))), strict=True)
        )
        for group, shade in shades.items():
            curve = [row for row in rows if row[across] == group]
            curve.sort(key=lambda row: row[along])
            for ax, key, style, colour in (
                (axes[0], "train_loss", "-", BLUE),
                (axes[0], "test_loss", "--", ORANGE),
                (axes[1], "test_accuracy", "--", ORANGE),
                (axes[2], size, "-", BLUE),
            ):
                _path_curve(ax, curve, along, key, style, shade if len(groups) > 1 else colour)
        for ax, label in zip(axes, ("loss (nats)", "test accuracy", unit), strict=True):
            _strength_axis(ax, {row[along] for row in rows})
            ax.set_xlabel(f"{along} (weak → strong)")
            ax.set_ylabel(label)
        axes[2].set_ylim(bottom=0)
        keys = _path_keys({row["status"] for row in rows}, across, shades)
        # Outside, as a curve may run through any corner.
        figure.legend(
            handles=keys, loc="outside upper center", ncols=min(len(keys), 8), frameon=False
        )
    return figure


def _path_curve(
    ax: Axes, rows: Sequence[Mapping[str, Any]], along: str, key: str, style: str, colour: Any
) -> None:
    """Draws one curve; what is not certified is an empty circle."""
    strengths = np.array([row[along] for row in rows])
    values = np.array([row[key] for row in rows], np.float64)
    certified = np.array([row["status"] == Status.CERTIFIED for row in rows])
    ax.plot(strengths, values, style, color=colour)
    for some, face in ((certified, colour), (~certified, "white")):
        ax.plot(
            strengths[some], values[some], "o", color=colour, markerfacecolor=face, markersize=5
        )


def _path_keys(statuses: Collection[Any], across: str, shades: Mapping[float, Any]) -> list[Line2D]:
    """Returns the legend: of lines, of circles, and of colours if there are several groups."""

    def key_to(label, style, colour, **marker):
        return Line2D([], [], linestyle=style, color=colour, label=label, **marker)

    several = len(shades) > 1
    colours = ("0.3", "0.3") if several else (BLUE, ORANGE)
    keys = [key_to("train", "-", colours[0]), key_to("test", "--", colours[1])]
    for label, is_so, face in (
        (Status.CERTIFIED, True, "0.3"),
        (Status.NOT_CERTIFIED, False, "white"),
    ):
        if any((status == Status.CERTIFIED) == is_so for status in statuses):
            keys.append(key_to(label, "", "0.3", marker="o", markerfacecolor=face))
    if several:
        keys += [key_to(f"{across} = {group:.3g}", "-", shade) for group, shade in shades.items()]
    return keys


def _strength_axis(ax: Axes, strengths: Collection[float]) -> None:
    """Logarithmic, with a place for zero if it is among them."""
    positive = [strength for strength in strengths if strength > 0]
    if len(positive) < len(strengths):
        ax.set_xscale("symlog", linthresh=min(positive, default=1.0), linscale=0.5)
    else:
        ax.set_xscale("log")


def sweep_map(members: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Figure:
    """Draws test loss over the settings that a sweep varies.

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
    with mpl.rc_context({**STYLE, "axes.grid": len(keys) == 1}):
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
    losses = np.array([[lowest[x, y] for x in across[1]] for y in up[1]])
    height, width = losses.shape
    size = (min(0.6 * width + 2.4, 14), min(0.5 * height + 1.5, 10))
    figure = Figure(figsize=size, layout="constrained")
    ax = figure.subplots()
    good = np.where(np.isfinite(losses), losses, np.nan)
    # A few bad members must not take all of the colours.
    low, high = np.nanmin(good), np.nanpercentile(good, 90)
    shown = ax.imshow(good, "cividis_r", vmin=low, vmax=high, aspect="auto", origin="lower")
    for (i, j), loss in np.ndenumerate(losses):
        if np.isinf(loss):
            ax.text(j, i, "×", ha="center", va="center", color=ORANGE, fontsize=14)
        elif losses.size <= 150:
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
    """Places at most a dozen labels."""
    step = -(-len(values) // 12)
    places = range(0, len(values), step)
    place(places, [table.brief(values[i]) for i in places])
