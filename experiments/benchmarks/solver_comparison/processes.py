"""Workers as the parent sees them: fresh processes that are given tasks and answer in lines."""

import contextlib
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


UNCACHED = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
"""Environment in which a fresh process compiles all that it runs."""


class Worker:
    """Fresh process that is given tasks in lines, and answers in lines."""

    def __init__(
        self,
        task: Mapping[str, Any],
        environment: Mapping[str, str] = UNCACHED,
        script: pathlib.Path = _SCRIPT,
    ):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, str(script), "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.tell(task)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put("")

    def tell(self, value: Any) -> None:
        """Gives it a line; one that it no longer reads is dropped."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()

    def answer(self, limit: float) -> dict[str, Any] | None:
        """Returns its next answer; None if it ended.

        Raises:
          TimeoutError: if there is none within ``limit`` seconds.
          RuntimeError: if the process fails, with the end of what it said.
        """
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise TimeoutError from None
        if line:
            return json.loads(line)
        if self._process.wait() != 0:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()
            raise RuntimeError(said[-1] if said else f"exit {self._process.returncode}")
        return None

    def end(self) -> None:
        """Says that nothing more will be told."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def answers_of(
    task: Mapping[str, Any],
    limit: float,
    environment: Mapping[str, str] = UNCACHED,
    script: pathlib.Path = _SCRIPT,
) -> Iterator[dict[str, Any]]:
    """Yields the answers of a fresh process as they come, until one takes longer than ``limit``.

    Raises:
      RuntimeError: if the process fails, with the end of what it said.
    """
    with Worker(task, environment, script) as worker:
        worker.end()
        with contextlib.suppress(TimeoutError):
            if worker.answer(STARTUP) is None:  # else it is ready
                return
            while answer := worker.answer(limit):
                yield answer
