"""Scores of trained members: measured, ranked by the data that decide, and laid out in a table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from runs import files, settings, table
from softmax_jax import evaluation, metrics
from softmax_jax.data import Data
from softmax_jax.model import Params

STOPPING = ("validation", "best_step", "last_step", "why_last")
"""Keys of scores that are there with validation data only."""


class End(NamedTuple):
    """A member at the end of its training."""

    params: Params
    diverged_at_step: int | None
    last_step: int
    """The last step that was taken."""
    why: str
    """Why it was the last."""
    best_step: int | None
    """The step of the parameters, whose validation loss is the lowest; None if nothing is held out
    and the parameters are those of the last step."""


def of_members(
    members: Sequence[settings.Member],
    ends: Sequence[End],
    train_data: Data,
    test_data: Data,
    validation_data: Data | None,
) -> list[dict[str, Any]]:
    """Measures each member on all data that there are."""
    return [
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


def stopping(end: End, validation_data: Data | None) -> dict[str, Any]:
    """Returns the entries of `STOPPING`."""
    if validation_data is None:
        return {}
    held = measured(end.params, validation_data)
    return dict(zip(STOPPING, (held, end.best_step, end.last_step, end.why), strict=True))


def measured(params: Params, batch: Data) -> dict[str, float | None]:
    """Evaluates a model on data; None is a score that is no finite number."""
    found = metrics.summarize(evaluation.evaluate(params, batch))
    return {key: files.finite_or_none(value) for key, value in found.items()}


def best_of(scores: Sequence[Mapping[str, Any]]) -> int:
    """Returns the member with the lowest loss, see `rank`."""
    return min(range(len(scores)), key=lambda i: rank(scores[i]))


def rank(score: Mapping[str, Any]) -> float:
    """Returns the loss that members are compared by; infinite for those that diverged."""
    loss = score[split(score)]["nats"]
    return np.inf if loss is None or score["diverged_at_step"] is not None else loss


def split(score: Mapping[str, Any]) -> str:
    """Returns the data by which members are compared: validation data where there are such."""
    return "validation" if "validation" in score else "test"


def swept(members: Sequence[settings.Member]) -> list[str]:
    """Returns the settings in which the members differ."""
    return [
        key
        for key in settings.Member._fields
        if len({getattr(member, key) for member in members}) > 1
    ]


def cells(members: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns a line of heads, and one a member of a sweep, the best first."""
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
                *(table.brief(member[key]) for key in keys),
                table.digits(member["train"]["nats"]),
                *(
                    [table.digits(member["validation"]["nats"]), f"{member['best_step']}"]
                    if held
                    else []
                ),
                table.digits(member["test"]["nats"]) if at is None else f"diverged at step {at:,}",
                table.digits(member["test"]["accuracy"]),
            ]
        )
    return lines


def held_out_cells(member: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the validation loss of a member, and its best step."""
    return table.digits(member["validation"]["nats"]), f"{member['best_step']}"


def stopped(score: Mapping[str, Any]) -> str:
    """Says which step is the best, and why there were no more."""
    which = "that of no step was measured"
    if score["best_step"] is not None:
        which = f"step {score['best_step']:,} has the lowest validation loss"
    return f"{which}; the last was step {score['last_step']:,}, as {score['why_last']}"
