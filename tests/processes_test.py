"""Two processes of four devices, held to one process of eight."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# What they compile is not shared by processes of another number.
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "NPROC": "32"}


def free_address():
    with socket.socket() as own:
        own.bind(("localhost", 0))
        return f"localhost:{own.getsockname()[1]}"


@contextlib.contextmanager
def started(*commands, **environment):
    """Yields processes, none of which outlives the block."""
    running = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=REPOSITORY,
            env=ENVIRONMENT | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    try:
        yield running
    finally:
        for one in running:
            one.kill()
            one.communicate()


def finished(*commands, **environment):
    """Returns what processes print that have to end well."""
    with started(*commands, **environment) as running:
        printed = [one.communicate(timeout=240)[0] for one in running]
        assert [one.returncode for one in running] == [0] * len(running), "\n\n".join(printed)
        return printed


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    address, script = free_address(), "tests/one_of_several.py"
    finished((script, "", 1, 0, tmp_path))
    finished(*((script, address, 2, i, tmp_path) for i in range(2)))
    for data in (4, 2):
        expected, *both = (
            dict(np.load(tmp_path / f"{name}-{data}.npz")) for name in ("1-0", "2-0", "2-1")
        )
        for found in both:
            assert found.keys() == expected.keys()
            for name, one in expected.items():
                if name.endswith("rows"):
                    continue
                if name.endswith(("correct", "argmax")):
                    np.testing.assert_array_equal(found[name], one, err_msg=name)
                size = np.max(np.abs(one))
                np.testing.assert_allclose(found[name], one, rtol=0, atol=1e-5 * size, err_msg=name)
        # Where rows lie over the processes, each reads its own; the first looks at all for NaN.
        if data == 4:
            rows = len(expected["streamed rows"])
            assert all(len(both[1][f"{kind} rows"]) < 0.6 * rows for kind in ("read", "streamed"))


def script_of(name, workdir, *more, processes=2):
    address = free_address()
    command = [f"experiments/{name}.py", f"--workdir={workdir}", *more]
    return [
        [*command, f"--coordinator={address}", f"--num_processes={processes}", f"--process_id={i}"]
        for i in range(processes)
    ]


@pytest.mark.slow
def test_where_one_process_is_killed_the_other_ends_and_one_alone_goes_on(tmp_path):
    options = ("--config.parts=8", "--config.batch_size=64", "--config.save_every=20 steps")
    options += ("--config.keep_last=50",)
    of_two = ("--config.mesh.data=4", "--config.mesh.classes=2", "--config.duration=60 epochs")
    workdir, whole = tmp_path / "killed", tmp_path / "whole"
    commands = script_of("train", workdir, *options, *of_two)
    with started(*commands, JAX_NUM_CPU_DEVICES="4") as (first, second):
        deadline = time.monotonic() + 120
        while len(list(workdir.glob("checkpoints/*/about"))) < 2:
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.1)
        second.kill()
        printed = first.communicate(timeout=60)[0]
    assert first.returncode != 0
    assert "where one of them ends, the others do within 20 seconds" in printed
    assert not (workdir / "summary.json").exists()
    alone = ("experiments/train.py", "--config.duration=60 epochs", *options)
    (printed,) = finished((*alone, f"--workdir={workdir}"))
    assert "going on from step" in printed
    finished((*alone, f"--workdir={whole}"))
    w, expected = (np.load(folder / "params.npz")["w"] for folder in (workdir, whole))
    np.testing.assert_allclose(w, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_both_go_on(tmp_path):
    options = ("--config.parts=8", "--config.batch_size=64", "--config.duration=40 epochs")
    commands = script_of("train", tmp_path / "run", *options, "--config.mesh.data=8")
    with started(*commands, JAX_NUM_CPU_DEVICES="4") as running:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        running[1].terminate()
        printed = [one.communicate(timeout=120)[0] for one in running]
        assert [one.returncode for one in running] == [128 + 15] * 2, "\n\n".join(printed)
    assert "to go on" in printed[0]
    printed = finished(
        *script_of("train", tmp_path / "run", *options, "--config.mesh.data=8"),
        JAX_NUM_CPU_DEVICES="4",
    )
    assert "going on from step" in printed[0]
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--coordinator=localhost:1"], "give --num_processes and --process_id, too"),
        (["--num_processes=2"], "give --coordinator=HOST:PORT, too"),
    ],
)
def test_flags_that_lack_others_are_told(tmp_path, flags, says):
    command = ["experiments/train.py", f"--workdir={tmp_path / 'run'}", *flags]
    with started(command) as (one,):
        assert says in one.communicate(timeout=60)[0]
        assert one.returncode == 1
