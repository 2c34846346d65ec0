"""Tables of the report: any, and those of ``single``."""

import dataclasses
import statistics
from collections.abc import Sequence

from .peers import OPTAX
from .trials import TARGETS, Trial

_HEADER = ["", *(f"{target:.0e}" for target in TARGETS)]


@dataclasses.dataclass
class Row:
    """A line of the table of ``single``."""

    name: str
    seconds: dict[float, float] = dataclasses.field(default_factory=dict)
    """Seconds by target, for the targets that were met."""
    trials: list[Trial] = dataclasses.field(default_factory=list)
    missing: str = "not met"
    """Text for a target that was not met."""

    def memory(self, key: str) -> str:
        """Returns the most of all trials."""
        values = [getattr(trial, key) for trial in self.trials]
        return f"{max(v for v in values if v == v):.0f}" if any(v == v for v in values) else "-"

    def ratio(self, base: "Row", target: float) -> str:
        """Returns how many times the seconds of another row this one takes, or more than those."""
        if target not in base.seconds:
            return "-"
        if target in self.seconds:
            return f"{self.seconds[target] / base.seconds[target]:.1f}"
        budget = self.missing.removeprefix("> ")
        return f"> {float(budget) / base.seconds[target]:.1f}" if budget != self.missing else "-"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints cells in columns, the first one to the left and all others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())


def print_seconds(rows: Sequence[Row]) -> None:
    """Prints seconds and memory of each row; the first two are later and first calls of ours."""
    table = [[*_HEADER, "peak", "added"]]
    for row in rows:
        cells = [f"{row.seconds[t]:.2f}" if t in row.seconds else row.missing for t in TARGETS]
        table.append([row.name, *cells, row.memory("peak"), row.memory("added")])
    print_table(table)
    later, first = rows[0].seconds, rows[1].seconds
    compiling = [first[t] - later[t] for t in TARGETS if t in first and t in later]
    if compiling:
        print(f"Of a first call of ours, {statistics.median(compiling):.2f} s are compilation.")


def print_ratios(rows: Sequence[Row], ours: int) -> None:
    """Prints what the seconds are of those of the first ``ours`` rows, pairs of later and first."""
    for at in range(0, ours, 2):
        print(f"\nTimes as long as {rows[at].name} / {rows[at + 1].name.split(', ')[-1]}")
        table = [_HEADER]
        for peer in rows[ours:]:
            if peer.name == f"{OPTAX}, later calls":
                continue
            pairs = [(rows[at], peer), (rows[at + 1], peer)]
            if peer.name == f"{OPTAX}, first call":
                pairs[0] = (rows[at], rows[ours])
            cells = [" / ".join(p.ratio(base, t) for base, p in pairs) for t in TARGETS]
            table.append([peer.name.replace(", first call", ""), *cells])
        print_table(table)
