import json
import pathlib

import numpy as np
import pytest

import codelength
import softmax_jax
from runs import codelength_run, settings
from softmax_jax import data
from softmax_jax.codelength import coding

pytestmark = pytest.mark.slow

CONFIG = pathlib.Path(codelength.__file__).parent / "configs" / "codelength_digits.py"
FILES = {"config.json", "labels.smxl", "params.npz", "codelength.jsonl", "codelength.png"}


@pytest.fixture(scope="module")
def config(data_dir):
    return settings.Codelength(
        data=settings.Data(name="digits", data_dir=data_dir),
        precision=0.1,
        percent=(5, 20, 100),
        learning_rate=0.03,
        batch_size=8,
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("codelength")
    return workdir, codelength_run.codelength(config, workdir)


def test_a_run_writes_its_files_and_no_others(run):
    assert {path.name for path in run[0].iterdir()} == FILES | {"summary.json"}
    assert json.loads((run[0] / "summary.json").read_text()) == run[1]


def test_the_file_has_the_size_that_is_told_and_decodes(run, data_dir):
    workdir, summary = run
    content = (workdir / "labels.smxl").read_bytes()
    assert len(content) == summary["file"]["bytes"] <= 1.001 * summary["file"]["loss_bits"] / 8 + 64
    dataset = data.load("digits", data_dir=data_dir)
    loaded = softmax_jax.load(workdir)
    labels = coding.decompress(
        content, loaded.params, dataset.test.x, scale=loaded.scale, block_size=50
    )
    np.testing.assert_array_equal(labels, dataset.test.targets)


def test_codes_are_in_order(run):
    file, online = run[1]["file"], run[1]["online"]
    assert file["loss_bits"] < file["marginal_bits"] < file["uniform_bits"]
    assert file["loss_bits"] == pytest.approx(file["codelength_bits"], rel=1e-3)
    for way in ("refitted", "one pass"):
        assert online[way]["bits"] < 0.5 * online["uniform_bits"] < online[way]["control_bits"]
        expected = online[way]["control_bits"] - online[way]["bits"]
        assert online[way]["selectivity_bits"] == pytest.approx(expected)


def test_the_curves_are_written_and_rise(run):
    rows = [json.loads(line) for line in (run[0] / "codelength.jsonl").read_text().splitlines()]
    for code in ("refitted", "one pass"):
        for control in (False, True):
            curve = [row for row in rows if (row["code"], row["control"]) == (code, control)]
            assert curve[-1]["seen"] == 1438
            assert (np.diff([row["bits"] for row in curve]) > 0).all()
    assert [row["seen"] for row in rows[:3]] == [72, 288, 1438]


def test_the_report_has_the_figures(run):
    text = codelength_run.report(run[1])
    for number in (run[1]["file"]["bits"], run[1]["online"]["refitted"]["bits"]):
        assert f"{number:,.0f}" in text
    assert "decoded, and the same" in text


def test_a_file_below_the_loss_is_explained(run):
    summary = json.loads(json.dumps(run[1]))
    summary["file"]["overhead_bits"] = 8 * coding.HEADER_BYTES - 40
    assert "-5.0 those of the coder, as no label costs more than 24 bits" in codelength_run.report(
        summary
    )


def test_a_loss_without_bounds_is_told(run):
    summary = json.loads(json.dumps(run[1]))
    summary["file"] |= {"loss_bits": None, "overhead_bits": None}
    assert "infinite" in codelength_run.report(summary)


def test_probabilities_as_targets_are_refused(tmp_path):
    path, soft = tmp_path / "soft.npz", np.full((30, 2), 0.5)
    np.savez(path, x_train=np.ones((30, 2)), y_train=soft, x_test=np.ones((30, 2)), y_test=soft)
    config = settings.Codelength(data=settings.Data(name=str(path)))
    with pytest.raises(ValueError, match="only class ids can be coded"):
        codelength_run.codelength(config, tmp_path / "run")


@pytest.mark.slow
def test_the_command_line_runs_a_shipped_config(run_script, data_dir):
    result = run_script(
        codelength.__file__,
        f"--config={CONFIG}:smoke",
        f"--config.data.data_dir={data_dir}",
        "--workdir=out",
    )
    assert result.returncode == 0, result.stderr
    assert "results in out" in result.stdout
    assert "359 test labels" in result.stdout
