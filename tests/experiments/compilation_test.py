"""Scripts keep what they compile for the next run, unless told otherwise."""

import json
import os
import subprocess
import sys

import pytest

import train

pytestmark = pytest.mark.slow

WORDS = [sys.executable, train.__file__]


@pytest.fixture
def run(tmp_path):
    """A function that trains with some flags and variables; returns the summary."""

    def start(*flags, **variables):
        clean = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
        environment = clean | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | variables
        workdir = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        smoke = f"--config={os.path.dirname(train.__file__)}/configs/classroom.py:smoke"
        subprocess.run(
            [*WORDS, smoke, f"--workdir={workdir}", *flags],
            env=environment,
            check=True,
            capture_output=True,
        )
        return json.loads((workdir / "summary.json").read_text())

    return start


def programs(folder):
    return {path.name for path in folder.rglob("*-cache")}


@pytest.mark.slow
def test_a_second_run_compiles_nothing_anew(run, tmp_path):
    first = run()
    kept = programs(tmp_path / "cache" / "softmax_jax" / "compiled")
    assert kept
    second = run()
    assert programs(tmp_path / "cache" / "softmax_jax" / "compiled") == kept
    assert second["test"] == first["test"]


@pytest.mark.slow
def test_the_cache_can_be_switched_off(run, tmp_path):
    run("--nocompilation_cache")
    assert not (tmp_path / "cache" / "softmax_jax").exists()


def test_the_folder_of_the_user_wins(run, tmp_path):
    mine = str(tmp_path / "mine")
    run(JAX_COMPILATION_CACHE_DIR=mine, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    assert programs(tmp_path / "mine")
    assert not (tmp_path / "cache" / "softmax_jax").exists()
