"""Files of a run: JSON, a line of JSON a row, and pictures, each written whole or not at all."""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure

from softmax_jax import figures
from softmax_jax.io import write_atomically as write_atomically


def finite_or_none(value: float) -> float | None:
    """Returns the number as JSON can hold it, which has neither NaN nor infinity."""
    return float(value) if math.isfinite(value) else None


def json_line(row: Mapping[str, Any]) -> bytes:
    """Returns a row as a line of a .jsonl file."""
    return (json.dumps(row, allow_nan=False) + "\n").encode()


def write_rows(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a .jsonl file, a line a row."""
    write_atomically(path, b"".join(map(json_line, rows)))


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as indented JSON."""
    write_atomically(path, to_json(value))


def write_picture(path: pathlib.Path, figure: Figure, **options: Any) -> None:
    """Draws a figure and writes it as a PNG; for the options see `figures.to_png`."""
    write_atomically(path, figures.to_png(figure, **options))


def to_json(value: Any) -> bytes:
    """Returns a value as indented JSON."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      ValueError: if it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(path.read_bytes())
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested items with keys like ``outer.inner``."""
    items: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        items |= flat(item, f"{name}.") if isinstance(item, Mapping) else {name: item}
    return items
