"""Runs whose work is shared by the devices of a mesh."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from runs import settings, signals, train_run
from softmax_jax import parallel

REPOSITORY = os.path.join(os.path.dirname(__file__), "..", "..")


@pytest.fixture(scope="module")
def config(data_dir):
    return settings.Train(
        data=settings.Data(name="digits", data_dir=str(data_dir)),
        duration="3 epochs",
        batch_size=64,
        learning_rate=0.5,
        parts=8,
        save_every="10 steps",
    )


def weights(workdir):
    with np.load(workdir / "params.npz") as file:
        return file["w"]


@contextlib.contextmanager
def on(data, classes):
    with jax.set_mesh(parallel.make_mesh(data, classes)):
        yield


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(config, tmp_path, signal_after):
    expected = train_run.train(config, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    four = dataclasses.replace(config, mesh=settings.Mesh(data=4, classes=2))
    with on(4, 2), pytest.raises(signals.Interrupted):
        train_run.train(four, stopped, came=signal_after(2))
    with on(1, 5):
        found = train_run.train(dataclasses.replace(config, mesh=settings.Mesh(1, 5)), stopped)
    np.testing.assert_allclose(weights(stopped), weights(tmp_path / "whole"), atol=1e-5)
    assert found["test"]["accuracy"] == expected["test"]["accuracy"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": 3, "mesh": settings.Mesh(data=2)}, "config.parts=3: .* a multiple of mesh.data"),
        ({"parts": 0, "mesh": settings.Mesh(data=5)}, "config.batch_size=64: .* of the 5 parts"),
        ({"parts": -1}, "config.parts=-1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "code", "words"),
    [("8", 0, "on 4 x 2 devices"), ("2", 1, "takes 8 devices; there are 2; JAX_NUM_CPU_DEVICES=8")],
)
def test_the_script_takes_a_mesh(tmp_path, data_dir, devices, code, words):
    command = [sys.executable, "experiments/train.py", "--config.duration=1 epoch"]
    command += ["--config.mesh.data=4", "--config.mesh.classes=2"]
    command += [f"--workdir={tmp_path / 'run'}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": devices, "TFDS_DATA_DIR": str(data_dir)}
    ran = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == code, ran.stderr
    assert words in ran.stdout + ran.stderr
    if code == 0:
        written = json.loads((tmp_path / "run" / "config.json").read_text())
        assert (written["parts"], written["mesh"]) == (4, {"data": 4, "classes": 2})
