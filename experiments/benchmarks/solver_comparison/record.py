"""Record beside the tables of a report: the machine, and all numbers as JSON."""

import importlib.metadata
import math
import os
import pathlib
import platform
import re
from collections.abc import Mapping
from typing import Any

from .trials import Trial


def machine() -> str:
    """Returns the cores, the processor, and the versions of all packages."""
    versions = []
    for name in ("jax", "jaxlib", "optax", "numpy", "scipy", "scikit-learn", "cyanure"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    try:
        found = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    processor = found[1] if found else platform.processor() or platform.machine()
    python = platform.python_version()
    return f"{os.cpu_count()} cores, {processor}; Python {python}, {', '.join(versions)}"


def plain(value: Any) -> Any:
    """Returns what JSON can hold: keys as text, and None for numbers that are not finite."""
    if isinstance(value, Trial):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {f"{key:g}" if isinstance(key, float) else key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
