"""Early stopping: what is held out, which step is the best, and that a stop changes no bit."""

import dataclasses
import json

import numpy as np
import pytest

import softmax_jax
from runs import comparison, scores, settings, signals, summaries, train_run, validation
from softmax_jax import data
from softmax_jax.model import Params

pytestmark = pytest.mark.slow


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Few rows, many features, labels with much noise: training for long does harm."""
    generator = np.random.default_rng(0)
    w = generator.normal(size=(20, 3))
    x = generator.normal(size=(160, 20)).astype(np.float32)
    labels = np.argmax(x @ w + generator.gumbel(size=(160, 3)) * 4, axis=1)
    path = tmp_path_factory.mktemp("data") / "table.npz"
    np.savez(path, x_train=x[:80], y_train=labels[:80], x_test=x[80:], y_test=labels[80:])
    return str(path)


@pytest.fixture(scope="module")
def config(table):
    return settings.Train(
        data=settings.Data(name=table, validation="25%"),
        duration="60 epochs",
        batch_size=16,
        learning_rate=0.1,
        patience=3,
        save_every="7 steps",
    )


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stopped")
    return workdir, train_run.train(config, workdir)


@pytest.fixture
def dataset():
    x = np.arange(40.0, dtype=np.float32)[:, None]
    labels = np.arange(40) % 2
    return data.from_arrays(x, labels, x[:10], labels[:10])


@pytest.mark.parametrize(
    ("text", "rows"), [("10%", 4), ("12.5 %", 5), ("7 rows", 7), ("7", 7), ("1 row", 1)]
)
def test_so_many_training_rows_are_held_out_and_no_test_rows(dataset, text, rows):
    rest, held = validation.hold_out(dataset, text, seed=3)
    assert len(held.x) == rows
    both = np.concatenate([rest.train.x, held.x])[:, 0]
    np.testing.assert_array_equal(np.sort(both), dataset.train.x[:, 0])
    np.testing.assert_array_equal(held.targets, held.x[:, 0].astype(int) % 2)
    np.testing.assert_array_equal(rest.test.x, dataset.test.x)


def test_the_seed_chooses_the_rows(dataset):
    held = [validation.hold_out(dataset, "25%", seed=seed)[1].x for seed in (3, 3, 4)]
    np.testing.assert_array_equal(held[0], held[1])
    assert not np.array_equal(held[0], held[2])


@pytest.mark.parametrize("text", ["0%", "100%", "40 rows", "0", "1000 rows", "9" * 400])
def test_all_or_nothing_cannot_be_held_out(dataset, text):
    with pytest.raises(ValueError, match="of 40 training examples"):
        validation.hold_out(dataset, text, seed=0)


def test_at_least_two_classes_stay(dataset):
    labels = np.zeros(40, int)
    labels[:2] = 1
    skewed = dataset._replace(train=dataset.train._replace(targets=labels))
    with pytest.raises(ValueError, match="leaves a single class"):
        validation.hold_out(skewed, "39 rows", seed=0)


@pytest.mark.parametrize("text", ["ten", "-5%", "10 %%", "5 epochs", "1e999 rows"])
def test_what_is_no_share_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"config\.data\.validation='.*give a share like '10%'"):
        settings.Train(data=settings.Data(validation=text))


def test_patience_needs_validation_data():
    with pytest.raises(ValueError, match=r"patience=3: there are no validation data to judge by"):
        settings.Train(patience=3)


def test_patience_is_counted_from_the_best_and_ends_for_good():
    losses = [3.0, 2.0, 2.0, np.nan, 2.5, 1.0]
    params = Params(np.zeros((1, 2)), np.zeros(2))
    best = validation.begin(params, 1)
    for step, loss in enumerate(losses, start=1):
        params = Params(np.full((1, 2), step), np.zeros(2))
        best = validation.update(best, params, np.array([loss]), step=step, patience=3)
    # The second evaluation; 2.0 again is no lower, and 1.0 comes too late.
    assert (best.loss[0], best.step[0], best.stopped[0]) == (2.0, 2, 5)
    np.testing.assert_array_equal(best.params.w, np.full((1, 1, 2), 2))


def test_training_ends_where_patience_does_and_the_result_is_the_best_step(config, stopped):
    workdir, summary = stopped
    rows = rows_of(workdir)
    losses = [row["validation_loss"] for row in rows]
    best = int(np.argmin(losses))
    assert len(rows) == best + 1 + config.patience < 60
    assert summary["best_step"] == rows[best]["step"]
    assert summary["last_step"] == summary["steps"] == rows[-1]["step"]
    assert "no lower validation loss in 3 evaluations" in summary["why_last"]
    assert summary["validation"]["nats"] == pytest.approx(losses[best], rel=1e-6)
    assert summary["test"]["nats"] == pytest.approx(rows[best]["test_loss"], rel=1e-6)


def test_the_parameters_are_those_of_the_best_step(config, stopped, tmp_path):
    workdir, summary = stopped
    steps = f"{summary['best_step']} steps"
    other = dataclasses.replace(config, duration=steps, patience=0)
    train_run.train(other, tmp_path)
    for ours, theirs in zip(
        softmax_jax.load(workdir).params, softmax_jax.load(tmp_path).params, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_the_test_data_have_no_say_in_it(config, stopped, table, tmp_path):
    with np.load(table) as file:
        arrays = dict(file)
    arrays["x_test"] = arrays["x_test"][::-1] * 3
    np.savez(tmp_path / "other.npz", **arrays)
    source = dataclasses.replace(config.data, name=str(tmp_path / "other.npz"))
    summary = train_run.train(dataclasses.replace(config, data=source), tmp_path / "run")
    assert summary["best_step"] == stopped[1]["best_step"]
    assert summary["validation"] == stopped[1]["validation"]
    assert summary["test"] != stopped[1]["test"]


def test_report_table_and_comparison_say_which_step_and_why(stopped):
    workdir, summary = stopped
    line = f"step {summary['best_step']} has the lowest validation loss; the last was step "
    assert line in summaries.text(summary)
    assert f"{summary['validation']['nats']:.4f}" in summaries.text(summary)
    report = (workdir / "report.html").read_text()
    assert line[1:] in report
    assert "validation loss, nats" in report
    table = comparison.text([comparison.read(workdir)])
    assert f"{summary['test']['nats']:.4f}" in table


@pytest.mark.slow
def test_without_patience_the_best_step_is_still_the_result(config, stopped, tmp_path):
    summary = train_run.train(dataclasses.replace(config, patience=0), tmp_path)
    assert summary["last_step"] == 60 * 4
    assert "the duration of 60 epochs is over" in summary["why_last"]
    losses = [row["validation_loss"] for row in rows_of(tmp_path)]
    assert summary["best_step"] == 4 * (int(np.argmin(losses)) + 1)


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(config, tmp_path):
    config = dataclasses.replace(config, save_every="1 epoch", keep_last=1, keep_best=1)
    summary = train_run.train(config, tmp_path)
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {summary["best_step"], summary["last_step"]}


@pytest.mark.parametrize("looks", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_run_that_was_interrupted_stops_at_the_same_step_with_the_same_bits(
    config, stopped, tmp_path, signal_after, looks
):
    workdir, expected = stopped
    with pytest.raises(signals.Interrupted):
        train_run.train(config, tmp_path, came=signal_after(looks))
    summary = train_run.train(config, tmp_path)
    for key in (*scores.STOPPING, "train", "test", "steps"):
        assert summary[key] == expected[key]
    for ours, theirs in zip(
        softmax_jax.load(tmp_path).params, softmax_jax.load(workdir).params, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_stopped_run_whose_results_are_gone_makes_them_again(config, tmp_path):
    expected = train_run.train(config, tmp_path)
    before = rows_of(tmp_path)
    (tmp_path / "summary.json").unlink()
    summary = train_run.train(config, tmp_path)
    assert {key: summary[key] for key in scores.STOPPING} == {
        key: expected[key] for key in scores.STOPPING
    }
    assert rows_of(tmp_path) == before


def test_members_of_a_sweep_stop_by_themselves(config, stopped, tmp_path):
    sweep = settings.Sweep(learning_rate=(0.1, 0.01, 1.0))
    summary = train_run.train(
        dataclasses.replace(config, sweep=sweep, duration="40 epochs"), tmp_path
    )
    rows = rows_of(tmp_path)
    ends = []
    for i, member in enumerate(summary["members"]):
        steps = [row["step"] for row in rows if row["member"] == i]
        assert steps == list(range(4, member["last_step"] + 1, 4))
        ends.append(member["last_step"])
    assert len(set(ends)) > 1
    assert {key: summary["members"][0][key] for key in ("best_step", "last_step")} == {
        key: stopped[1][key] for key in ("best_step", "last_step")
    }
    losses = [member["validation"]["nats"] for member in summary["members"]]
    best = int(np.argmin(losses))
    assert summary["best_member"] == best
    assert f"member {best}, which has the lowest validation loss" in summaries.text(summary)
    loaded = softmax_jax.load(tmp_path)
    assert loaded.about["member"] == best
    assert loaded.about["learning_rate"] == pytest.approx(summary["members"][best]["learning_rate"])


@pytest.mark.slow
def test_groups_of_a_sweep_that_was_interrupted_stop_as_if_nothing_had_been(
    config, tmp_path, signal_after
):
    # A member a group.
    sweep = settings.Sweep(learning_rate=(0.1, 1.0), memory=1e-9)
    config = dataclasses.replace(config, sweep=sweep, duration="20 epochs")
    expected = train_run.train(config, tmp_path / "whole")
    with pytest.raises(signals.Interrupted):
        train_run.train(config, tmp_path / "stopped", came=signal_after(12))
    assert len(list((tmp_path / "stopped" / "checkpoints").iterdir())) == 2
    assert train_run.train(config, tmp_path / "stopped")["members"] == expected["members"]


def test_a_member_that_would_diverge_after_it_stopped_has_not_diverged(config, tmp_path):
    # Weights are multiplied by -9 a step, which float32 holds for some 40 steps.
    sweep = settings.Sweep(learning_rate=(0.01, 1.0), l2=(0.0, 10.0), mode="zip")
    config = dataclasses.replace(config, duration="30 epochs", patience=3, sweep=sweep)
    slow, wild = train_run.train(config, tmp_path / "both")["members"]
    assert slow["last_step"] > 60 > 30 > wild["last_step"]
    alone = dataclasses.replace(config, sweep=settings.Sweep(), learning_rate=1.0, l2=10.0)
    summary = train_run.train(alone, tmp_path / "alone")
    assert wild["diverged_at_step"] is None
    for key in ("best_step", "last_step", "why_last"):
        assert wild[key] == summary[key]
