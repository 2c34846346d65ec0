"""A picture of the ratios: a line a cell, a dot an accuracy."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from softmax_jax.figures import BLUE, ORANGE, STYLE

from .table import KEYS, geometric_mean, ratio, size

COLOURS = dict(zip(KEYS, (BLUE, ORANGE), strict=True))
MARKERS = {">": ">", "<": "<", "": "o"}


def draw(cells: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draws seconds of the best peer over those of ours, for each cell and both accuracies.

    Example:
      >>> draw({}).axes[0].get_xscale()
      'log'
    """
    names = sorted(cells, key=lambda name: np.nan_to_num(mean_of(cells[name])))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.6 + 0.36 * max(len(names), 3)), layout="constrained")
        ax = figure.subplots()
        ax.set_xscale("log")
        for row, name in enumerate(names):
            draw_cell(ax, row, cells[name])
        for key in KEYS:
            mean = geometric_mean([ratio(cell, key) for cell in cells.values()])
            ax.axvline(mean, color=COLOURS[key], linewidth=1, linestyle=":", zorder=0)
            label = f"within {key} of the minimum (geometric mean {mean:.2g})"
            ax.plot([], [], "o", color=COLOURS[key], label=label)
        ax.axvline(1, color="black", linewidth=1.2, zorder=1)
        low, high = ax.get_xlim()
        low, high = min(low, 0.5), 1.3 * max(high, 2.0)
        ax.axvspan(low, 1, color="0.94", zorder=-1)
        ax.set_xlim(low, high)
        ax.set_yticks(range(len(names)), [f"{name}\n{size(cells[name])}" for name in names])
        ax.tick_params(axis="y", labelsize=8, length=0)
        ax.set_ylim(-0.6, len(names) - 0.4)
        ax.grid(axis="y", visible=False)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("seconds of the best peer / seconds of ours, certified (left of 1x: lost)")
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def mean_of(cell: Mapping[str, Any]) -> float:
    """Returns the geometric mean of the ratios of both accuracies, NaN where there is none."""
    return geometric_mean([ratio(cell, key) for key in KEYS])


def draw_cell(ax: Any, row: int, cell: Mapping[str, Any]) -> None:
    """Draws the dots of a cell, a line between them, and the name of the best peer."""
    found = {key: each for key in KEYS if (each := ratio(cell, key))}
    if not found:
        return
    values = [each.value for each in found.values()]
    ax.plot([min(values), max(values)], [row, row], color="0.75", linewidth=2, zorder=2)
    for key, each in found.items():
        ax.plot(each.value, row, MARKERS[each.bound], color=COLOURS[key], markersize=7, zorder=3)
    best = list(found.values())[-1].peer or "no peer in time"
    ax.annotate(
        best.replace("scikit-learn ", ""),
        (max(values), row),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color="0.35",
    )
