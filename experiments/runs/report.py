"""The report of a run: report.html, which needs nothing but itself."""

import dataclasses
import html
import json
import pathlib
import string
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from runs import environment, files, logs, scores, sections, settings, table
from runs.sections import Section
from softmax_jax import figures
from softmax_jax.io import write_atomically


def write(
    config: settings.Train,
    workdir: pathlib.Path,
    summary: Mapping[str, Any],
    parts: Sequence[Section],
) -> None:
    """Writes the report of a finished run, and the pictures of its sections as PNG."""
    page, whose = [], ""
    if "validation" in summary:
        page.append(paragraph(sentence(scores.stopped(summary))))
    if "members" in summary:
        by = scores.split(summary)
        whose = f"Member {summary['best_member']}, which has the lowest {by} loss. "
        page.append(paragraph(whose))
    page.append(score_cards(summary))
    page += [shown(part, workdir, whose) for part in parts if part.pictures or part.cells]
    about = {
        **summary["environment"],
        "tracing": f"{summary['trace_seconds']:.2f} s",
        "compilation": f"{summary['compile_seconds']:.2f} s",
        "training": f"{summary['train_seconds']:.2f} s, without compilation",
        "examples a second": f"{summary['examples_per_second']:,.0f}",
    }
    write_page(config, workdir, page, about)


def write_unfinished(
    config: settings.Train, workdir: pathlib.Path, rows: Sequence[dict[str, Any]], reason: str = ""
) -> None:
    """Writes where a run stands that was stopped, or the reason why it cannot be finished."""
    page = [f"<p><strong>This run is not finished.</strong> {html.escape(reason)}</p>"]
    if rows:
        latest = logs.standings(rows)
        best = latest[0]["member"]
        cells = so_far(settings.members(config), latest)
        page.append(headed("So far", table.as_html(cells)))
        whose = f"Member {best}. " if len(latest) > 1 else ""
        part = sections.learning_curves(logs.of_member(rows, best))
        page.append(shown(part, workdir, whose))
    write_page(config, workdir, page, environment.describe())


def so_far(
    members: Sequence[settings.Member], latest: Sequence[Mapping[str, Any]]
) -> list[list[str]]:
    """Returns a line of heads, and one a member with its settings and scores so far."""
    keys = scores.swept(members)
    some = ("train_loss", "validation_loss", "test_loss", "test_accuracy")
    names = [name for name in some if name in latest[0]]
    heads = [key.replace("_", " ") for key in ("member", "step", *keys, *names)]
    cells = [[*heads, ""]]
    for row in latest:
        at = row["diverged_at_step"]
        member = members[row["member"]]
        cells.append(
            [
                f"{row['member']}",
                f"{row['step']:,}",
                *(table.brief(getattr(member, key)) for key in keys),
                *(table.digits(row[name]) for name in names),
                "" if at is None else f"diverged at step {at:,}",
            ]
        )
    return cells


def shown(part: Section, workdir: pathlib.Path, whose: str) -> str:
    """Writes the pictures of a section, and returns its HTML."""
    body = paragraph((whose if part.of_one_member else "") + part.caption)
    for name, figure in part.pictures.items():
        content = figures.to_png(figure)
        write_atomically(workdir / f"{name}.png", content)
        encoded = b64encode(content).decode()
        body += f'<img alt="{name}" src="data:image/png;base64,{encoded}">'
    body += table.as_html(part.cells) if part.cells else ""
    return headed(part.title, body + "".join(paragraph(note) for note in part.notes if note))


def write_page(
    config: settings.Train, workdir: pathlib.Path, page: Sequence[str], about: Mapping[str, Any]
) -> None:
    """Writes report.html: its parts, the environment and the config."""
    flat = files.flat(json.loads(files.to_json(dataclasses.asdict(config))))
    page = [
        *page,
        headed("Environment", table.pairs_as_html(about)),
        headed("Config", table.pairs_as_html(flat)),
    ]
    title = html.escape(f"{config.title}: {workdir.resolve().name}")
    content = PAGE.substitute(title=title, body="\n".join(page))
    # The name of a folder need not be whole characters.
    write_atomically(workdir / "report.html", content.encode(errors="backslashreplace"))


def paragraph(text: str) -> str:
    """Returns text as a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def headed(title: str, body: str) -> str:
    """Returns HTML under a title."""
    return f"<h2>{html.escape(title)}</h2>\n{body}"


def sentence(text: str) -> str:
    """Returns text with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def score_cards(summary: Mapping[str, Any]) -> str:
    """Returns the scores at a glance."""
    test = summary["test"]
    held = summary.get("validation")
    cards = [
        ("test accuracy", table.digits(test["accuracy"])),
        ("test loss, nats", table.digits(test["nats"])),
        ("test loss, bits", table.digits(test["bits"])),
        ("train loss, nats", table.digits(summary["train"]["nats"])),
        *([] if held is None else [("validation loss, nats", table.digits(held["nats"]))]),
    ]
    body = "".join(f'<div class="card"><b>{value}</b>{name}</div>' for name, value in cards)
    return f'<div class="cards">{body}</div>'


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
