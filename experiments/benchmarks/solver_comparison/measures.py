"""Measures of a fit: an objective in float64, seconds and memory."""

import contextlib
import math
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_BLOCK = 2**23
"""Features that are in float64 at a time."""


def objective(
    x: Any, y: np.ndarray, w: np.ndarray, b: np.ndarray, l2: float, divisor: float = 255
) -> float:
    """Returns F(w, b) of ``x / divisor`` in float64, by NumPy and in blocks of rows.

    Rows may be those of an array, or of a sparse one of SciPy's.
    """
    w, b = np.asarray(w, np.float64), np.ravel(np.asarray(b, np.float64))
    total, n = 0.0, x.shape[0]
    step = max(1, min(4096, _BLOCK // max(w.shape)))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        logits = x[rows].astype(np.float64) / divisor @ w + b
        largest = logits.max(axis=1)
        log_sums = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
        total += float((log_sums - logits[np.arange(len(logits)), y[rows]]).sum())
    return total / n + l2 / 2 * float((w**2).sum())


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


_SPARSE = ("data", "indices", "indptr")


def write_data(path: str | pathlib.Path, x: Any, y: np.ndarray, divisor: float = 1.0) -> None:
    """Writes features, labels and what to divide the features by, for `read_data`."""
    stored = {"x": x}
    if not isinstance(x, np.ndarray):
        stored = {name: getattr(x, name) for name in _SPARSE} | {"shape": np.array(x.shape)}
    np.savez(path, **stored, y=y, divisor=divisor)


def read_data(task: Mapping[str, Any]) -> tuple[Any, np.ndarray, float]:
    """Returns the features as they are stored, the labels, and what to divide the features by.

    Sparse features are a CSR array of SciPy's.
    """
    with np.load(task["data"]) as file:
        if "x" in file:
            x = file["x"]
        else:
            import scipy.sparse

            x = scipy.sparse.csr_array(tuple(map(file.get, _SPARSE)), shape=tuple(file["shape"]))
        return x, file["y"], float(file["divisor"])


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the result of a call, its seconds and its memory."""
    with Memory() as memory:
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
    added = memory.peak - memory.before
    return result, {"seconds": seconds, "peak": memory.peak, "added": added}
