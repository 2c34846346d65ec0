"""What a worker measures: an objective in float64, seconds and memory."""

import contextlib
import math
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


def objective(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray, l2: float, divisor: float = 255
) -> float:
    """Returns F(w, b) of ``x / divisor`` in float64, by NumPy and in blocks of rows."""
    w, b = np.asarray(w, np.float64), np.ravel(np.asarray(b, np.float64))
    total = 0.0
    for start in range(0, len(x), 4096):
        rows = slice(start, start + 4096)
        logits = x[rows].astype(np.float64) / divisor @ w + b
        largest = logits.max(axis=1)
        log_sums = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
        total += float((log_sums - logits[np.arange(len(logits)), y[rows]]).sum())
    return total / len(x) + l2 / 2 * float((w**2).sum())


class Memory:
    """Resident memory of this process: at the start of a block, and at its peak since then."""

    def __enter__(self):
        # `resource.getrusage` would answer with the peak of the parent if that is higher.
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        self.before = self._read("VmRSS")
        return self

    def __exit__(self, *_):
        self.peak = self._read("VmHWM")

    def _read(self, key: str) -> float:
        """Returns memory in MiB, or NaN where there is no ``/proc``."""
        try:
            status = pathlib.Path("/proc/self/status").read_text()
        except OSError:
            return math.nan
        match = re.search(rf"{key}:\s*(\d+) kB", status)
        return int(match[1]) / 1024 if match else math.nan


def read_data(task: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the features as they are stored, the labels, and what to divide the features by."""
    with np.load(task["data"]) as file:
        return file["x"], file["y"], float(file["divisor"])


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the result of a call, its seconds and its memory."""
    with Memory() as memory:
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
    added = memory.peak - memory.before
    return result, {"seconds": seconds, "peak": memory.peak, "added": added}
