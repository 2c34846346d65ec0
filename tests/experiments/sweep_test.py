import dataclasses
import json
import signal

import numpy as np
import pytest

import softmax_jax
from runs import settings, signals, summaries, train_run

# Each compiles several sweeps.
pytestmark = pytest.mark.slow


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def config(digits):
    sweep = settings.Sweep(learning_rate=(0.1, 0.5), l2=(0.0, 1e-3))
    return digits(sweep=sweep)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    return workdir, train_run.train(config, workdir)


def test_a_product_has_all_combinations():
    sweep = settings.Sweep(l2=(0.0, 0.5), init_seed=(1, 2, 3))
    members = settings.members(settings.Train(sweep=sweep, learning_rate=0.3))
    assert len(set(members)) == 6
    assert {member.learning_rate for member in members} == {0.3}
    assert {member.order_seed for member in members} == {0}


def test_a_zip_has_the_first_of_each_and_so_on():
    sweep = settings.Sweep(l2=(0.0, 0.5), order_seed=(3, 4), mode="zip")
    members = settings.members(settings.Train(sweep=sweep))
    assert [(member.l2, member.order_seed) for member in members] == [(0.0, 3), (0.5, 4)]


def test_nothing_swept_is_one_member():
    (member,) = settings.members(settings.Train(seed=4, l2=0.5))
    assert member == settings.Member(0.1, 0.5, 0.0, 4, 4)


def test_each_member_equals_the_single_run(config, run, tmp_path):
    workdir, summary = run
    with np.load(workdir / "params.npz") as file:
        w, b = file["w"], file["b"]
    for i, member in enumerate(settings.members(config)):
        single = dataclasses.replace(
            config,
            sweep=settings.Sweep(),
            learning_rate=member.learning_rate,
            l2=member.l2,
            label_smoothing=member.label_smoothing,
        )
        alone = train_run.train(single, tmp_path / str(i))
        with np.load(tmp_path / str(i) / "params.npz") as file:
            np.testing.assert_allclose(w[i], file["w"], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(b[i], file["b"], rtol=1e-4, atol=1e-5)
        assert summary["members"][i]["test"]["nats"] == pytest.approx(
            alone["test"]["nats"], rel=1e-5
        )
        ours = [row for row in rows_of(workdir) if row["member"] == i]
        for row, other in zip(ours, rows_of(tmp_path / str(i)), strict=True):
            assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
            assert row["test_loss"] == pytest.approx(other["test_loss"], rel=1e-5)


def test_the_best_member_has_the_lowest_test_loss(run):
    summary = run[1]
    losses = [member["test"]["nats"] for member in summary["members"]]
    assert summary["best_member"] == int(np.argmin(losses))
    assert summary["test"]["nats"] == min(losses)


def test_the_best_member_is_loaded_and_others_on_demand(config, run):
    workdir, summary = run
    members = settings.members(config)
    for member in (None, *range(len(members))):
        loaded = softmax_jax.load(workdir, member=member)
        at = summary["best_member"] if member is None else member
        assert loaded.about == {**members[at]._asdict(), "member": at}
        with np.load(workdir / "params.npz") as file:
            np.testing.assert_array_equal(loaded.params.w, file["w"][at])


def test_members_with_orders_of_their_own_equal_single_runs(digits, tmp_path):
    config = digits(sweep=settings.Sweep(order_seed=(0, 1), init_seed=(0, 1), mode="zip"))
    train_run.train(config, tmp_path / "both")
    with np.load(tmp_path / "both" / "params.npz") as file:
        w = file["w"]
    for seed in (0, 1):
        train_run.train(digits(seed=seed), tmp_path / str(seed))
        with np.load(tmp_path / str(seed) / "params.npz") as file:
            np.testing.assert_allclose(w[seed], file["w"], rtol=1e-4, atol=1e-5)


def test_a_member_that_diverges_is_reported_and_poisons_no_other(digits, tmp_path):
    config = digits(sweep=settings.Sweep(learning_rate=(0.1, 3e38, 0.2)))
    summary = train_run.train(config, tmp_path / "sweep")
    good, bad, _ = summary["members"]
    assert bad["diverged_at_step"] >= 0
    assert good["diverged_at_step"] is None
    alone = train_run.train(digits(learning_rate=0.1), tmp_path / "alone")
    assert good["test"]["nats"] == pytest.approx(alone["test"]["nats"], rel=1e-5)
    assert summary["best_member"] != 1
    table = summaries.text(summary)
    assert f"diverged at step {bad['diverged_at_step']}" in table
    assert "1 of 3 diverged" in table
    assert "diverged" in (tmp_path / "sweep" / "report.html").read_text()


def test_a_group_that_diverges_wholly_costs_the_others_nothing(digits, tmp_path):
    sweep = settings.Sweep(learning_rate=(0.1, 0.2, 1e38, 3e38), memory=0.004)
    summary = train_run.train(digits(sweep=sweep), tmp_path)
    assert [m["diverged_at_step"] is None for m in summary["members"]] == [True, True, False, False]
    assert summary["best_member"] in (0, 1)


def test_all_diverged_is_an_error(digits, tmp_path):
    config = digits(sweep=settings.Sweep(learning_rate=(1e38, 3e38)))
    with pytest.raises(FloatingPointError, match="all 2 members diverged"):
        train_run.train(config, tmp_path)


def test_a_bad_value_of_a_sweep_is_named_as_such():
    with pytest.raises(ValueError, match=r"config\.sweep\.learning_rate=-1"):
        settings.Train(sweep=settings.Sweep(learning_rate=(0.1, -1.0)))


def test_too_little_memory_makes_groups_and_says_so(config, run, tmp_path, capsys):
    small = dataclasses.replace(config.sweep, memory=0.004)
    summary = train_run.train(dataclasses.replace(config, sweep=small), tmp_path)
    assert (
        "4 members in groups of up to 2, as config.sweep.memory=0.004 GiB"
        in capsys.readouterr().out
    )
    for member, expected in zip(summary["members"], run[1]["members"], strict=True):
        assert member["test"]["nats"] == pytest.approx(expected["test"]["nats"], rel=1e-5)
    assert len(rows_of(tmp_path)) == len(rows_of(run[0]))


def test_a_sweep_in_groups_goes_on_where_it_was(config, tmp_path):
    small = dataclasses.replace(config.sweep, memory=0.004)
    config = dataclasses.replace(config, sweep=small, save_every="5 steps")
    expected = train_run.train(config, tmp_path / "whole")

    def in_the_second_group():
        return signal.SIGTERM if (tmp_path / "stopped" / "checkpoints" / "1").exists() else 0

    with pytest.raises(signals.Interrupted):
        train_run.train(config, tmp_path / "stopped", came=in_the_second_group)
    summary = train_run.train(config, tmp_path / "stopped")
    assert summary["members"] == expected["members"]
    keys = ("member", "step", "train_loss", "test_loss")
    ours, theirs = (
        sorted(tuple(row[key] for key in keys) for row in rows_of(tmp_path / name))
        for name in ("stopped", "whole")
    )
    assert ours == theirs


def test_the_report_table_has_the_settings_that_differ(run):
    head = summaries.text(run[1]).splitlines()[0]
    heads = ("member", "learning rate", "l2", "train loss", "test loss")
    assert head.split() == " ".join((*heads, "test accuracy")).split()


def test_the_picture_of_the_sweep_is_in_the_folder(run):
    assert (run[0] / "sweep.png").read_bytes().startswith(b"\x89PNG")
