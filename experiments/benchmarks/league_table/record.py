"""The record of all cells, as a JSON file that grows cell by cell."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the record of a file, an empty one if there is no file."""
    if not os.path.exists(path):
        return {"cells": {}}
    return json.loads(pathlib.Path(path).read_text())


def write(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Writes a record, all of it or nothing."""
    new = pathlib.Path(f"{path}.new")
    new.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    new.replace(path)


def merged(
    record: Mapping[str, Any], name: str, result: Mapping[str, Any], machine: str
) -> dict[str, Any]:
    """Returns a record with one more cell, in the place of an earlier result of the cell."""
    cells = {**record["cells"], name: {**result, "machine": machine}}
    return {**record, "cells": cells}


def is_kept(record: Mapping[str, Any], name: str, *, budget: float, repeats: int) -> bool:
    """Returns whether there is a result of the cell, with at least these repeats and this budget.

    A cell that no solver comes to an end with has a result too, which says so.
    """
    result = record["cells"].get(name)
    return result is not None and result["repeats"] >= repeats and result["budget"] >= budget
