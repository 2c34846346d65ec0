"""Training of a run or a sweep: from a config to what is left in its folder."""

import contextlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from runs import (
    datasets,
    ends,
    folders,
    group,
    logs,
    plan,
    programs,
    report,
    results,
    settings,
    signals,
    summaries,
)
from runs.plan import Plan
from runs.scores import End
from runs.sections import SECTIONS, Run
from softmax_jax import processes


def train(
    config: settings.Train,
    workdir: pathlib.Path,
    *,
    sections: Sequence[Run] = SECTIONS,
    came: Callable[[], int] | None = None,
) -> dict[str, Any]:
    """Runs an experiment, or what is left of it.

    Args:
      config: the settings.
      workdir: folder of the run, a new or an empty one, or that of a run with the same settings.
      sections: parts of the report.
      came: returns the number of a signal that asks the run to end, or 0; by default the signals
        that the process gets.

    Returns:
      The summary, which is also in summary.json.

    Raises:
      ValueError: if settings and data do not go together, or the folder has a run of others.
      FloatingPointError: if all members diverged.
      signals.Interrupted: if a signal came; all is saved that is needed to go on.
    """
    config = settings.with_parts(config)
    folders.refuse_another_config(config, workdir)
    run = plan.make(config, datasets.load(config.data))
    with folders.claimed(config, workdir):
        earlier = summaries.of_finished(workdir)
        if earlier is not None and earlier["data"] != run.data_digest:
            raise ValueError(
                f"the data are not those of the finished run in {workdir}: put those back, or give "
                "another --workdir"
            )
        if earlier is not None:
            print(f"{workdir} is finished already")
            return earlier
        noted = signals.signals_noted() if came is None else contextlib.nullcontext(came)
        with logs.open_log(workdir, alone=len(run.members) == 1) as log, noted as latest:
            try:
                trained, about = train_members(run, log, processes.agreed(latest))
            except signals.Interrupted:
                report.write_unfinished(config, workdir, log.rows)
                raise
        if all(end.diverged_at_step is not None for end in trained):
            reason = ends.explain(run, trained)
            report.write_unfinished(config, workdir, log.rows, reason)
            raise FloatingPointError(reason)
        return results.write(run, workdir, trained, log.rows, about, sections)


def train_members(
    run: Plan, log: logs.Log, came: Callable[[], int]
) -> tuple[list[End], dict[str, Any]]:
    """Trains all members, in groups if they must be; returns their ends, and times and steps."""
    groups = plan.groups(run)
    if len(groups) > 1:
        print(
            f"{len(run.members)} members in groups of up to {len(groups[0])}, as "
            f"config.sweep.memory={run.config.sweep.memory:g} GiB are not enough for all at once"
        )
    trace_seconds = compile_seconds = train_seconds = 0.0
    # Groups of one size share their programs.
    compiled: dict[int, programs.Programs] = {}
    trained: list[End] = []
    for number, indices in enumerate(groups):
        state = programs.first_state(run, indices)
        if len(indices) not in compiled:
            compiled[len(indices)], seconds_before = programs.compiled(run, state)
            trace_seconds += seconds_before.trace
            compile_seconds += seconds_before.compile
        path = log.workdir / "checkpoints" / (str(number) if len(groups) > 1 else "")
        progress, seconds = group.train(
            run, indices, state, compiled[len(indices)], path, log, came
        )
        train_seconds += seconds
        trained += ends.of_group(run, progress, len(indices))
    examples = sum(plan.examples(run, end.last_step) for end in trained)
    return trained, {
        "trace_seconds": trace_seconds,
        "compile_seconds": compile_seconds,
        "train_seconds": train_seconds,
        "examples_per_second": examples / max(train_seconds, 1e-9),
        "steps": max(end.last_step for end in trained),
        "data": run.data_digest,
    }
