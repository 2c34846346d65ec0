"""The small runs that several tests look at."""

import itertools
import signal
import subprocess
import sys

import pytest

from runs import settings, train_run
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


@pytest.fixture(scope="session")
def digits_run(digits, tmp_path_factory):
    """The settings of a short run on the digits, its folder, pictures included, and its summary.

    Tests look at it, and change copies only.
    """
    config = digits()
    workdir = tmp_path_factory.mktemp("digits") / "new" / "folder"
    return config, workdir, train_run.train(config, workdir)


@pytest.fixture(scope="session")
def signal_after():
    """A function from a number of looks to what tells a run, from then on, that SIGTERM came."""

    def after(looks):
        left = itertools.count(looks, -1)
        return lambda: signal.SIGTERM if next(left) <= 0 else 0

    return after
