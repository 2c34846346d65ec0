"""The small runs that several tests look at."""

import contextlib
import signal
import subprocess
import sys

import pytest

from runs import settings, signals
from softmax_jax import figures


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes longer than a short run; those that tests look at are of module fixtures."""
    monkeypatch.setattr(figures, "to_png", lambda figure, **options: b"")


@pytest.fixture
def run_script(tmp_path):
    """A function that runs a script with arguments, in the folder of the test."""

    def run(script, *arguments):
        words = [sys.executable, str(script), *arguments]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def digits(data_dir):
    """A function from some settings to those of a short run on the digits."""

    def make(**changes):
        data = settings.Data(name="digits", data_dir=data_dir)
        return settings.Train(
            **{"data": data, "duration": "2 epochs", "batch_size": 128, **changes}
        )

    return make


@pytest.fixture
def stop_after(monkeypatch):
    """A function: from now on SIGTERM comes after so many looks at the signals."""

    def stop(looks):
        @contextlib.contextmanager
        def noted():
            left = looks

            def came():
                nonlocal left
                left -= 1
                return signal.SIGTERM if left < 0 else 0

            yield came

        monkeypatch.setattr(signals, "signals_noted", noted)

    return stop
