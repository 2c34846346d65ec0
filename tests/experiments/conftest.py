"""The small runs that several tests look at."""

import subprocess
import sys

import pytest

import settings
from softmax_jax import figures


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes longer than a short run; those that tests look at are of module fixtures."""
    monkeypatch.setattr(figures, "to_png", lambda figure: b"")


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
