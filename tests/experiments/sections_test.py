"""The report is a list of sections, to which others can be added."""

import json

import numpy as np
import pytest

import softmax_jax
from runs import row_plots, sections, settings, train_run

pytestmark = pytest.mark.slow

CONFIG = settings.Train(data=settings.Data(name="classroom"), duration="1 epoch")


def largest_weight(params, trained):
    """A section of this test's own."""
    largest = float(np.max(np.abs(params.w)))
    return sections.Section(
        "Largest weight",
        "Of all classes.",
        {"largest": row_plots.learning_curve(trained.rows, "loss")},
        name="largest_weight",
        scores={"largest": largest},
        cells=[["weight", "rows"], [f"{largest:.3f}", f"{len(trained.test_data.x)}"]],
        notes=["Weights < 10 are small."],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sections")
    parts = (*sections.SECTIONS, largest_weight)
    return workdir, train_run.train(CONFIG, workdir, sections=parts)


def test_a_further_section_is_in_the_summary(run):
    workdir, summary = run
    largest = np.max(np.abs(softmax_jax.load(workdir).params.w))
    assert summary["largest_weight"] == {"largest": pytest.approx(largest)}
    assert json.loads((workdir / "summary.json").read_text()) == summary


def test_a_further_section_is_the_last_of_the_report(run):
    workdir, summary = run
    page = (workdir / "report.html").read_text()
    titles = [part.split("</h2>")[0] for part in page.split("<h2>")[1:]]
    assert titles[-3:] == ["Largest weight", "Environment", "Config"]
    assert titles[:4] == ["Curves", "Weights", "Confusion", "Calibration"]
    assert f"{summary['largest_weight']['largest']:.3f}</td>" in page
    assert "<p>Weights &lt; 10 are small.</p>" in page


def test_its_picture_is_a_result_whose_loss_is_noticed(run, tmp_path):
    workdir, summary = run
    assert (workdir / "largest.png").read_bytes().startswith(b"\x89PNG")
    assert "largest.png" in summary["digests"]


def test_a_run_without_sections_has_scores_still(tmp_path):
    summary = train_run.train(CONFIG, tmp_path, sections=())
    assert "calibration" not in summary
    assert "test accuracy" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob("*.png"))


def test_a_section_cannot_take_the_name_of_another_entry(tmp_path):
    def test_scores(params, trained):
        return sections.Section("Test", name="test", scores={})

    with pytest.raises(ValueError, match="section 'Test': summaries have another entry 'test'"):
        train_run.train(CONFIG, tmp_path, sections=(test_scores,))
