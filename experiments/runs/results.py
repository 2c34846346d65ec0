"""Results of a finished run: parameters, the sections of its report, and last the summary."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from runs import datasets, environment, gradients, logs, report, scores, summaries, together
from runs.plan import Plan
from runs.sections import Run, Section, Trained
from softmax_jax import io
from softmax_jax.data import Data
from softmax_jax.model import Params


def write(
    plan: Plan,
    workdir: pathlib.Path,
    ends: Sequence[scores.End],
    rows: Sequence[dict[str, Any]],
    about: Mapping[str, Any],
    sections: Sequence[Run],
) -> dict[str, Any]:
    """Measures the models and writes all files, last summary.json, which says the run is whole.

    Args:
      plan: the run.
      workdir: its folder.
      ends: all members, trained.
      rows: the rows of metrics.jsonl.
      about: entries of the summary on the training.
      sections: what to look at, see `runs.sections`.

    Returns:
      The summary.
    """
    measured = scores.of_members(
        plan.members, ends, plan.train_data, plan.test_data, plan.validation_data
    )
    with together.alone():
        return looked_at(plan, workdir, ends, measured, rows, about, sections)


def looked_at(
    plan: Plan,
    workdir: pathlib.Path,
    ends: Sequence[scores.End],
    measured: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    about: Mapping[str, Any],
    sections: Sequence[Run],
) -> dict[str, Any]:
    """Does the part of `write` that is left when the members are measured."""
    best = scores.best_of(measured)
    params = Params(*map(jnp.asarray, ends[best].params))
    test_data = datasets.alone(plan.dataset.test)
    found = summarized(plan, measured, best, params, test_data, about)
    write_params(plan, workdir, [end.params for end in ends], best)
    trained = Trained(plan.dataset, test_data, logs.of_member(rows, best), plan.members, measured)
    parts: list[Section] = [
        part for section in sections if (part := section(params, trained)) is not None
    ]
    for part in parts:
        if part.scores is not None:
            if part.name in found:
                raise ValueError(
                    f"section {part.title!r}: summaries have another entry {part.name!r}"
                )
            found[part.name] = part.scores
    report.write(plan.config, workdir, found, parts)
    pictures = itertools.chain.from_iterable(part.pictures for part in parts)
    names = ("config.json", "metrics.jsonl", io.PARAMS, "report.html")
    return summaries.write(workdir, found, (*names, *(f"{name}.png" for name in pictures)))


def summarized(
    plan: Plan,
    measured: Sequence[dict[str, Any]],
    best: int,
    params: Params,
    test_data: Data,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the summary less what sections add: the scores of the best member, and of all."""
    member = plan.members[best]
    check = gradients.check_model(
        params, test_data, l2=member.l2, label_smoothing=member.label_smoothing
    )
    found = {
        "train": measured[best]["train"],
        "test": measured[best]["test"],
        **{key: measured[best][key] for key in scores.STOPPING if key in measured[best]},
        "gradient_check": dataclasses.asdict(check),
        **about,
        "environment": environment.describe(),
    }
    if len(measured) > 1:
        found |= {"best_member": best, "members": measured}
    return found


def write_params(plan: Plan, workdir: pathlib.Path, models: Sequence[Params], best: int) -> None:
    """Writes params.npz; of a sweep all members, each with its settings."""
    if len(models) == 1:
        datasets.save_params(workdir, plan.dataset, models[0])
        return
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *models)
    names = type(plan.members[0])._fields
    about = {name: [getattr(member, name) for member in plan.members] for name in names}
    datasets.save_params(workdir, plan.dataset, stacked, best=best, about=about)
