"""Workers as the parent sees them: fresh processes that are given a task and answer in lines."""

import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

STARTUP = 120.0
"""Seconds that a process has for imports and data, and again for compilation."""

_SCRIPT = pathlib.Path(__file__).resolve().parent.parent / "solvers.py"
_BEGAN = time.perf_counter()


def progress(text: str) -> None:
    """Prints what was done to standard error, after the seconds since the start."""
    print(f"[{time.perf_counter() - _BEGAN:6.0f} s] {text}", file=sys.stderr, flush=True)


def answers_of(task: Mapping[str, Any], limit: float) -> Iterator[dict[str, Any]]:
    """Yields the answers of a fresh process as they come, until one takes longer than ``limit``.

    Raises:
      RuntimeError: if the process fails, with the end of what it said.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()

        def read(stream):
            for line in stream:
                lines.put(line)
            lines.put("")

        reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.close()
            if not lines.get(timeout=STARTUP):  # else it is ready
                process.wait()
            else:
                while line := lines.get(timeout=limit):
                    yield json.loads(line)
            if process.wait() != 0:
                errors.seek(0)
                said = errors.read().strip().splitlines() or [f"exit {process.returncode}"]
                raise RuntimeError(said[-1])
        except queue.Empty:
            return
        finally:
            process.kill()
            process.wait()
            reader.join()
            process.stdout.close()
