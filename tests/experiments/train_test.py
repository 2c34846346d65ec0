import dataclasses
import json
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest

import softmax_jax
import train
from runs import flags, gradients, programs, settings, summaries, train_run
from softmax_jax import data

SCRIPT = pathlib.Path(train.__file__)
CONFIGS = SCRIPT.parent / "configs"
CALIBRATION = {"reliability.png", "reliability_scaled.png", "risk_coverage.png"}
CURVES = {"loss.png", "accuracy.png"}
PICTURES = {*CURVES, *CALIBRATION, "weights.png", "confusion.png", "surprising.png"}
FILES = {"config.json", "metrics.jsonl", "summary.json", "params.npz", "report.html", *PICTURES}


def shipped(name, variant=""):
    module = runpy.run_path(str(CONFIGS / f"{name}.py"))
    return flags.from_config(module["get_config"](variant))


def params_of(workdir):
    with np.load(workdir / "params.npz") as file:
        return {name: file[name] for name in file.files}


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(digits_run):
    """The settings of a short run, its folder and what it returned."""
    return digits_run


def files_of(workdir):
    """Without checkpoints, TensorBoard's and hidden ones."""
    names = {path.name for path in workdir.iterdir()}
    assert "checkpoints" in names
    assert any(name.startswith("events.out.tfevents") for name in names)
    return {name for name in names - {"checkpoints"} if not name.startswith((".", "events"))}


def test_a_run_writes_its_files_and_no_others(run):
    assert files_of(run[1]) == FILES


def test_pictures_are_png(run):
    for name in PICTURES:
        assert (run[1] / name).read_bytes().startswith(b"\x89PNG")


def test_metrics_have_a_row_an_epoch(run):
    rows = rows_of(run[1])
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [12, 24]


def test_metrics_are_finite(run):
    for row in rows_of(run[1]):
        assert row.pop("diverged_at_step") is None
        assert all(np.isfinite(value) for value in row.values())


def test_training_lowers_the_loss(run):
    first, second = rows_of(run[1])
    assert second["train_loss"] < first["train_loss"] < np.log(10)
    assert second["test_loss"] < first["test_loss"]


def test_the_config_file_reproduces_the_settings(run):
    config, workdir, _ = run
    read = flags.from_config(json.loads((workdir / "config.json").read_text()))
    assert read == settings.with_parts(config)


def test_the_summary_file_is_what_is_returned(run):
    _, workdir, summary = run
    assert json.loads((workdir / "summary.json").read_text()) == summary


def test_the_last_row_agrees_with_the_summary(run):
    _, workdir, summary = run
    last = rows_of(workdir)[-1]
    assert last["test_accuracy"] == pytest.approx(summary["test"]["accuracy"])
    assert last["test_loss"] == pytest.approx(summary["test"]["nats"])


def test_the_parameters_reproduce_the_test_accuracy(run, data_dir):
    _, workdir, summary = run
    test = data.load("digits", data_dir=data_dir).test
    params = params_of(workdir)
    scores = (test.x * params["scale"]) @ params["w"] + params["b"]
    accuracy = np.mean(scores.argmax(axis=1) == test.targets)
    assert accuracy == pytest.approx(summary["test"]["accuracy"], abs=1e-6)


def test_a_trained_run_is_loaded_by_one_call_and_knows_its_features(run, data_dir):
    _, workdir, summary = run
    test = data.load("digits", data_dir=data_dir).test
    loaded = softmax_jax.load(workdir)
    hits = np.asarray(softmax_jax.io.predict(loaded, test.x)) == test.targets
    assert np.mean(hits) == pytest.approx(summary["test"]["accuracy"], abs=1e-6)
    assert loaded.class_names == tuple("0123456789")
    with pytest.raises(ValueError, match=r"type float64, but the model was made for uint8"):
        softmax_jax.io.predict(loaded, test.x / 16)


def test_the_gradients_of_the_trained_model_are_checked(run):
    assert gradients.Check(**run[2]["gradient_check"]).passed


def test_the_report_has_the_scores(run):
    summary = run[2]
    report = summaries.text(summary)
    assert f"{summary['test']['accuracy']:.4f}" in report
    assert f"{summary['train']['nats']:.4f}" in report
    assert "gradient check" in report


def test_the_same_seed_gives_the_same_parameters(run, tmp_path):
    config, workdir, _ = run
    train_run.train(config, tmp_path)
    for name, array in params_of(tmp_path).items():
        np.testing.assert_array_equal(array, params_of(workdir)[name])


def test_another_seed_gives_other_parameters(run, tmp_path):
    config, workdir, _ = run
    train_run.train(dataclasses.replace(config, seed=1), tmp_path)
    assert not np.array_equal(params_of(tmp_path)["w"], params_of(workdir)["w"])


def test_a_finished_run_is_left_alone(run):
    config, workdir, summary = run
    before = {name: (workdir / name).read_bytes() for name in FILES}
    assert train_run.train(config, workdir) == summary
    assert {name: (workdir / name).read_bytes() for name in FILES} == before


def test_a_folder_with_another_config_is_refused_with_the_difference(run):
    config, workdir, _ = run
    other = dataclasses.replace(config, l2=0.5, seed=1)
    with pytest.raises(ValueError, match=r"(?s)l2: 0\.0 there, 0\.5 here\n.*seed: 0 there, 1 here"):
        train_run.train(other, workdir)


def test_divergence_is_reported_with_its_step_and_learning_rate(digits, tmp_path):
    with pytest.raises(FloatingPointError, match=r"at step \d+ \(epoch 1\), .*rate 1e\+38"):
        train_run.train(digits(learning_rate=1e38), tmp_path)


