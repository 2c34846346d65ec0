"""Members of a run that are trained at once: steps, evaluations, patience and checkpoints."""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from runs import files, logs, programs, validation
from runs.plan import Plan, digest_of_run
from runs.programs import Event, Programs
from runs.signals import Interrupted
from softmax_jax import checkpoint, metrics, processes
from softmax_jax.training import TrainState


class Group(NamedTuple):
    """Some members of a run, and where their rows and checkpoints go."""

    plan: Plan
    indices: Sequence[int]
    """Numbers of the members."""
    log: logs.Log
    path: pathlib.Path
    """Folder of their checkpoints."""
    folder: checkpoint.Folder
    """The same, opened."""


class Progress(NamedTuple):
    """Training of a group so far; all of it is in checkpoints."""

    step: int
    state: TrainState
    best: validation.Best | None
    """Best steps of the members, if there are validation data."""
    sums: np.ndarray
    """``[3, members]``: loss and accuracy times weight, and weight, since the last row."""
    row_seconds: float
    """Seconds of training at the last row."""
    begun: float
    """Time at which training would have begun, had it never been interrupted."""

    @property
    def seconds(self) -> float:
        """Seconds of training until now."""
        return time.perf_counter() - self.begun

    @property
    def diverged(self) -> np.ndarray:
        """Step at which each member diverged, or -1, see `divergence`."""
        return divergence(self.state, self.best)

    @property
    def is_over(self) -> bool:
        """True if all members have diverged or have stopped."""
        stopped = False if self.best is None else self.best.stopped >= 0
        return bool(((self.diverged >= 0) | stopped).all())


def train(
    plan: Plan,
    indices: Sequence[int],
    state: TrainState,
    compiled: Programs,
    path: pathlib.Path,
    log: logs.Log,
    came: Callable[[], int],
) -> tuple[Progress, float]:
    """Trains some members to their end, from their last checkpoint if there is one.

    Args:
      plan: the run.
      indices: the numbers of the members.
      state: the members at step zero.
      compiled: programs for such states.
      path: the folder of their checkpoints.
      log: takes their rows.
      came: returns the number of the signal that came, or 0.

    Returns:
      The progress, and the seconds of training.

    Raises:
      Interrupted: if a signal came, with all saved that is needed to go on.
      ValueError: if a checkpoint, its data or its rows are not those of this run.
    """
    keep = {"keep_last": plan.config.keep_last, "keep_best": plan.config.keep_best}
    with checkpoint.open_folder(path, **keep) as folder:
        group = Group(plan, indices, log, path, folder)
        progress = resumed(group, state)
        saved = progress.step
        if progress.is_over:
            return progress, progress.seconds
        silent = not processes.is_first()
        with tqdm(
            total=plan.total, initial=saved, unit="step", desc="training", disable=silent
        ) as bar:
            events = programs.advance(plan, compiled, progress.state, progress.step)
            for event in programs.one_late(events):
                progress, rows = followed(group, progress, event)
                if rows:
                    log.add(rows)
                    bar.set_postfix_str(describe(rows), refresh=False)
                bar.update(event.step - bar.n)
                if (progress.diverged >= 0).all():
                    break
                if event.is_save or event.step == plan.total or progress.is_over:
                    saved = save(group, progress)
                if progress.is_over:
                    break
                if came() and event.step < plan.total:
                    if saved < event.step:
                        save(group, progress)
                    checkpoint.finish(folder)
                    raise Interrupted(came())
        return progress, progress.seconds


def resumed(group: Group, state: TrainState) -> Progress:
    """Returns the progress at the last checkpoint, or at step zero; drops the rows after it."""
    plan, log, path = group.plan, group.log, group.path
    members = len(group.indices)
    best = None
    if plan.validation_data is not None:
        best = validation.begin(state.params, members)
    restored = checkpoint.restore(group.folder, state if best is None else (state, best))
    if not restored:
        log.forget(group.indices, after_step=0)
        now = time.perf_counter()
        return Progress(0, state, best, np.zeros((3, members)), row_seconds=0.0, begun=now)
    step, found, extra = restored
    state, best = (found, None) if best is None else found
    if extra["run"] != digest_of_run(plan, group.indices) or int(state.step) != step:
        raise ValueError(
            f"the checkpoint of step {step:,} in {path} is not of this run: put its own "
            "back, or give another --workdir"
        )
    if extra["data"] != plan.data_digest:
        raise ValueError(
            f"the data are not those that {log.workdir} was trained on until step "
            f"{step:,}: put those back, or give another --workdir"
        )
    log.require(group.indices, up_to_step=step, number=extra["rows"])
    print(f"going on from step {step:,} of {plan.total:,}")
    log.forget(group.indices, after_step=step)
    return Progress(
        step,
        state,
        best,
        np.array(extra["sums"]),
        row_seconds=extra["row_seconds"],
        begun=time.perf_counter() - extra["seconds"],
    )


