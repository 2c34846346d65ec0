"""A run that was stopped, in whatever way, ends as if it had not been."""

import contextlib
import dataclasses
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import filelock
import numpy as np
import pytest

import train
from runs import files, settings, signals, train_run

SCRIPT = pathlib.Path(train.__file__)
TIMES = ("seconds", "examples_per_second")


def rows_of(workdir):
    """Without what depends on the clock."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def assert_same_end(workdir, expected):
    with np.load(workdir / "params.npz") as ours, np.load(expected / "params.npz") as theirs:
        assert set(ours.files) == set(theirs.files)
        for name in theirs.files:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert rows_of(workdir) == rows_of(expected)
    ours, theirs = (json.loads((p / "summary.json").read_text()) for p in (workdir, expected))
    for key in ("train", "test", "gradient_check", "steps", "members"):
        assert ours.get(key) == theirs.get(key)


@pytest.fixture(scope="module")
def config(digits):
    """24 steps, with evaluations, checkpoints and epochs that do not coincide."""
    return digits(
        optimizer="adam", learning_rate=0.01, evaluate_every="5 steps", save_every="3 steps"
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole")
    train_run.train(config, workdir)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("looks", [0, 1, 4, 7])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(config, whole, tmp_path, signal_after, looks):
    with pytest.raises(signals.Interrupted, match="SIGTERM"):
        train_run.train(config, tmp_path, came=signal_after(looks))
    assert not (tmp_path / "summary.json").exists()
    assert "not finished" in (tmp_path / "report.html").read_text()
    train_run.train(config, tmp_path)
    assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_stopped_at_every_step_it_gets_there(config, whole, tmp_path, signal_after):
    stops = 0
    while not (tmp_path / "summary.json").exists():
        with contextlib.suppress(signals.Interrupted):
            train_run.train(config, tmp_path, came=signal_after(0))
        stops += 1
        assert stops < 30
    assert stops > 5
    assert_same_end(tmp_path, whole)


def test_rows_of_steps_to_be_taken_again_and_half_a_line_are_dropped(
    config, whole, tmp_path, signal_after
):
    with pytest.raises(signals.Interrupted):
        train_run.train(config, tmp_path, came=signal_after(4))
    path = tmp_path / "metrics.jsonl"
    row = json.loads(path.read_text().splitlines()[-1]) | {"step": 20}
    with path.open("a") as file:
        file.write(json.dumps(row) + '\n{"epoch": 2, "st')
    train_run.train(config, tmp_path)
    assert_same_end(tmp_path, whole)


def test_a_damaged_checkpoint_costs_some_steps_only(config, whole, tmp_path, signal_after):
    with pytest.raises(signals.Interrupted):
        train_run.train(config, tmp_path, came=signal_after(6))
    folder = tmp_path / "checkpoints"
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    for path in (folder / str(steps[-1])).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.warns(UserWarning, match=f"step {steps[-1]} .* damaged"):
        train_run.train(config, tmp_path)
    assert_same_end(tmp_path, whole)


def command(config, workdir, *, code=None):
    """The command line for a config, to the script or to other code."""
    words = [sys.executable, *(["-c", code] if code else [str(SCRIPT)])]
    flat = files.flat(dataclasses.asdict(config))
    defaults = files.flat(dataclasses.asdict(settings.Train()))
    words += [f"--config={SCRIPT.parent / 'configs' / 'digits.py'}", f"--workdir={workdir}"]
    shipped = {"duration", "batch_size", "learning_rate", "schedule", "l2"}
    words += [
        f"--config.{key}={value}"
        for key, value in flat.items()
        if value != defaults[key] or key in shipped
    ]
    return words


def run(words, **options):
    return subprocess.run(words, capture_output=True, text=True, cwd=SCRIPT.parent, **options)


# Kills itself while a checkpoint of the step is being written in the background.
KILL_INSIDE_A_SAVE = """
import os, signal, sys
sys.argv[0] = "train.py"
from runs import script, settings, summaries, train_run
from softmax_jax import checkpoint
save = checkpoint.save
def save_and_die(manager, step, *args, **kwargs):
    save(manager, step, *args, **kwargs)
    if step == STEP:
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save = save_and_die
script.run(train_run.train, summaries.text, settings.Train, default="digits")
"""


@pytest.mark.slow
def test_a_run_killed_inside_its_saves_goes_on(config, whole, tmp_path):
    for step in (6, 15):
        words = command(config, tmp_path, code=KILL_INSIDE_A_SAVE.replace("STEP", str(step)))
        assert run(words).returncode == -signal.SIGKILL
    train_run.train(config, tmp_path)
    assert_same_end(tmp_path, whole)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_goes_on(config, tmp_path):
    # Some seconds of training, of which most are spent on saves and evaluations.
    config = dataclasses.replace(
        config, duration="60 epochs", evaluate_every="17 steps", save_every="7 steps"
    )
    train_run.train(config, tmp_path / "whole")
    workdir, generator = tmp_path / "killed", random.Random(0)
    words = command(config, workdir)
    kills = 0
    while kills < 4:
        before = saves(workdir)
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=SCRIPT.parent
        )
        while saves(workdir) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.5))
        process.kill()
        if process.wait() != -signal.SIGKILL:
            break
        kills += 1
    assert kills >= 2
    train_run.train(config, workdir)
    assert_same_end(workdir, tmp_path / "whole")


def saves(workdir):
    """The steps of the checkpoints that are there."""
    return {path.name for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_how_to_go_on(config, tmp_path, number):
    long = dataclasses.replace(config, duration="100000 epochs", evaluate_every="1 epoch")
    words = command(long, tmp_path)
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=SCRIPT.parent
    )
    while not (tmp_path / "metrics.jsonl").exists() or not rows_of(tmp_path):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    last = errors.splitlines()[-1]
    assert last.startswith(f"stopped by {number.name}; to go on: {sys.executable}")
    assert f"--workdir={tmp_path}" in last
    assert "Traceback" not in errors
    assert "not finished" in (tmp_path / "report.html").read_text()
    latest = max(map(int, saves(tmp_path)))
    assert rows_of(tmp_path)[-1]["step"] <= latest


@pytest.mark.slow
def test_divergence_ends_with_advice_and_exit_code_1(config, tmp_path):
    result = run(command(dataclasses.replace(config, learning_rate=3e38), tmp_path))
    assert result.returncode == 1
    assert "learning rate 3e+38, of which schedule constant takes 1 there" in result.stderr
    assert "try a third of the learning rate" in result.stderr
    assert "Traceback" not in result.stderr


def test_checkpoints_without_a_config_are_refused(config, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.json"):
        train_run.train(config, tmp_path)


def test_a_damaged_row_is_named(config, whole, tmp_path):
    shutil.copy(whole / "config.json", tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"member": 0, "step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is no row"):
        train_run.train(config, tmp_path)


@pytest.mark.slow
def test_rows_that_are_gone_are_missed(config, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    message = f"has {len(lines) - 1} rows up to step 24, the last checkpoint, where {len(lines)}"
    with pytest.raises(ValueError, match=message):
        train_run.train(config, tmp_path / "run")
    path.write_text("".join(lines))
    train_run.train(config, tmp_path / "run")
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("content", ['{"te', "{}", "[]"])
def test_a_damaged_summary_is_made_again(config, whole, tmp_path, content):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text(content)
    with pytest.warns(UserWarning, match=r"summary\.json is damaged"):
        train_run.train(config, tmp_path / "run")
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.parametrize("name", ["params.npz", "report.html"])
def test_results_that_are_gone_are_made_again(config, whole, tmp_path, name):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.warns(UserWarning, match=f"{name} is gone"):
        train_run.train(config, tmp_path / "run")
    assert (tmp_path / "run" / name).exists()
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_other_data_of_the_same_shape_are_refused(tmp_path):
    file = tmp_path / "table.npz"
    x, ids = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    config = settings.Train(data=settings.Data(name=str(file)), duration="1 epoch")
    np.savez(file, x_train=x, y_train=ids, x_test=x, y_test=ids)
    train_run.train(config, tmp_path / "run")
    np.savez(file, x_train=x[::-1], y_train=ids[::-1], x_test=x, y_test=ids)
    with pytest.raises(ValueError, match="the data are not those of the finished run"):
        train_run.train(config, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(ValueError, match="the data are not those that"):
        train_run.train(config, tmp_path / "run")


@pytest.mark.slow
def test_saves_by_the_clock_have_a_test_loss(digits, tmp_path):
    train_run.train(digits(duration="20 epochs", save_every="0.001 seconds", keep_best=3), tmp_path)
    steps = {row["step"]: row["test_loss"] for row in rows_of(tmp_path)}
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert len(kept & steps.keys()) >= 3


def test_of_two_runs_at_once_one_is_refused(config, tmp_path):
    tmp_path.mkdir(exist_ok=True)
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(OSError, match="another run is at work in"),
    ):
        train_run.train(config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/sys/kernel").exists(), reason="there is no /sys here")
def test_a_folder_that_cannot_be_written_ends_in_a_line(config):
    result = run(command(config, "/sys/kernel/run"))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "/sys/kernel/run" in result.stderr
    assert "Traceback" not in result.stderr


# No file can be longer than the rows of metrics that there are before the first checkpoint.
ALMOST_FULL = """
import resource, sys
sys.argv[0] = "train.py"
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
from runs import script, settings, summaries, train_run
script.run(train_run.train, summaries.text, settings.Train, default="digits")
"""


@pytest.mark.slow
def test_writes_that_fail_end_in_a_line_and_lose_nothing(config, whole, tmp_path):
    result = run(command(config, tmp_path, code=ALMOST_FULL))
    assert result.returncode == 1
    assert "error: the checkpoint could not be written to" in result.stderr
    train_run.train(config, tmp_path)
    assert_same_end(tmp_path, whole)


def test_a_full_disk_is_seen_before_anything_is_written(config, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
        with pytest.raises(OSError, match=r"the disk of .* is full: 1 bytes are left"):
            train_run.train(config, tmp_path)
    assert saves(tmp_path) == set()
    train_run.train(config, tmp_path)
    assert_same_end(tmp_path, whole)