def test_a_run_that_diverged_has_no_summary(digits, tmp_path):
    with pytest.raises(FloatingPointError):
        train_run.train(digits(learning_rate=1e38), tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert not (tmp_path / "params.npz").exists()


@pytest.mark.parametrize("change", [{"l2": 0.5}, {"label_smoothing": 0.5}], ids=str)
def test_regularisation_makes_for_smaller_weights(run, digits, tmp_path, change):
    train_run.train(digits(**change), tmp_path)
    plain = np.linalg.norm(params_of(run[1])["w"])
    assert np.linalg.norm(params_of(tmp_path)["w"]) < plain


def test_a_batch_larger_than_the_data_is_all_of_it(digits, tmp_path):
    train_run.train(digits(batch_size=5000), tmp_path)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]


@pytest.mark.slow
def test_data_without_images_has_no_picture_of_weights(tmp_path):
    generator = np.random.default_rng(0)
    x, ids = generator.normal(size=(20, 3)), np.arange(20) % 2
    np.savez(tmp_path / "table.npz", x_train=x, y_train=ids, x_test=x, y_test=ids)
    table = settings.Data(name=str(tmp_path / "table.npz"))
    train_run.train(settings.Train(data=table, duration="1 epoch"), tmp_path / "run")
    assert files_of(tmp_path / "run") == FILES - {"weights.png", "surprising.png"}


def test_bad_data_leaves_no_folder(tmp_path):
    table = settings.Data(name=str(tmp_path / "absent.npz"))
    with pytest.raises(FileNotFoundError):
        train_run.train(settings.Train(data=table), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_epochs_compile_once(run, digits, tmp_path, count_compilations):
    def compilations(epochs):
        config = digits(duration=f"{epochs} epochs")
        return count_compilations(lambda: train_run.train(config, tmp_path / str(epochs)))

    # The first run compiles what all of them share, too.
    assert compilations(2) >= compilations(6) == compilations(3) > 0


def test_one_late_keeps_all_items_in_order():
    assert list(programs.one_late(iter(range(5)))) == [0, 1, 2, 3, 4]
    assert list(programs.one_late(iter("a"))) == ["a"]


def test_one_late_asks_for_the_next_item_first():
    asked = []

    def items():
        for i in range(3):
            asked.append(i)
            yield i

    assert [(item, list(asked)) for item in programs.one_late(items())] == [
        (0, [0, 1]),
        (1, [0, 1, 2]),
        (2, [0, 1, 2]),
    ]


def test_digits_are_learned(tmp_path, data_dir):
    config = shipped("digits")
    config = dataclasses.replace(config, data=settings.Data("digits", data_dir=data_dir))
    assert train_run.train(config, tmp_path)["test"]["accuracy"] >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bar"), [("mnist", 0.922), ("fashion_mnist", 0.84)])
def test_published_images_are_learned(tmp_path, data_dir, idx_folder, name, bar):
    source = settings.Data(name, folder=str(idx_folder(name)), data_dir=data_dir)
    config = dataclasses.replace(shipped(name), data=source)
    assert train_run.train(config, tmp_path)["test"]["accuracy"] >= bar


@pytest.mark.slow
def test_the_classroom_is_learned(tmp_path):
    assert train_run.train(shipped("classroom"), tmp_path)["test"]["accuracy"] >= 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--config.learning_rte=0.1"], "learning_rate", marks=pytest.mark.slow),
        (["--config.data.foldr=here"], "folder"),
        pytest.param(
            ["--config.duration=many"],
            "config.duration: 'many' is no duration",
            marks=pytest.mark.slow,
        ),
        pytest.param(["--config.batch_size=many"], "config.batch_size", marks=pytest.mark.slow),
        (["--config.optimizer=adm"], "did you mean 'adam'"),
        pytest.param(
            ["--config.data.name=cifar10"],
            "unknown data set 'cifar10'; expected one of classroom",
            marks=pytest.mark.slow,
        ),
        ([f"--config={CONFIGS / 'digits.py'}:smok"], "no variant 'smok'; there is smoke"),
        pytest.param(["--config=nowhere.py"], "nowhere.py", marks=pytest.mark.slow),
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


def test_help_tells_the_flags(run_script):
    result = run_script(SCRIPT, "--help")
    assert "--config" in result.stdout
    assert "--workdir" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_command_line_changes_the_config(run_script, tmp_path):
    config = f"--config={CONFIGS / 'classroom.py'}:smoke"
    result = run_script(SCRIPT, config, "--config.learning_rate=0.25", "--workdir=here")
    assert result.returncode == 0, result.stderr
    written = json.loads((tmp_path / "here" / "config.json").read_text())
    expected = dataclasses.replace(shipped("classroom", "smoke"), learning_rate=0.25)
    assert flags.from_config(written) == settings.with_parts(expected)
    assert "results in here" in result.stdout


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(NotADirectoryError, match="file is a file"):
        train_run.train(shipped("classroom", "smoke"), path)


def test_another_config_is_refused_before_the_data_are_loaded(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.delattr(data, "load")
    with pytest.raises(ValueError, match="holds a run of another config"):
        train_run.train(shipped("classroom", "smoke"), tmp_path)


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        train_run.train(shipped("classroom", "smoke"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(variant=''):\n    return 3\n", "cannot be read"),
        ("def get_config(:\n", "error: "),
        ("x = 1\n", "get_config"),
    ],
)
def test_a_config_file_that_is_none_ends_in_a_line(tmp_path, content, message):
    path = tmp_path / "own.py"
    path.write_text(content)
    command = [sys.executable, str(SCRIPT), f"--config={path}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
