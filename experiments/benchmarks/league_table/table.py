"""The table: a line a cell, with the best peer beside ours."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .tasks import TARGETS

KEYS = tuple(f"{target:g}" for target in TARGETS)
"""Targets as they stand in a record."""


class Ratio(NamedTuple):
    """Seconds of the best peer over those of ours."""

    value: float
    bound: str
    """``>`` if no peer met the target, ``<`` if ours did not, else empty."""
    peer: str
    """Name of the best peer; empty if none met the target."""

    @property
    def lost(self) -> bool:
        """True if a peer is faster."""
        return self.bound == "<" or (self.value < 1 and not self.bound)


def best_peer(cell: Mapping[str, Any], key: str) -> tuple[str, float] | None:
    """Returns the name and the seconds of the fastest peer within a target."""
    found = [
        (peer["seconds"][key], name)
        for name, peer in cell["peers"].items()
        if peer["seconds"].get(key) is not None
    ]
    if not found:
        return None
    seconds, name = min(found)
    return name, seconds


def ratio(cell: Mapping[str, Any], key: str) -> Ratio | None:
    """Returns how often ours fits into the time of the best peer; None if nobody met the target.

    One that did not meet it counts with the budget, so that the ratio is a bound.
    """
    best, ours = best_peer(cell, key), cell["ours"]["seconds"].get(key)
    if best is None and ours is None:
        return None
    if best is None:
        return Ratio(cell["budget"] / ours, ">", "")
    name, seconds = best
    return Ratio(seconds / (ours or cell["budget"]), "" if ours else "<", name)


def geometric_mean(ratios: Sequence[Ratio | None]) -> float:
    """Returns the geometric mean; bounds count as they are."""
    logs = [math.log(each.value) for each in ratios if each is not None]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def size(cell: Mapping[str, Any]) -> str:
    """Returns rows, features and classes, and how many problems there are."""
    shape = cell["shape"]
    text = f"{shape['rows']:,} x {shape['features']:,} x {shape['classes']:,}"
    return text if shape["problems"] == 1 else f"{shape['problems']:,} of {text}"


def seconds_text(value: float | None) -> str:
    """Returns seconds with two or three digits; a dash for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.3g}"


def ratio_text(found: Ratio | None) -> str:
    """Returns a ratio, marked if the cell is lost."""
    if found is None:
        return "-"
    shown = f"{found.value:.3g}" if found.value < 1 else f"{found.value:.1f}"
    bound = f"{found.bound} " if found.bound else ""
    return f"**{bound}{shown} lost**" if found.lost else f"{bound}{shown}"


def line(name: str, cell: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a line of the table."""
    parts = [name, size(cell) + ("" if cell["proved"] else " (minimum not proved)")]
    for key in KEYS:
        best = best_peer(cell, key)
        parts += [
            f"{best[0]}: {seconds_text(best[1])}" if best else f"> {cell['budget']:g}",
            seconds_text(cell["ours"]["seconds"].get(key)),
            ratio_text(ratio(cell, key)),
        ]
    ours, default = cell["ours"], cell["default"]
    best = best_peer(cell, KEYS[-1]) or best_peer(cell, KEYS[0])
    peak = cell["peers"][best[0]]["peak"] if best else None
    return [
        *parts,
        seconds_text(ours["first"]),
        seconds_text(ours["cached"]),
        seconds_text(default["seconds"]),
        "-" if default["excess"] is None else f"{default['excess']:.0e}",
        *("-" if value is None else f"{value:.0f}" for value in (ours["peak"], peak)),
    ]


HEADER = [
    "cell",
    "rows x features x classes",
    *(text for key in KEYS for text in (f"best peer, {key}", f"ours, {key}", "ratio")),
    "ours, first call",
    "first, cached",
    "scikit-learn as it is",
    "its excess",
    "MiB, ours",
    "MiB, peer",
]


def markdown(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the table, and under it the geometric means."""
    rows = [HEADER, ["---"] * len(HEADER)]
    rows += [line(name, cell) for name, cell in cells.items()]
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    for key in KEYS:
        ratios = [ratio(cell, key) for cell in cells.values()]
        lost = [name for name, each in zip(cells, ratios, strict=True) if each and each.lost]
        text += (
            f"\n\nWithin {key}: geometric mean of the ratios {geometric_mean(ratios):.2f} over "
            f"{sum(each is not None for each in ratios)} cells; "
            f"lost: {', '.join(lost) if lost else 'none'}."
        )
    return text
