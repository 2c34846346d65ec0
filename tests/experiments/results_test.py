import html.parser
import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from runs import logs, report, settings


@pytest.fixture(scope="module")
def run(digits_run):
    return digits_run[1:]


class Page(html.parser.HTMLParser):
    """A parser of a page, which sees whether its tags close."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(run):
    page = Page()
    page.feed((run[0] / "report.html").read_text())
    return page


@pytest.mark.slow
def test_the_page_is_well_formed(page):
    assert page.open == []


@pytest.mark.slow
def test_the_page_needs_nothing_but_itself(page):
    assert len(page.sources) == 8
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)


@pytest.mark.slow
def test_the_page_has_scores_environment_and_config(run, page):
    text = " ".join(page.text)
    summary = run[1]
    assert f"{summary['test']['accuracy']:.4f}" in text
    for word in ("jax", "device", "git revision", "command", "compilation", "examples a second"):
        assert word in text
    assert "evaluate_every" in text
    assert "sweep.memory" in text


def test_the_page_has_the_calibration(run, page):
    scores = run[1]["calibration"]
    assert scores["examples"] == 179
    assert scores["scaled"]["nats"] < 1.1 * scores["as_trained"]["nats"]
    text = " ".join(page.text)
    assert f"temperature {scores['temperature']:.3f}" in text
    assert f"{scores['as_trained']['expected_error']:.4f}" in text


def test_what_a_config_holds_is_escaped(run, tmp_path):
    config = settings.Train(data=settings.Data(name="<script>.npz"))
    report.write_unfinished(config, tmp_path, [])
    text = (tmp_path / "report.html").read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_the_environment_is_in_the_summary(run):
    about = run[1]["environment"]
    assert {"device", "python", "jax", "git revision", "command"} <= set(about)


def test_times_are_apart(run):
    summary = run[1]
    assert summary["trace_seconds"] > 0
    assert summary["compile_seconds"] > 0
    assert summary["train_seconds"] > 0
    assert summary["examples_per_second"] > 0


def events(workdir):
    """Tag, step and value of TensorBoard's scalars: records of length, checksum, data, checksum."""
    found = []
    for path in sorted(workdir.glob("events.out.tfevents*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            at += 12 + length + 4
    return found


def test_tensorboard_has_what_metrics_jsonl_has(run):
    rows = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    found = {(tag, step): value for tag, step, value in events(run[0])}
    assert len(found) == len(rows) * len(logs.SCALARS)
    for row in rows:
        for name in logs.SCALARS:
            assert found[name, row["step"]] == pytest.approx(row[name], rel=1e-6)
