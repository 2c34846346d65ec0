"""What is left of a run: parameters, pictures, the summary, and report.html to look at them."""

import dataclasses
import hashlib
import html
import importlib.metadata
import json
import pathlib
import platform
import shlex
import string
import subprocess
import sys
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from runs import datasets, files, gradients, logs, reliability, settings
from softmax_jax import data, figures, io, losses, metrics, model, training
from softmax_jax.data import Data, blocks, features
from softmax_jax.model import Params

PACKAGES = ("softmax_jax", "jax", "jaxlib", "optax", "numpy", "orbax-checkpoint")
SURPRISING = 12


class End(NamedTuple):
    """What came of the training of a member."""

    params: Params
    diverged_at_step: int | None
    last_step: int
    """The last one taken."""
    why: str
    """Why it was the last."""
    best_step: int | None
    """The step that the parameters are of, as its validation loss is the lowest; None if nothing
    is held out, and they are of the last."""


def write(
    config: settings.Train,
    workdir: pathlib.Path,
    dataset: data.Dataset,
    train_data: Data,
    test_data: Data,
    validation_data: Data | None,
    ends: Sequence[End],
    rows: Sequence[dict[str, Any]],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Measures the models, and writes all that, last the summary, which says the run is whole.

    It has digests of the other files, and of itself, for `read_summary`.

    Args:
      config: of the run.
      workdir: where to.
      dataset: the names of its classes and the shape of its images.
      train_data: to measure on.
      test_data: to measure on.
      validation_data: to choose the best member by, if there are such.
      ends: of all members.
      rows: of metrics.jsonl.
      about: the training, for the summary, which is returned.
    """
    members = settings.members(config)
    scores = [
        {
            "member": i,
            **member._asdict(),
            "diverged_at_step": end.diverged_at_step,
            "train": measured(end.params, train_data),
            "test": measured(end.params, test_data),
            **stopping(end, validation_data),
        }
        for i, (member, end) in enumerate(zip(members, ends, strict=True))
    ]
    best = min(range(len(scores)), key=lambda i: rank(scores[i]))
    params, member = Params(*map(jnp.asarray, ends[best].params)), members[best]
    check = gradients.check_model(
        params, test_data, l2=member.l2, label_smoothing=member.label_smoothing
    )
    summary: dict[str, Any] = {
        "train": scores[best]["train"],
        "test": scores[best]["test"],
        **{key: scores[best][key] for key in STOPPING if key in scores[best]},
        "gradient_check": dataclasses.asdict(check),
        **about,
        "environment": environment(),
    }
    if len(members) > 1:
        summary |= {"best_member": best, "members": scores}
    write_params(workdir, dataset, [end.params for end in ends], members, best)
    most = reliability.MOST_LOGITS // len(dataset.class_names)
    logits = logits_of(params, test_data._replace(x=test_data.x[:most]))
    found = reliability.calibrated(logits, np.asarray(test_data.targets)[:most])
    summary["calibration"] = found.scores
    confusion = np.asarray(training.evaluate(params, test_data, confusion=True).confusion)
    pictures = {
        "loss": figures.learning_curve(of_member(rows, best), "loss"),
        "accuracy": figures.learning_curve(of_member(rows, best), "accuracy"),
        "confusion": figures.confusion_matrix(confusion, dataset.class_names),
        **found.pictures,
    }
    if dataset.image_shape is not None:
        pictures["weights"] = figures.weight_images(
            params.w, dataset.image_shape, dataset.class_names
        )
        pictures["surprising"] = surprising(params, dataset, test_data)
    if len(members) > 1:
        pictures["sweep"] = figures.sweep_map(scores, swept(members))
    for name, figure in pictures.items():
        files.write_picture(workdir / f"{name}.png", figure)
    write_report(config, workdir, rows, summary)
    written = ("config.json", "metrics.jsonl", io.PARAMS, "report.html")
    summary["digests"] = {
        name: digest_of_file(workdir / name)
        for name in (*written, *(f"{name}.png" for name in pictures))
    }
    summary["digest"] = digest(summary)
    files.write_json(workdir / "summary.json", summary)
    return summary


def digest(summary: Mapping[str, Any]) -> str:
    """Of the values of a summary, as JSON has them."""
    return hashlib.sha256(json.dumps(summary, sort_keys=True).encode()).hexdigest()


def digest_of_file(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_summary(workdir: pathlib.Path) -> dict[str, Any]:
    """The summary of a finished run, as it was written.

    Raises:
      FileNotFoundError: if it is gone.
      ValueError: if it is damaged, or was changed.
    """
    path = workdir / "summary.json"
    try:
        summary = files.read_json(path)
        own = summary.pop("digest")
        is_own = own == digest(summary)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise ValueError(f"{path} is damaged") from e
    if not is_own:
        raise ValueError(f"{path} is damaged, or was changed")
    return {**summary, "digest": own}


def changed(workdir: pathlib.Path, summary: Mapping[str, Any]) -> list[str]:
    """The files of a finished run that are not as they were written.

    Raises:
      FileNotFoundError: if one of them is gone.
    """
    return [
        name
        for name, expected in summary["digests"].items()
        if digest_of_file(workdir / name) != expected
    ]


STOPPING = ("validation", "best_step", "last_step", "why_last")
"""Keys of scores, where there are validation data."""


def stopping(end: End, validation_data: Data | None) -> dict[str, Any]:
    """The entries of `STOPPING`."""
    if validation_data is None:
        return {}
    held = measured(end.params, validation_data)
    return dict(zip(STOPPING, (held, end.best_step, end.last_step, end.why), strict=True))


def measured(params: Params, batch: Data) -> dict[str, float | None]:
    scores = metrics.summarize(training.evaluate(params, batch))
    return {key: value if np.isfinite(value) else None for key, value in scores.items()}


def rank(score: Mapping[str, Any]) -> float:
    """By validation loss, or test loss if nothing is held out, and those that diverged last."""
    loss = score[split(score)]["nats"]
    return np.inf if loss is None or score["diverged_at_step"] is not None else loss


def split(score: Mapping[str, Any]) -> str:
    """The data by which members are compared."""
    return "validation" if "validation" in score else "test"


def swept(members: Sequence[settings.Member]) -> list[str]:
    """The settings in which the members differ."""
    return [
        key
        for key in settings.Member._fields
        if len({getattr(member, key) for member in members}) > 1
    ]


def write_params(
    workdir: pathlib.Path,
    dataset: data.Dataset,
    models: Sequence[Params],
    members: Sequence[settings.Member],
    best: int,
) -> None:
    """For `softmax_jax.load`; of a sweep all members, with what they are."""
    several = len(members) > 1
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *models)
    about = {key: [getattr(m, key) for m in members] for key in settings.Member._fields}
    datasets.save_params(
        workdir,
        dataset,
        stacked if several else models[0],
        best=best if several else None,
        about=about if several else {},
    )


def surprising(params: Params, dataset: data.Dataset, test_data: Data) -> Any:
    """The picture of the test examples whose label the model finds least likely."""
    nats = [np.asarray(surprisal(params, part)) for part in in_blocks(test_data)]
    bits = np.concatenate(nats) / np.log(2)
    worst = np.argsort(-bits, kind="stable")[:SURPRISING]
    x = np.asarray(dataset.test.x)[worst]
    part = test_data._replace(x=jnp.asarray(x), targets=test_data.targets[worst])
    guesses = np.asarray(model.probabilities(params, features(part))).argmax(axis=1)
    targets = np.asarray(dataset.test.targets)[worst]
    labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
    return figures.surprising_examples(
        x.reshape(-1, *(dataset.image_shape or ())),
        bits[worst],
        [dataset.class_names[i] for i in labels],
        [dataset.class_names[i] for i in guesses],
    )


@jax.jit
def surprisal(params: Params, batch: Data) -> jax.Array:
    """``[n]`` in nats."""
    return losses.cross_entropy(model.logits(params, features(batch)), batch.targets)


def logits_of(params: Params, batch: Data) -> np.ndarray:
    """``[n, q]`` on the host."""
    parts = [model.logits(params, features(part)) for part in in_blocks(batch)]
    return np.concatenate(list(map(np.asarray, parts)))


def in_blocks(batch: Data) -> list[Data]:
    return [
        batch._replace(x=batch.x[rows], targets=batch.targets[rows])
        for rows in blocks.slices(len(batch.x), blocks.ROWS)
    ]


def environment() -> dict[str, Any]:
    """What a result may depend on besides the config."""
    devices = jax.devices()
    return {
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: version(name) for name in PACKAGES},
        "git revision": revision(),
        "command": shlex.join([pathlib.Path(sys.executable).name, *sys.argv]),
    }


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def revision() -> str:
    """Of the code, with a mark if there are changes that are not committed."""
    folder = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        found = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return found.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def table(summary: Mapping[str, Any]) -> str:
    """The last table of a run."""
    lines = []
    if "members" in summary:
        lines += [members_table(summary), ""]
        by = split(summary)
        lines.append(f"member {summary['best_member']}, which has the lowest {by} loss:")
    splits = ("train", "validation", "test") if "validation" in summary else ("train", "test")
    widths = [max(10, len(name) + 2) for name in splits]
    columns = list(zip(splits, widths, strict=True))
    lines.append(f"{'':18}" + "".join(f"{name:>{width}}" for name, width in columns))
    for name, key in (("loss (nats)", "nats"), ("loss (bits)", "bits"), ("accuracy", "accuracy")):
        cells = (f"{digits(summary[of][key]):>{width}}" for of, width in columns)
        lines.append(f"{name:18}{''.join(cells)}")
    if "validation" in summary:
        lines += ["", stopped(summary)]
    check = gradients.Check(**summary["gradient_check"])
    return "\n".join(
        [
            *lines,
            "",
            f"gradient check    {check}",
            f"time              {summary['train_seconds']:.2f} s of training, "
            f"{summary['examples_per_second']:,.0f} examples/s; "
            f"{summary['compile_seconds']:.2f} s of compilation before",
        ]
    )


def stopped(score: Mapping[str, Any]) -> str:
    """Which step is the best, and why there were no more."""
    which = "that of no step was measured"
    if score["best_step"] is not None:
        which = f"step {score['best_step']:,} has the lowest validation loss"
    return f"{which}; the last was step {score['last_step']:,}, as {score['why_last']}"


def member_cells(members: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line of heads, and one a member of a sweep, the best first."""
    keys = [key for key in settings.Member._fields if len({m[key] for m in members}) > 1]
    held = "validation" in members[0]
    heads = ["member", *(key.replace("_", " ") for key in keys), "train loss"]
    heads += ["validation loss", "best step"] if held else []
    lines = [[*heads, "test loss", "test accuracy"]]
    for member in sorted(members, key=rank):
        at = member["diverged_at_step"]
        lines.append(
            [
                f"{member['member']}",
                *(figures.brief(member[key]) for key in keys),
                digits(member["train"]["nats"]),
                *([digits(member["validation"]["nats"]), f"{member['best_step']}"] if held else []),
                digits(member["test"]["nats"]) if at is None else f"diverged at step {at:,}",
                digits(member["test"]["accuracy"]),
            ]
        )
    return lines


def members_table(summary: Mapping[str, Any], most: int = 10) -> str:
    """The best members of a sweep, and how many diverged."""
    members = summary["members"]
    lines = member_cells(members)
    if len(lines) > most + 1:
        lines = lines[: most + 1]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    diverged = sum(member["diverged_at_step"] is not None for member in members)
    if len(members) > most:
        text.append(f"and {len(members) - most} more in summary.json and report.html")
    if diverged:
        text.append(f"{diverged} of {len(members)} diverged and were left as they were before it")
    return "\n".join(text)


def digits(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def write_report(
    config: settings.Train,
    workdir: pathlib.Path,
    rows: Sequence[dict[str, Any]],
    summary: Mapping[str, Any] | None,
    reason: str = "",
) -> None:
    """report.html, which needs nothing but itself; without a summary, of an unfinished run.

    And why it is not finished, if it is not that it was stopped.
    """
    whose = ""
    if summary is None:
        news = f"<p><strong>This run is not finished.</strong> {html.escape(reason)}</p>"
        sections = [news, *unfinished(config, workdir, rows)]
        if rows:
            best = logs.standings(rows)[0]["member"]
            whose = f"Member {best}. " if len({row["member"] for row in rows}) > 1 else ""
    else:
        sections = [score_cards(summary)]
        if "members" in summary:
            by = split(summary)
            whose = f"Member {summary['best_member']}, which has the lowest {by} loss. "
            sections.insert(0, f"<p>{whose}</p>")
            cells = member_cells(summary["members"])
            caption = "Test loss; of more than two settings, the lowest over the others. "
            caption += "A cross is what diverged."
            shown = f"<p>{caption}</p>{picture(workdir, 'sweep')}{html_table(cells)}"
            sections.append(section("Sweep", shown))
    if summary is not None and "validation" in summary:
        sections.insert(0, f"<p>{html.escape(sentence(stopped(summary)))}</p>")
    for names, title, caption in PICTURES:
        if found := "".join(picture(workdir, name) for name in names):
            if title == "Calibration" and summary is not None:
                scores = summary["calibration"]
                found += html_table(reliability.table(scores))
                notes = (reliability.answers(scores), reliability.diagnosis(scores))
                found += "".join(f"<p>{html.escape(note)}</p>" for note in notes if note)
            sections.append(section(title, f"<p>{whose}{caption}</p>{found}"))
    about = environment() if summary is None else summary["environment"]
    if summary is not None:
        about = {
            **about,
            "compilation": f"{summary['compile_seconds']:.2f} s",
            "training": f"{summary['train_seconds']:.2f} s, without compilation",
            "examples a second": f"{summary['examples_per_second']:,.0f}",
        }
    sections.append(section("Environment", pairs(about)))
    flat = files.flat(json.loads(files.to_json(dataclasses.asdict(config))))
    sections.append(section("Config", pairs(flat)))
    title = html.escape(f"{config.title}: {workdir.resolve().name}")
    page = PAGE.substitute(title=title, body="\n".join(sections))
    # The name of a folder need not be whole characters.
    files.write_atomically(workdir / "report.html", page.encode(errors="backslashreplace"))


# Files, title and caption, in the order of the report.
PICTURES = (
    (("loss", "accuracy"), "Curves", "Training scores are means over the steps before; those on "
     "test data are of the parameters at that time."),
    (("weights",), "Weights", "What speaks for each class (purple) and against it (orange)."),
    (("confusion",), "Confusion", "Test examples by their class and by what was predicted."),
    (("reliability", "reliability_scaled", "risk_coverage"), "Calibration", "Half of the test "
     "examples, by the probability of the predicted class; a temperature was fitted to the others. "
     "Whiskers are where 95% of bootstrap samples are, where outcomes of a bin differ. Last, how "
     "many answers are wrong if only the most confident ones are given."),
    (("surprising",), "Most surprising test examples", "Surprisal: minus the binary logarithm of "
     "the probability that the model gave to the true class."),
)  # fmt: skip

PAGE = string.Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
         max-width: 60rem; margin: 0 auto; padding: 1rem; }
  h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
  h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ccc; }
  .wide { overflow-x: auto; }
  img { max-width: 100%; height: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #eee; }
  th:first-child, td:first-child { text-align: left; }
  table.pairs td { text-align: left; overflow-wrap: anywhere; }
  table.pairs td:first-child { overflow-wrap: normal; color: #555; vertical-align: top; }
  .cards { display: flex; flex-wrap: wrap; gap: .7rem; }
  .card { border: 1px solid #ccc; border-radius: .4rem; padding: .5rem .9rem; }
  .card b { display: block; font-size: 1.4rem; }
  @media (max-width: 40rem) {
    table { font-size: .75rem; }
    th, td { padding: .2rem .25rem; }
  }
</style>
<h1>$title</h1>
$body
</html>
""")


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def section(title: str, body: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n{body}"


def picture(workdir: pathlib.Path, name: str) -> str:
    """The PNG as part of the page, or nothing if there is none."""
    path = workdir / f"{name}.png"
    if not path.exists():
        return ""
    content = b64encode(path.read_bytes()).decode()
    return f'<img alt="{name}" src="data:image/png;base64,{content}">'


def score_cards(summary: Mapping[str, Any]) -> str:
    test = summary["test"]
    held = summary.get("validation")
    cards = [
        ("test accuracy", digits(test["accuracy"])),
        ("test loss, nats", digits(test["nats"])),
        ("test loss, bits", digits(test["bits"])),
        ("train loss, nats", digits(summary["train"]["nats"])),
        *([] if held is None else [("validation loss, nats", digits(held["nats"]))]),
    ]
    body = "".join(f'<div class="card"><b>{value}</b>{name}</div>' for name, value in cards)
    return f'<div class="cards">{body}</div>'


def of_member(rows: Sequence[dict[str, Any]], member: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["member"] == member]


def unfinished(
    config: settings.Train, workdir: pathlib.Path, rows: Sequence[dict[str, Any]]
) -> list[str]:
    """The curves of the best member so far, which are drawn, and where all members stand."""
    if not rows:
        return []
    latest = logs.standings(rows)
    for score in ("loss", "accuracy"):
        curve = figures.learning_curve(of_member(rows, latest[0]["member"]), score)
        files.write_picture(workdir / f"{score}.png", curve)
    members = settings.members(config)
    keys = swept(members)
    some = ("train_loss", "validation_loss", "test_loss", "test_accuracy")
    scores = [score for score in some if score in rows[0]]
    heads = [key.replace("_", " ") for key in ("member", "step", *keys, *scores)]
    cells = [[*heads, ""]]
    for row in latest:
        at = row["diverged_at_step"]
        member = members[row["member"]]
        cells.append(
            [
                f"{row['member']}",
                f"{row['step']:,}",
                *(figures.brief(getattr(member, key)) for key in keys),
                *(digits(row[score]) for score in scores),
                "" if at is None else f"diverged at step {at:,}",
            ]
        )
    return [section("So far", html_table(cells))]


def html_table(lines: Sequence[Sequence[str]]) -> str:
    """With heads in the first line."""

    def row(line: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in line) + "</tr>"

    body = "".join(row(line, "td") for line in lines[1:])
    return f'<div class="wide"><table>{row(lines[0], "th")}{body}</table></div>'


def pairs(items: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in items.items()
    )
    return f'<div class="wide"><table class="pairs">{lines}</table></div>'