def save(group: Group, progress: Progress) -> int:
    """Writes a checkpoint, and the rows before it to disk; returns its step."""
    group.log.flush()
    step, state, best = progress.step, progress.state, progress.best
    checkpoint.save(
        group.folder,
        step,
        state if best is None else (state, best),
        extra={
            "sums": progress.sums.tolist(),
            "seconds": progress.seconds,
            "row_seconds": progress.row_seconds,
            "rows": group.log.number(group.indices, up_to_step=step),
            "data": group.plan.data_digest,
            "run": digest_of_run(group.plan, group.indices),
        },
        score=group.log.lowest_loss(group.indices, step),
    )
    return step


def followed(group: Group, before: Progress, event: Event) -> tuple[Progress, list[dict[str, Any]]]:
    """Returns the progress after an event, and if it is an evaluation the rows to write down."""
    progress = before._replace(step=event.step, state=event.state, sums=added(before.sums, event))
    if event.test is None:
        return progress, []
    seconds, best = progress.seconds, progress.best
    rows = make_rows(group, progress, event, seconds)
    progress = progress._replace(row_seconds=seconds, sums=np.zeros_like(progress.sums))
    if best is None:
        return progress, rows
    # A member that stops at this step has a row of it, and none after.
    rows_of_going = [row for row, at in zip(rows, best.stopped, strict=True) if at < 0]
    best = validation.update(
        best,
        event.state.params,
        np.array(list(map(logs.loss, rows))),
        step=event.step,
        patience=group.plan.patience,
    )
    return progress._replace(best=best), rows_of_going


def make_rows(
    group: Group, progress: Progress, event: Event, seconds: float
) -> list[dict[str, Any]]:
    """Returns a row for each member: of the steps since the last one, and of the test data."""
    epoch, sums, diverged = event.step / group.plan.epoch, progress.sums, progress.diverged
    splits = {"test": event.test, "validation": event.validation}
    splits = {name: with_member_axis(a) for name, a in splits.items() if a is not None}
    rows = []
    for i, member in enumerate(group.indices):
        loss, accuracy, weight = sums[:, i]
        scores: dict[str, Any] = {}
        for name, some in splits.items():
            found = metrics.summarize(metrics.total(jax.tree.map(lambda a, i=i: a[i], some)))
            scores[f"{name}_loss"] = files.finite_or_none(found["nats"])
            scores[f"{name}_accuracy"] = found["accuracy"]
        rows.append(
            {
                "epoch": int(epoch) if epoch == int(epoch) else epoch,
                "step": event.step,
                "member": member,
                "train_loss": files.finite_or_none(loss / weight),
                "train_accuracy": files.finite_or_none(accuracy / weight),
                **scores,
                "diverged_at_step": int(diverged[i]) if diverged[i] >= 0 else None,
                "seconds": seconds,
                "examples_per_second": weight
                * len(group.indices)
                / max(seconds - progress.row_seconds, 1e-9),
            }
        )
    return rows


def with_member_axis(test: Any) -> Any:
    """Returns the sums of blocks ``[blocks]`` of a run alone as ``[1, blocks]``."""
    alone = np.ndim(test.weight) == 1
    return jax.tree.map(lambda a: np.asarray(a)[None] if alone else np.asarray(a), test)


def added(sums: np.ndarray, event: Event) -> np.ndarray:
    """Adds the steps of the event to the sums, one after the other, so that cuts change nothing."""
    loss, accuracy, weight = (
        np.atleast_2d(np.asarray(a, np.float64))[:, event.taken] for a in event.steps
    )
    terms = np.stack([loss * weight, accuracy * weight, weight])
    return np.cumsum(np.concatenate([sums[:, :, None], terms], axis=2), axis=2)[:, :, -1]


def divergence(state: TrainState, best: validation.Best | None) -> np.ndarray:
    """Returns the step at which each member diverged, or -1, also if it had stopped before.

    The members of a sweep that have stopped are trained on with the others, to no effect.
    """
    diverged = np.atleast_1d(np.asarray(state.diverged))
    if best is None:
        return diverged
    return np.where((best.stopped >= 0) & (best.stopped <= diverged), -1, diverged)


def describe(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the scores for the progress bar: of the run, or of the best of the members."""
    best = min(rows, key=logs.loss)
    split = logs.split(best)
    loss = "none" if best[f"{split}_loss"] is None else f"{best[f'{split}_loss']:.4f}"
    if len(rows) > 1:
        return f"{len(rows)} members, lowest {split} loss {loss} nats"
    return f"{split} loss {loss} nats, {split} accuracy {best[f'{split}_accuracy']:.4f}"
