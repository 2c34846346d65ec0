import dataclasses
import json
import pathlib
import re
import runpy

import numpy as np
import pytest

import fit
import softmax_jax
from runs import datasets, fit_run, flags, settings
from softmax_jax import data, solvers

SCRIPT = pathlib.Path(fit.__file__)
CONFIGS = SCRIPT.parent / "configs"
FILES = {"config.json", "path.jsonl", "summary.json", "params.npz"}


def shipped(name, variant=""):
    module = runpy.run_path(str(CONFIGS / f"{name}.py"))
    return flags.from_config(module["get_config"](variant), settings.Fit)


def params_of(workdir):
    with np.load(workdir / "params.npz") as file:
        return {name: file[name] for name in file.files}


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "path.jsonl").read_text().splitlines()]


def names_in(workdir):
    return {path.name for path in workdir.iterdir()}


# Runs of as many problems and examples share their compiled programs, which take most of the time.
@pytest.fixture(scope="module")
def of_digits(data_dir):
    """A function from some settings to those of two problems on the digits."""

    def make(**changes):
        source = settings.Data(name="digits", data_dir=data_dir)
        return settings.Fit(**{"data": source, "l2": (0.1, 0.01), "tol": 1e-3, **changes})

    return make


@pytest.fixture(scope="module")
def run(tmp_path_factory, of_digits):
    """The settings of a run over pairs of strengths, its folder and what it returned."""
    config = of_digits(l1=(0.0, 0.01))
    workdir = tmp_path_factory.mktemp("fit") / "new" / "folder"
    return config, workdir, fit_run.fit(config, workdir)


@pytest.mark.slow
def test_the_pair_with_the_lowest_test_loss_is_loaded_and_others_on_demand(run, digits):
    _, workdir, found = run
    for member in (None, 0, 3):
        row = found.summary["lowest_test_loss"] if member is None else found.rows[member]
        loaded = softmax_jax.load(workdir, member=member)
        assert (loaded.about["l2"], loaded.about["l1"]) == (row["l2"], row["l1"])
        hits = np.asarray(softmax_jax.io.predict(loaded, digits.test.x)) == digits.test.targets
        assert np.mean(hits) == pytest.approx(row["test_accuracy"], abs=1e-6)


def test_nothing_is_held_out_for_a_fit(of_digits, tmp_path):
    config = of_digits(data=settings.Data(name="digits", validation="10%"))
    with pytest.raises(ValueError, match=r"config\.data\.validation='10%': only train\.py holds"):
        fit_run.fit(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory, of_digits):
    """The folder and results of a run with too few passes."""
    workdir = tmp_path_factory.mktemp("unfinished")
    return workdir, fit_run.fit(of_digits(l2=(1e-7, 1.0), tol=1e-15, max_passes=1), workdir)


