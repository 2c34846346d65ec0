import json
import pathlib

import jax
import numpy as np
import pytest

import head
import softmax_jax
from runs import head_run, settings
from softmax_jax import model

CONFIGS = pathlib.Path(head.__file__).parent / "configs"


@pytest.fixture
def config():
    """A config of 64 classes."""
    return settings.Head(
        levels=8, features=2, steps=200, batch_size=64, draws=64, evaluate_every=100, test_rows=64
    )


@pytest.mark.slow
def test_it_comes_close_to_the_lowest_loss(config, tmp_path):
    summary = head_run.train(config, tmp_path / "run")
    assert summary["classes"] == 64
    assert summary["uniform_loss"] == pytest.approx(np.log(64))
    assert abs(summary["excess"]) < 0.02 < 0.5 < summary["uniform_loss"] - summary["bayes_loss"]
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [100, 200]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.json", "metrics.jsonl", "params.npz", "curve.png", "summary.json"
    }  # fmt: skip
    with pytest.raises(FileExistsError, match="already holds a run"):
        head_run.train(config, tmp_path / "run")
    loaded = softmax_jax.load(tmp_path / "run")
    assert softmax_jax.io.predict(loaded, np.zeros((2, 2), np.float32)).shape == (2,)


@pytest.mark.slow
def test_labels_come_from_the_true_head(config):
    x, targets = head_run.generate(config, jax.random.key(0), 20_000)
    # A row has 64 labels, all of one distribution; the means of the first of them.
    p = model.probabilities(head_run.true_params(config), x)
    expected = np.mean(p, axis=0)
    actual = np.bincount(np.ravel(targets.ids), minlength=64) / targets.ids.size
    assert np.abs(actual - expected).sum() < 0.01
    entropy = -np.sum(p * np.log(p), axis=1)
    error = float(np.std(entropy)) / len(entropy) ** 0.5
    assert head_run.bayes_loss(config) == pytest.approx(float(np.mean(entropy)), abs=4 * error)


@pytest.mark.slow
def test_the_shipped_config_has_262144_classes(run_script, tmp_path):
    assert settings.Head().title == "head-262144"
    smoke = [f"--config={CONFIGS / 'head.py'}:smoke", "--config.levels=4", "--config.steps=3"]
    result = run_script(head.__file__, *smoke, "--workdir=here")
    assert result.returncode == 0, result.stderr
    assert "lowest possible" in result.stdout
    assert (tmp_path / "here" / "summary.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 1}, "config.levels=1: it must be 2 or more"),
        ({"levels": 3000, "features": 3}, r"at most 2\*\*24 classes"),
        ({"draws": 0}, "config.draws=0"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings.Head(**changes)


@pytest.mark.slow
def test_divergence_ends_with_advice(tmp_path):
    config = settings.Head(levels=4, features=1, steps=40, learning_rate=3e38, optimizer="sgd")
    with pytest.raises(FloatingPointError, match="try a third of it"):
        head_run.train(config, tmp_path)
