"""Folders of runs: what users own is left alone, and a run has its folder to itself."""

import contextlib
import fcntl
import html
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import compare
import train
from runs import (
    codelength_run,
    comparison,
    fit_run,
    flags,
    folders,
    head_run,
    logs,
    output,
    settings,
    signals,
    summaries,
    train_run,
)
from softmax_jax import data

SCRIPT = pathlib.Path(train.__file__)
EXPERIMENTS = [
    (train_run.train, settings.Train()),
    (fit_run.fit, settings.Fit()),
    (codelength_run.codelength, settings.Codelength()),
    (head_run.train, settings.Head()),
]
each_experiment = pytest.mark.parametrize(
    ("experiment", "config"), EXPERIMENTS, ids=["train", "fit", "codelength", "head"]
)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@each_experiment
@pytest.mark.parametrize(
    "name", ["report.html", "events.out.tfevents.1.host", "notes.txt", ".hidden", "config.yaml"]
)
def test_a_folder_of_other_things_is_refused_and_left_as_it_was(
    experiment, config, name, tmp_path, monkeypatch
):
    monkeypatch.delattr(data, "load")
    (tmp_path / name).write_text("mine")
    with pytest.raises(OSError, match=re.escape(f"holds other things than a run ({name})")):
        experiment(config, tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_folder_with_a_config_of_something_else_is_refused(tmp_path):
    config = {"architectures": ["BertModel"], "hidden_size": 768}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="holds a run of another config"):
        train_run.train(settings.Train(), tmp_path)
    with pytest.raises(FileExistsError, match="already holds a run"):
        fit_run.fit(settings.Fit(), tmp_path)
    assert list(contents(tmp_path)) == ["config.json"]


def classroom(**changes):
    return settings.Train(
        **{"data": settings.Data(name="classroom"), "duration": "2 epochs", **changes}
    )


@pytest.mark.slow
def test_events_of_others_stay_in_the_folder_of_a_run(tmp_path):
    other = tmp_path / "events.out.tfevents.1700000000.host"
    train_run.train(classroom(), tmp_path)
    other.write_bytes(b"mine")
    (tmp_path / "summary.json").unlink()
    train_run.train(classroom(), tmp_path)
    assert other.read_bytes() == b"mine"
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2


@pytest.mark.slow
def test_what_a_run_left_that_did_not_begin_is_no_other_thing(tmp_path):
    for name in (".lock", "config.json.123.tmp"):
        (tmp_path / name).touch()
    train_run.train(classroom(), tmp_path)
    assert (tmp_path / "summary.json").exists()


@pytest.mark.slow
def test_a_comparison_replaces_no_other_picture_but_an_earlier_comparison(tmp_path, monkeypatch):
    train_run.train(classroom(), tmp_path / "run")
    path = tmp_path / "mine.png"
    arguments = [str(tmp_path / "run"), f"--figure={path}"]
    monkeypatch.setattr(
        compare.figures, "to_png", lambda figure, title: b"\x89PNG " + title.encode()
    )
    monkeypatch.setattr(compare.output, "outlast_readers", lambda: None)
    path.write_bytes(b"\x89PNG a picture")
    with pytest.raises(SystemExit, match=r"mine\.png: there is another file of that name"):
        compare.main(arguments)
    assert path.read_bytes() == b"\x89PNG a picture"
    path.unlink()
    for _ in range(2):
        compare.main(arguments)
    assert compare.TITLE.encode() in path.read_bytes()