@pytest.fixture(scope="module")
def digits(data_dir):
    return data.load("digits", data_dir=data_dir)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Data without images: two classes that the first feature separates, and one to test on."""
    path = tmp_path_factory.mktemp("table") / "table.npz"
    ids = np.arange(30) % 2
    x = np.random.default_rng(0).normal(size=(30, 3))
    x[:, 0] = ids
    np.savez(path, x_train=x, y_train=ids, x_test=x, y_test=np.arange(30) % 3)
    return settings.Data(name=str(path))


@pytest.mark.slow
def test_a_path_writes_its_files_and_no_others(run):
    assert names_in(run[1]) == FILES | {"path.png"}
    assert (run[1] / "path.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_path_of_l1_alone_is_drawn_by_its_weights(table, tmp_path):
    fit_run.fit(settings.Fit(data=table, l2=(0.0,), l1=(0.1, 0.01)), tmp_path)
    assert names_in(tmp_path) == FILES | {"path.png", "coefficients.png"}


@pytest.mark.slow
def test_a_row_for_each_pair_of_strengths(run):
    pairs = [(row["l1"], row["l2"]) for row in rows_of(run[1])]
    assert pairs == [(0.0, 0.1), (0.0, 0.01), (0.01, 0.1), (0.01, 0.01)]


def test_the_rows_and_the_summary_are_what_is_returned(run):
    _, workdir, results = run
    assert rows_of(workdir) == results.rows
    assert json.loads((workdir / "summary.json").read_text()) == results.summary


def test_the_config_file_reproduces_the_settings(run):
    config, workdir, _ = run
    written = json.loads((workdir / "config.json").read_text())
    assert flags.from_config(written, settings.Fit) == config


def test_all_are_certified(run):
    config, _, results = run
    assert all(row["status"] == "certified" for row in results.rows)
    assert all(0 <= row["relative_gap"] <= config.tol for row in results.rows)
    assert results.summary["certified"] == results.summary["problems"] == 4
    assert results.summary["largest_relative_gap"] <= config.tol


def test_parameters_are_stacked_beside_their_strengths(run):
    params = params_of(run[1])
    assert params["w"].shape == (4, 64, 10)
    assert params["b"].shape == (4, 10)
    np.testing.assert_array_equal(params["l2"], [0.1, 0.01, 0.1, 0.01])
    np.testing.assert_array_equal(params["l1"], [0, 0, 0.01, 0.01])


def mean_loss(params, i, split):
    """Returns the mean loss in NumPy float64."""
    scores = split.x.astype(np.float64) * params["scale"] @ params["w"][i] + params["b"][i]
    scores -= scores.max(axis=1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(split.x)), split.targets].mean()


def test_the_parameters_reproduce_the_rows(run, digits):
    params = params_of(run[1])
    for i, row in enumerate(rows_of(run[1])):
        w = params["w"][i]
        loss = mean_loss(params, i, digits.train)
        penalty = row["l2"] / 2 * np.sum(w**2) + row["l1"] * np.abs(w).sum()
        assert row["objective"] == pytest.approx(loss + penalty, rel=1e-9)
        assert row["train_loss"] == pytest.approx(loss, rel=1e-5)
        assert row["test_loss"] == pytest.approx(mean_loss(params, i, digits.test), rel=1e-5)
        assert row["nonzero_weights"] == np.sum(w != 0)
        assert row["weight_norm"] == pytest.approx(np.sqrt(np.sum(w**2)))


def test_the_parameters_reproduce_the_accuracies(run, digits):
    params = params_of(run[1])
    for i, row in enumerate(rows_of(run[1])):
        scores = digits.test.x * params["scale"] @ params["w"][i] + params["b"][i]
        ranks = np.argsort(-scores, axis=1)
        correct = ranks == digits.test.targets[:, None]
        assert row["test_accuracy"] == pytest.approx(correct[:, 0].mean(), abs=1e-6)
        assert row["test_top_5_accuracy"] == pytest.approx(correct[:, :5].sum(1).mean(), abs=1e-6)


def test_l1_makes_weights_zero(run):
    rows = rows_of(run[1])
    assert max(row["nonzero_weights"] for row in rows[2:]) < rows[0]["nonzero_weights"]


def test_the_lowest_test_loss_is_in_the_summary(run):
    _, _, results = run
    assert results.summary["lowest_test_loss"] in results.rows
    lowest = min(row["test_loss"] for row in results.rows)
    assert results.summary["lowest_test_loss"]["test_loss"] == lowest


def test_the_report_has_a_line_for_each_row(run):
    lines = fit_run.report(run[2]).splitlines()
    for line, row in zip(lines[1:5], run[2].rows, strict=True):
        assert line.split() == [
            f"{row['l2']:g}",
            f"{row['l1']:g}",
            f"{row['objective']:.6f}",
            f"{row['relative_gap']:.1e}",
            f"{row['passes']:.0f}",
            f"{row['train_loss']:.4f}",
            f"{row['test_loss']:.4f}",
            f"{row['test_accuracy']:.4f}",
            str(row["nonzero_weights"]),
            "certified",
        ]


def test_the_report_counts_certificates_and_names_the_best(run):
    report = fit_run.report(run[2])
    assert "4 of 4 certified to a relative gap of 0.001" in report
    assert "NOT CERTIFIED" not in report
    assert f"lowest test loss: {run[2].summary['lowest_test_loss']['test_loss']:.4f}" in report


def test_the_numbers_of_the_report_are_under_their_heads(run):
    head, row = fit_run.report(run[2]).splitlines()[:2]
    ends = [head.index(name) + len(name) for name in ("objective", "passes", "non-zero")]
    assert all(row[end - 1] != " " and row[end] == " " for end in ends)


def test_the_solver_gets_the_data_as_they_are_stored_and_the_settings(
    tmp_path, monkeypatch, digits, of_digits
):
    class Called(Exception):
        pass

    def fit_path(x, y, **options):
        raise Called(x, y, options)

    monkeypatch.setattr(solvers, "fit_path", fit_path)
    config = of_digits(l1=(0.5,), grouped=True, tol=0.25, max_passes=7)
    with pytest.raises(Called) as call:
        fit_run.fit(config, tmp_path)
    x, y, options = call.value.args
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, digits.train.x)
    np.testing.assert_array_equal(y, digits.train.targets)
    np.testing.assert_array_equal(options.pop("l2"), [0.1, 0.01])
    np.testing.assert_array_equal(options.pop("l1"), [0.5, 0.5])
    del options["callback"]
    assert options == {
        "grouped": True,
        "num_classes": 10,
        "scale": digits.train.scale,
        "tol": 0.25,
        "max_passes": 7,
    }


def test_progress_is_shown(tmp_path, capsys, of_digits):
    fit_run.fit(of_digits(), tmp_path)
    shown = capsys.readouterr().err
    assert re.search(r"furthest: \d+ passes, gap \d\.\de", shown)
    assert "2/2" in shown
    assert "2 certified" in shown


def test_what_is_not_certified_is_said(unfinished):
    _, results = unfinished
    assert results.rows[0]["status"] == "not certified"
    assert "max_passes" in results.rows[0]["reason"]
    assert results.summary["certified"] < 2
    report = fit_run.report(results)
    assert "NOT CERTIFIED at l2 = 1e-07, l1 = 0: max_passes = 1 are used up" in report
    assert f"{results.summary['certified']} of 2 certified" in report


def test_what_is_not_certified_is_written_all_the_same(unfinished):
    workdir, results = unfinished
    assert names_in(workdir) == FILES | {"path.png"}
    assert rows_of(workdir) == results.rows


@pytest.mark.slow
def test_an_infimum_at_infinity_is_said(table, tmp_path):
    results = fit_run.fit(settings.Fit(data=table, l2=(0.0,)), tmp_path)
    assert results.rows[0]["status"] == "infimum at infinity"
    assert "INFIMUM AT INFINITY at l2 = 0, l1 = 0: the classes are separated" in fit_run.report(
        results
    )


def test_a_class_never_trained_on_has_an_infinite_test_loss(table, tmp_path):
    results = fit_run.fit(settings.Fit(data=table), tmp_path)
    (row,) = rows_of(tmp_path)
    assert row == results.rows[0]
    assert row["test_loss"] is None
    assert 0 < row["train_loss"] < np.log(2)
    assert row["status"] == "certified"
    assert "       inf " in fit_run.report(results)
    # Nor is there a picture, as the features are no pixels.
    assert names_in(tmp_path) == FILES


def test_scores_of_many_compile_as_much_as_of_one(digits, count_compilations):
    split = digits.test._replace(x=digits.test.x[:100], targets=digits.test.targets[:100])
    _, batch = datasets.batches(digits._replace(test=split))
    params = fit_run.Params(np.zeros((5, 64, 10), np.float32), np.zeros((5, 10), np.float32))
    one = fit_run.Params(params.w[:1], params.b[:1])
    assert count_compilations(lambda: fit_run.scores(one, batch)) == 1
    assert count_compilations(lambda: fit_run.scores(params, batch)) == 0


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(run):
    config, workdir, _ = run
    before = {path.name: path.read_bytes() for path in workdir.iterdir()}
    with pytest.raises(FileExistsError, match="already holds a run"):
        fit_run.fit(config, workdir)
    assert {path.name: path.read_bytes() for path in workdir.iterdir()} == before


def test_bad_data_leaves_no_folder(tmp_path):
    absent = settings.Data(name=str(tmp_path / "absent.npz"))
    with pytest.raises(FileNotFoundError):
        fit_run.fit(settings.Fit(data=absent), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_digits_are_fitted(tmp_path, data_dir):
    config = shipped("fit_digits")
    config = dataclasses.replace(config, data=settings.Data("digits", data_dir=data_dir))
    results = fit_run.fit(config, tmp_path)
    (row,) = results.rows
    assert row["status"] == "certified"
    assert row["test_accuracy"] >= 0.95
    assert params_of(tmp_path)["w"].shape == (1, 64, 10)
    assert "lowest test loss" not in fit_run.report(results)
    assert names_in(tmp_path) == FILES | {"weights.png"}


@pytest.mark.slow
def test_fashion_mnist_is_fitted_to_its_optimum(tmp_path, data_dir, idx_folder):
    folder = str(idx_folder("fashion_mnist"))
    source = settings.Data("fashion_mnist", folder=folder, data_dir=data_dir)
    config = dataclasses.replace(shipped("fit_fashion_mnist"), data=source)
    (row,) = fit_run.fit(config, tmp_path).rows
    assert row["status"] == "certified"
    # The objective that scikit-learn's newton-cg reaches with a tolerance of 1e-6.
    assert 0.37947707 * (1 - 1e-7) <= row["objective"] <= 0.37947707 * (1 + config.tol)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--config.l3=0.1"], "there is no --config key", marks=pytest.mark.slow),
        (["--config.l2=many"], "config.l2[0]='many' is of type str; expected float"),
        pytest.param(
            ["--config.l2=1,-1"],
            "config.l2=(1.0, -1.0): it must be of numbers",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--config.grouped"],
            "config.grouped=True: it must be False, as there is no l1",
            marks=pytest.mark.slow,
        ),
        ([f"--config={CONFIGS / 'digits.py'}"], "there is no such key; known keys: data, mesh, l2"),
        pytest.param(["more"], "unexpected argument 'more'", marks=pytest.mark.slow),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_command_line_ends_in_a_line_of_advice(run_script, tmp_path, arguments, message):
    result = run_script(SCRIPT, *arguments)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_tells_the_flags_and_the_settings(run_script):
    result = run_script(SCRIPT, "--help")
    assert "--config" in result.stdout
    assert "--workdir" in result.stdout
    assert "experiments/configs/fit_digits.py" in result.stdout
    for field in dataclasses.fields(settings.Fit):
        assert field.name in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_command_line_changes_the_config(run_script, tmp_path):
    config = f"--config={CONFIGS / 'fit_digits.py'}:smoke"
    changes = ["--config.l2=1e-7,1e-6", "--config.tol=1e-15", "--config.max_passes=1"]
    result = run_script(SCRIPT, config, *changes, "--workdir=here")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "here" / "config.json").read_text())
    expected = dataclasses.replace(
        shipped("fit_digits", "smoke"), l2=(1e-7, 1e-6), tol=1e-15, max_passes=1
    )
    assert flags.from_config(written, settings.Fit) == expected
    assert "NOT CERTIFIED" in result.stdout
    assert "results in here" in result.stdout
