import subprocess
import sys

import pytest

import compare
from runs import comparison, settings, train_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(digits, digits_run, tmp_path_factory):
    other = tmp_path_factory.mktemp("compare") / "other"
    train_run.train(digits(l2=0.5, duration="1 epoch"), other)
    return digits_run[1], other


def test_the_table_has_what_differs_and_the_scores(runs):
    lines = comparison.text([comparison.read(run) for run in runs]).splitlines()
    assert lines[0].split()[:3] == ["run", "duration", "l2"]
    assert "seed" not in lines[0]
    # By test loss: more epochs and no penalty do better here.
    assert lines[1].startswith(str(runs[0]))
    assert lines[2].startswith(str(runs[1]))


def test_of_a_sweep_the_settings_are_those_of_the_best_member(runs, digits, tmp_path):
    sweep = settings.Sweep(l2=(0.0, 5.0), order_seed=(0, 3), mode="zip")
    train_run.train(digits(sweep=sweep), tmp_path)
    run = comparison.read(tmp_path)
    assert (run.config["l2"], run.config["seed"]) == (0.0, 0)
    heads = comparison.text([run, comparison.read(runs[1])]).splitlines()[0]
    assert heads.split()[:3] == ["run", "duration", "l2"]


def test_a_figure_that_is_no_png_is_refused(runs, run_script):
    result = run_script(compare.__file__, str(runs[0]), "--figure=both.pdf")
    assert (result.returncode, result.stderr) == (
        1,
        "error: --figure=both.pdf: give the name of a PNG\n",
    )


def test_a_run_that_is_not_finished_is_marked(runs, tmp_path):
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((runs[0] / name).read_bytes())
    assert "not finished" in comparison.text([comparison.read(tmp_path)])


def test_the_command_draws_and_prints(runs, tmp_path):
    words = [sys.executable, compare.__file__, *map(str, runs), "--figure=both.png"]
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the curves are in both.png" in result.stdout
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_run_ends_in_a_line(tmp_path):
    words = [sys.executable, compare.__file__, str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"left out: {tmp_path} holds no run: there is no config.json in it",
        "error: there is no run to show",
    ]
