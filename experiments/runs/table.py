"""Tables of cells, as text for the terminal and as HTML for the report."""

import html
from collections.abc import Collection, Mapping, Sequence
from typing import Any


def text(
    lines: Sequence[Sequence[str]],
    *,
    widths: Sequence[int] = (),
    left: Collection[int] = (),
    gap: str = "  ",
) -> str:
    """Lays cells out in columns.

    Args:
      lines: the cells of each line; all have as many.
      widths: least width of the first columns; any column is as wide as its longest cell.
      left: columns whose cells are aligned left; the others are aligned right.
      gap: between columns.
    """
    least = [*widths, *[0] * (len(lines[0]) - len(widths))]
    columns = zip(*lines, strict=True)
    sizes = [max(low, *map(len, column)) for low, column in zip(least, columns, strict=True)]
    return "\n".join(
        gap.join(
            cell.ljust(size) if i in left else cell.rjust(size)
            for i, (cell, size) in enumerate(zip(line, sizes, strict=True))
        ).rstrip()
        for line in lines
    )


def as_html(lines: Sequence[Sequence[str]]) -> str:
    """Returns a table whose first line is its heads."""

    def row(line: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in line) + "</tr>"

    body = "".join(row(line, "td") for line in lines[1:])
    return f'<div class="wide"><table>{row(lines[0], "th")}{body}</table></div>'


def pairs_as_html(items: Mapping[str, Any]) -> str:
    """Returns a table of names and values."""
    lines = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in items.items()
    )
    return f'<div class="wide"><table class="pairs">{lines}</table></div>'


def digits(value: float | None, missing: str = "none") -> str:
    """Returns a score to four digits, or ``missing`` where there is none."""
    return missing if value is None else f"{value:.4f}"


def brief(value: Any) -> str:
    """Returns a setting in few characters; seeds in full."""
    return str(value) if isinstance(value, int) else f"{value:g}"