def test_new_folders_of_the_same_second_are_different(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    barrier, found = threading.Barrier(8), []

    def make():
        barrier.wait()
        with folders.new_folder("runs/digits") as folder:
            found.append(folder)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = ["", *(f"-{i}" for i in range(2, 9))]
    assert {str(path) for path in found} == {f"runs/digits-20260101-000000{end}" for end in ends}


def test_a_new_folder_that_stays_empty_is_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="bad data"), folders.new_folder("runs/digits"):
        raise ValueError("bad data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_second_run_is_refused_after_the_lock_file_was_deleted(tmp_path):
    config = settings.with_parts(classroom())
    with folders.claimed(config, tmp_path):
        (tmp_path / ".lock").unlink()
        with pytest.raises(OSError, match="another run is at work in"):
            train_run.train(config, tmp_path)
        (tmp_path / ".lock").unlink(missing_ok=True)
        moved = tmp_path.with_name("moved")
        tmp_path.rename(moved)
        with pytest.raises(OSError, match="another run is at work in"):
            train_run.train(config, moved)
        moved.rename(tmp_path)
    train_run.train(config, tmp_path)


def test_where_folders_cannot_be_locked_the_file_is(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(folders.errno.EBADF, "a network's file system")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with folders.folder_lock(tmp_path):
            pass
    with (
        folders.folder_lock(tmp_path),
        pytest.raises(OSError, match="another run is at work"),
        folders.locked(tmp_path),
    ):
        pass


@pytest.fixture
def usual_handlers():
    """Python's own handlers, whatever started the tests: nohup has some signals ignored."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    for number in before:
        is_interrupt = number == signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_handlers")
@pytest.mark.parametrize("number", signals.SIGNALS, ids=lambda number: number.name)
def test_signals_that_announce_the_end_are_noted(number):
    usual = signal.getsignal(number)
    with signals.signals_noted() as came:
        assert came() == 0
        os.kill(os.getpid(), number)
        assert came() == number
        # Schedulers may say so again; the second Ctrl-C or SIGTERM ends the process.
        if number not in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(number) is usual


def test_signals_are_those_of_schedulers():
    assert {signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU} <= set(signals.SIGNALS)


def test_nohup_is_respected():
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.signals_noted() as came:
            os.kill(os.getpid(), signal.SIGHUP)
            assert came() == 0
    finally:
        signal.signal(signal.SIGHUP, usual)


def command(config, workdir):
    """The command line for a run of the classroom."""
    words = [sys.executable, str(SCRIPT), f"--config={SCRIPT.parent}/configs/classroom.py:smoke"]
    return [*words, f"--workdir={workdir}", *(f"--config.{key}={v}" for key, v in config.items())]


@pytest.mark.slow
def test_the_warning_of_slurm_ends_a_run_with_a_save_and_how_to_go_on(tmp_path):
    words = command({"duration": "1000000 epochs", "evaluate_every": "50 epochs"}, tmp_path / "run")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    rows = tmp_path / "run" / "metrics.jsonl"
    while not rows.exists() or not rows.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGUSR1
    assert "stopped by SIGUSR1; to go on: " in errors
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


# Closed before anything is read, full, closed from the beginning; and where both are one.
@pytest.mark.parametrize(
    "where",
    [">/dev/full", "2>/dev/full", ">&-", "2>&-", "| true", "2>&1 | true", ">/dev/full 2>&1"],
)
@pytest.mark.slow
def test_a_run_outlasts_whoever_reads_its_output(tmp_path, where):
    words = " ".join(command({}, tmp_path / "run"))
    script = f"set -o pipefail; {words} {where}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "summary.json").exists()
    assert "Traceback" not in result.stderr


def test_bytes_that_cannot_be_written_are_dropped():
    readable, writable = os.pipe()
    os.close(readable)
    lasting = output.Lasting(writable)
    assert lasting.write(b"12345") == 5
    assert (lasting.fileno(), lasting.writable(), lasting.isatty()) == (writable, True, False)
    os.close(writable)


def deeply_nested(depth):
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("depth", [500, 900, 100_000])
def test_json_that_is_nested_too_deeply_is_refused_as_such(tmp_path, depth):
    config = classroom()
    (tmp_path / "config.json").write_text(deeply_nested(depth))
    with pytest.raises(ValueError, match=r"config\.json cannot be read|another config"):
        train_run.train(config, tmp_path)
    (tmp_path / "metrics.jsonl").write_text(deeply_nested(depth) + "\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is no row"):
        comparison.read(tmp_path)


@pytest.mark.slow
def test_a_summary_that_is_nested_too_deeply_is_made_again(tmp_path):
    config = classroom()
    expected = train_run.train(config, tmp_path)
    (tmp_path / "summary.json").write_text(deeply_nested(100_000))
    with pytest.warns(UserWarning, match=r"summary\.json is damaged: the results are made again"):
        assert train_run.train(config, tmp_path)["test"] == expected["test"]


NAMES = ["\ud800", "$\\frac{1}$", "new\nline\x00", "_<b>&", "ma\xf1ana"]


@pytest.mark.slow
def test_names_that_cannot_be_written_or_drawn_lose_no_report(tmp_path, monkeypatch):
    monkeypatch.undo()  # of `no_pictures`
    generator = np.random.default_rng(0)
    x, ids = generator.normal(size=(40, 4, 4)), np.arange(40) % 5
    np.savez(tmp_path / "t.npz", x_train=x, y_train=ids, x_test=x, y_test=ids, class_names=NAMES)
    workdir = tmp_path / "run"
    source = settings.Data(name=str(tmp_path / "t.npz"))
    summary = train_run.train(classroom(data=source), workdir)
    assert np.isfinite(summary["test"]["nats"])
    assert (workdir / "report.html").read_text().endswith("</html>\n")
    assert (workdir / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_a_workdir_that_is_not_utf8_is_refused_before_the_data_are_loaded(tmp_path, monkeypatch):
    monkeypatch.delattr(data, "load")
    with pytest.raises(ValueError, match="the path is not UTF-8"):
        train_run.train(classroom(), tmp_path / os.fsdecode(b"caf\xe9"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["BODY TITLE $body ${x} <b>&amp;", pytest.param("a#b?c%20d[*]", marks=pytest.mark.slow)]
)
def test_a_report_has_the_name_of_its_folder_as_it_is(tmp_path, name):
    train_run.train(classroom(), tmp_path / name)
    page = (tmp_path / name / "report.html").read_text()
    escaped = html.escape(name)
    assert page.count(f"classroom: {escaped}</title>") == 1
    assert page.count(f"classroom: {escaped}</h1>") == 1
    assert page.count("test accuracy") == page.replace(escaped, "").count("test accuracy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration": "1e308 epochs"}, "'1e308 epochs' is more steps than can be counted"),
        ({"duration": "1e30 epochs"}, "more than"),
        ({"save_every": "1e308%"}, "more (steps )?than"),
        ({"optimizer": "adam(b1={[]: 1})"}, "give a name, or name"),
        ({"optimizer": "adam(b1=" + "(" * 300 + ")" * 300 + ")"}, "give a name, or name"),
        ({"optimizer": "adam(b1=" + "-" * 100_000 + "1)"}, "give a name, or name"),
        ({"optimizer": "adam(b1=[])"}, "config.optimizer="),
        ({"schedule": "cosine(decay_steps='1e308 epochs')"}, "config.schedule="),
        ({"schedule": "piecewise(boundaries_and_scales={1: {}})"}, "config.schedule="),
        ({"batch_size": 10**400}, "below 2"),
        ({"keep_last": 10**400}, "below 2"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_beyond_reason_end_in_a_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_run.train(classroom(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_integer_beyond_floats_is_refused():
    with pytest.raises(ValueError, match=r"config\.l2: an integer of \d+ digits is too large"):
        flags.from_config({"l2": 10**400})


@pytest.mark.slow
def test_all_memory_there_is_may_be_given(tmp_path):
    sweep = settings.Sweep(l2=(0.0, 0.1), memory=1e308)
    assert len(train_run.train(classroom(sweep=sweep), tmp_path)["members"]) == 2


def damaged_copies(path, number, seed=0):
    """Copies of a file, each with a byte that is another one."""
    content, generator = path.read_bytes(), np.random.default_rng(seed)
    for _ in range(number):
        at, other = generator.integers(len(content)), bytes([generator.integers(256)])
        yield content[:at] + other + content[at + 1 :]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train_run.train(classroom(), workdir)


@pytest.mark.slow
def test_a_damaged_summary_is_taken_with_the_values_it_had_or_not_at_all(finished, tmp_path):
    workdir, summary = finished
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    taken = 0
    for content in damaged_copies(workdir / "summary.json", 300):
        (copy / "summary.json").write_bytes(content)
        with contextlib.suppress(ValueError):
            assert summaries.read(copy) == summary
            taken += 1
    # White space, and the byte that was there.
    assert taken < 100


@pytest.mark.parametrize("order", [[0, 0, 2], [1, 0, 2]])
def test_rows_of_metrics_out_of_order_are_named(tmp_path, order):
    path = tmp_path / "metrics.jsonl"
    row = {"member": 0, "step": 0, "test_loss": 1.0, "diverged_at_step": None}
    with logs.open_log(tmp_path, alone=True) as log:
        log.forget([0], after_step=-1)
        log.add([{**dict.fromkeys(logs.REQUIRED), **row, "step": step} for step in range(3)])
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(logs.read(path)) == 3
    path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not as it was written"):
        logs.read(path)


def test_a_changed_digit_of_metrics_is_named_by_its_line(finished, tmp_path):
    workdir, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    rows[1]["test_loss"] += 0.1
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for unfinished in (False, True):
        if unfinished:
            (copy / "summary.json").unlink()
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not as it was written"):
            comparison.read(copy)
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not as it was written"):
            train_run.train(classroom(), copy)


def test_changed_metrics_of_a_finished_run_are_noticed_without_digests_of_lines(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    (copy / ".metrics.jsonl.sha256").unlink()
    path = copy / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.9", b"0.8", 1))
    with pytest.raises(ValueError, match=r"metrics\.jsonl is not as the finished run left it"):
        train_run.train(classroom(), copy)
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged, or was changed"):
        comparison.read(copy)


def test_of_all_damages_to_metrics_none_is_taken_for_other_rows(finished, tmp_path):
    workdir, _ = finished
    rows = logs.read(workdir / "metrics.jsonl")
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    for content in damaged_copies(path, 300):
        path.write_bytes(content)
        with contextlib.suppress(ValueError):
            found = logs.read(path)
            assert found == rows[: len(found)]


@pytest.mark.parametrize(
    "name",
    ["params.npz", *(pytest.param(n, marks=pytest.mark.slow) for n in ("report.html", "loss.png"))],
)
def test_changed_results_are_made_again(finished, tmp_path, name):
    workdir, summary = finished
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    expected = (copy / name).read_bytes()
    (copy / name).write_bytes(expected[:10] + b"!" + expected[11:])
    with pytest.warns(UserWarning, match=rf"{name} in .*: damaged, or changed: the results are"):
        again = train_run.train(classroom(), copy)
    assert again["test"] == summary["test"]
    if name == "params.npz":
        assert (copy / name).read_bytes() == expected


def test_a_comparison_leaves_out_a_run_with_a_changed_config_or_summary(finished, tmp_path):
    workdir, _ = finished
    for name in ("config.json", "summary.json"):
        copy = tmp_path / name
        shutil.copytree(workdir, copy)
        path = copy / name
        path.write_bytes(path.read_bytes().replace(b"1", b"2"))
        with pytest.raises(ValueError, match=f"{name} is damaged, or was changed"):
            comparison.read(copy)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    for name, l2 in (("ours", 0.0), ("other", 0.5)):
        train_run.train(classroom(l2=l2), tmp_path / name)
    (tmp_path / "ours" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "ours" / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", tmp_path / "ours" / "checkpoints")
    with pytest.raises(ValueError, match="is not of this run"):
        train_run.train(classroom(), tmp_path / "ours")


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["x64", "precision"])
def test_a_run_that_goes_on_under_other_settings_of_jax_is_refused(tmp_path, setting):
    config = classroom()
    train_run.train(config, tmp_path)
    (tmp_path / "summary.json").unlink()
    other = jax.enable_x64(True) if setting == "x64" else jax.default_matmul_precision("highest")
    with other, pytest.raises(ValueError, match="set it back to go on"):
        train_run.train(config, tmp_path)
    assert "test" in train_run.train(config, tmp_path)
