"""Training of a run or a sweep: from a config to what is left in its folder."""

import dataclasses
import hashlib
import pathlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from runs import (
    datasets,
    durations,
    files,
    folders,
    logs,
    optimizers,
    results,
    settings,
    signals,
    validation,
)
from softmax_jax import checkpoint, data, head, metrics, model, training
from softmax_jax.data import Data, blocks
from softmax_jax.training import StepMetrics, TrainState

T = TypeVar("T")


class Run(NamedTuple):
    """All that a run is made of."""

    config: settings.Train
    members: list[settings.Member]
    """One, if nothing is swept."""
    dataset: data.Dataset
    train_data: Data
    test_data: Data
    validation_data: Data | None
    share: optax.Schedule
    """Of the learning rate that a step takes."""
    optimizer: optax.GradientTransformation
    total: int
    """Steps, as are the next three."""
    epoch: int
    evaluate: int
    save: int | None
    """None if it goes by seconds."""
    save_seconds: float
    patience: int
    """In evaluations; 0 if no member stops before its time."""
    data_digest: str
    """By which a run that goes on knows its data."""

    @property
    def num_classes(self) -> int:
        """The q of the data set."""
        return len(self.dataset.class_names)

    @property
    def shared_order(self) -> bool:
        """Whether all members see the same examples at the same time."""
        return len({member.order_seed for member in self.members}) == 1


class Programs(NamedTuple):
    """Compiled, for members of a sweep that are trained at once, or for a run alone."""

    advance: Callable[..., tuple[TrainState, StepMetrics]]
    measure: Callable[..., metrics.Metrics]
    """On test data."""
    validate: Callable[..., metrics.Metrics] | None
    """On validation data, if there are such."""


class Event(NamedTuple):
    """Where training stands after some steps; on the device, and not waited for."""

    step: int
    state: TrainState
    steps: StepMetrics
    """Of the epoch; with an axis of members in front if there are several."""
    taken: slice
    """Those of its steps that were taken since the last event."""
    test: metrics.Metrics | None
    """If it is time to evaluate."""
    validation: metrics.Metrics | None
    """The same, if there are validation data."""
    is_save: bool


def train(config: settings.Train, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs the experiment, or what is left of it; returns what it also writes to summary.json."""
    folders.refuse_another_config(config, workdir)
    run = make_run(config, datasets.load(config.data))
    with folders.claimed(config, workdir):
        summary = earlier_summary(workdir)
        if summary is not None and summary["data"] != run.data_digest:
            raise ValueError(
                f"the data are not those of the finished run in {workdir}: put those back, or give "
                "another --workdir"
            )
        if summary is not None:
            print(f"{workdir} is finished already")
            return summary
        return run_members(run, workdir)


def earlier_summary(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Of a finished run; None if it or other results are gone or changed, with a warning.

    Raises:
      ValueError: if metrics.jsonl was changed, as its rows cannot be made again.
    """
    path = workdir / "summary.json"
    logs.read(workdir / "metrics.jsonl")
    try:
        summary = results.read_summary(workdir)
        changed = results.changed(workdir, summary)
    except FileNotFoundError as e:
        if path.exists():
            warnings.warn(f"{e.filename} is gone: the results are made again", stacklevel=2)
        return None
    except ValueError as e:
        warnings.warn(f"{e}: the results are made again", stacklevel=2)
        return None
    if "metrics.jsonl" in changed:
        raise ValueError(
            f"{workdir / 'metrics.jsonl'} is not as the finished run left it: put it back, or give "
            "another --workdir"
        )
    if changed:
        names = ", ".join(changed)
        warnings.warn(
            f"{names} in {workdir}: damaged, or changed: the results are made again", stacklevel=2
        )
        return None
    return summary


def make_run(config: settings.Train, dataset: data.Dataset) -> Run:
    """Raises ValueError if settings do not go together with the data."""
    validation_data = None
    if config.data.validation:
        dataset, held = validation.hold_out(dataset, config.data.validation, seed=config.seed)
        validation_data = datasets.batch(held)
        print(f"{len(held.x):,} of the training examples are held out for validation")
    train_data, test_data = datasets.batches(dataset)
    n = len(train_data.x)
    sizes = {"batch_size": min(config.batch_size, n), "num_examples": n}
    total = durations.steps(config.duration, **sizes)

    def steps_of(text: str) -> int:
        return durations.steps(text, **sizes, total_steps=total)

    seconds, unit = durations.parse(config.save_every)
    by_clock = unit == "seconds"
    steps = {
        "duration": total,
        "evaluate_every": steps_of(config.evaluate_every),
        "save_every": 1 if by_clock else steps_of(config.save_every),
    }
    for key, number in steps.items():
        if not 1 <= number < 2**31:
            bound = "less than a step" if number < 1 else "more than 2**31 steps"
            raise ValueError(f"config.{key}={getattr(config, key)!r} is {bound}")
    share = optimizers.make_schedule(config.schedule, steps_of)
    return Run(
        config=config,
        members=settings.members(config),
        dataset=dataset,
        train_data=train_data,
        test_data=test_data,
        validation_data=validation_data,
        share=share,
        optimizer=optimizers.make(config.optimizer, share),
        total=total,
        epoch=steps_of("1 epoch"),
        evaluate=steps["evaluate_every"],
        save=None if by_clock else steps["save_every"],
        save_seconds=seconds if by_clock else np.inf,
        patience=config.patience,
        data_digest=datasets.digest(dataset),
    )


def run_members(run: Run, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains all members, in groups if they must be, and writes down what came of it."""
    groups = split(run)
    if len(groups) > 1:
        print(
            f"{len(run.members)} members in groups of up to {len(groups[0])}, as "
            f"config.sweep.memory={run.config.sweep.memory:g} GiB are not enough for all at once"
        )
    compile_seconds = train_seconds = 0.0
    programs: dict[int, Programs] = {}
    ends: list[results.End] = []
    alone = len(run.members) == 1
    with logs.open_log(workdir, alone=alone) as log, signals.signals_noted() as came:
        for number, indices in enumerate(groups):
            start = time.perf_counter()
            state = first_state(run, indices)
            if len(indices) not in programs:
                programs[len(indices)] = compiled(run, state)
            compile_seconds += time.perf_counter() - start
            folder = workdir / "checkpoints" / (str(number) if len(groups) > 1 else "")
            state, best, seconds = run_group(
                run, indices, state, programs[len(indices)], folder, log, came
            )
            train_seconds += seconds
            ends += ends_of(run, unstacked(state, len(indices)), divergence(state, best), best)
    if all(end.diverged_at_step is not None for end in ends):
        reason = explain(run, ends)
        results.write_report(run.config, workdir, log.rows, summary=None, reason=reason)
        raise FloatingPointError(reason)
    about = {
        "compile_seconds": compile_seconds,
        "train_seconds": train_seconds,
        "examples_per_second": sum(examples(run, end.last_step) for end in ends)
        / max(train_seconds, 1e-9),
        "steps": max(end.last_step for end in ends),
        "data": run.data_digest,
    }
    return results.write(
        run.config,
        workdir,
        run.dataset,
        run.train_data,
        run.test_data,
        run.validation_data,
        ends,
        log.rows,
        about,
    )


def split(run: Run) -> list[list[int]]:
    """Groups of members, as even as can be, that fit ``config.sweep.memory``."""
    d, q, batch = run.train_data.x.shape[1], run.num_classes, run.config.batch_size
    params = model.Params(jnp.zeros((d, q)), jnp.zeros(q))
    state = jax.eval_shape(lambda: training.init(params, run.optimizer))
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves((state.params, state.opt_state)))
    # Old and new state and the gradient; logits of a batch, or of a block of test data, and what
    # is computed from them; the rows of a batch, where each member has its own.
    each = 3 * size + 6 * 4 * min(q * max(batch, blocks.ROWS), head.MOST_LOGITS)
    each += 0 if run.shared_order else 8 * batch * d
    most = max(int(min(run.config.sweep.memory * 2**30 / each, len(run.members))), 1)
    number = -(-len(run.members) // most)
    return [part.tolist() for part in np.array_split(np.arange(len(run.members)), number)]


def first_state(run: Run, indices: Sequence[int]) -> TrainState:
    """Of some members, stacked; of a run alone, as it is."""
    states = []
    for i in indices:
        member = run.members[i]
        init_key, _ = jax.random.split(jax.random.key(member.init_seed))
        _, order_key = jax.random.split(jax.random.key(member.order_seed))
        params = model.init(
            init_key, num_features=run.train_data.x.shape[1], num_classes=run.num_classes
        )
        states.append(
            training.init(
                params,
                run.optimizer,
                key=order_key,
                learning_rate=member.learning_rate,
                l2=member.l2,
                label_smoothing=member.label_smoothing,
            )
        )
    if len(run.members) == 1:
        return states[0]
    return training.stack(states, shared_order=run.shared_order)


def compiled(run: Run, state: TrainState) -> Programs:
    """For states like this one."""
    batch_size = run.config.batch_size
    if len(run.members) == 1:
        epoch = training.make_epoch(run.optimizer, batch_size=batch_size)
        measure = jax.jit(training.measure_blocks)
    else:
        epoch = training.make_sweep(
            run.optimizer, batch_size=batch_size, shared_order=run.shared_order
        )
        measure = jax.jit(jax.vmap(training.measure_blocks, in_axes=(0, None)))
    return Programs(
        epoch.lower(state, run.train_data, np.int32(0)).compile(),
        measure.lower(state.params, run.test_data).compile(),
        None
        if run.validation_data is None
        else measure.lower(state.params, run.validation_data).compile(),
    )


def run_group(
    run: Run,
    indices: Sequence[int],
    state: TrainState,
    programs: Programs,
    path: pathlib.Path,
    log: logs.Log,
    came: Callable[[], int],
) -> tuple[TrainState, validation.Best | None, float]:
    """Trains some members to their end, from their last checkpoint if there is one.

    Args:
      run: that they belong to.
      indices: of the members.
      state: at step zero.
      programs: for such states.
      path: of their checkpoints.
      log: for their rows.
      came: the number of the signal that came, or 0.

    Returns:
      The state, what did best on validation data if there are such, and the seconds of training.
    """
    config = run.config
    whose = digest_of_run(run, indices)
    best = None
    if run.validation_data is not None:
        best = validation.begin(state.params, len(indices))

    def all_stopped() -> bool:
        stopped = False if best is None else best.stopped >= 0
        return bool(((divergence(state, best) >= 0) | stopped).all())

    with checkpoint.open_folder(
        path, keep_last=config.keep_last, keep_best=config.keep_best
    ) as folder:
        # Of loss and accuracy times weight, and of weight, since the last row.
        sums = np.zeros((3, len(indices)))
        step, before, row_seconds = 0, 0.0, 0.0
        if restored := checkpoint.restore(folder, state if best is None else (state, best)):
            step, found, extra = restored
            state, best = (found, None) if best is None else found
            sums = np.array(extra["sums"])
            before, row_seconds = extra["seconds"], extra["row_seconds"]
            if extra["run"] != whose or int(state.step) != step:
                raise ValueError(
                    f"the checkpoint of step {step:,} in {path} is not of this run: put its own "
                    "back, or give another --workdir"
                )
            if extra["data"] != run.data_digest:
                raise ValueError(
                    f"the data are not those that {log.workdir} was trained on until step "
                    f"{step:,}: put those back, or give another --workdir"
                )
            log.require(indices, up_to_step=step, number=extra["rows"])
            print(f"going on from step {step:,} of {run.total:,}")
        log.forget(indices, after_step=step)
        start = time.perf_counter()
        saved = step

        def seconds() -> float:
            return before + time.perf_counter() - start

        def save(event: Event) -> int:
            log.flush()
            checkpoint.save(
                folder,
                event.step,
                event.state if best is None else (event.state, best),
                extra={
                    "sums": sums.tolist(),
                    "seconds": seconds(),
                    "row_seconds": row_seconds,
                    "rows": log.number(indices, up_to_step=event.step),
                    "data": run.data_digest,
                    "run": whose,
                },
                score=log.lowest_loss(indices, event.step),
            )
            return event.step

        with tqdm(total=run.total, initial=step, unit="step", desc="training") as bar:
            events = iter(()) if all_stopped() else advance(run, programs, state, step)
            for event in one_late(events):
                state = event.state
                sums = added(sums, event)
                diverged = divergence(state, best)
                if event.test is not None:
                    now = seconds()
                    rows = make_rows(run, event, indices, sums, diverged, now, row_seconds)
                    row_seconds = now
                    sums = np.zeros_like(sums)
                    if best is not None:
                        going = best.stopped < 0
                        best = validation.update(
                            best,
                            state.params,
                            np.array(list(map(logs.loss, rows))),
                            step=event.step,
                            patience=run.patience,
                        )
                        rows = [row for row, goes in zip(rows, going, strict=True) if goes]
                    log.add(rows)
                    bar.set_postfix_str(describe(rows), refresh=False)
                bar.update(event.step - bar.n)
                if (diverged >= 0).all():
                    break
                if event.is_save or event.step == run.total or all_stopped():
                    saved = save(event)
                if all_stopped():
                    break
                if came() and event.step < run.total:
                    if saved < event.step:
                        save(event)
                    checkpoint.finish(folder)
                    results.write_report(config, log.workdir, log.rows, summary=None)
                    raise signals.Interrupted(came())
        return state, best, seconds()


def divergence(state: TrainState, best: validation.Best | None) -> np.ndarray:
    """At which step each member diverged, or -1; what comes after it has stopped does not count.

    The members of a sweep that have stopped are trained on with the others, to no effect.
    """
    diverged = np.atleast_1d(np.asarray(state.diverged))
    if best is None:
        return diverged
    return np.where((best.stopped >= 0) & (best.stopped <= diverged), -1, diverged)


def digest_of_run(run: Run, indices: Sequence[int]) -> str:
    """Of the config and the members, by which a checkpoint is known to be of this run."""
    config = files.to_json(dataclasses.asdict(run.config))
    return hashlib.sha256(config + repr(list(indices)).encode()).hexdigest()


def ends_of(
    run: Run,
    states: Sequence[TrainState],
    diverged: np.ndarray,
    best: validation.Best | None,
) -> list[results.End]:
    """What came of members: with validation data, the parameters of their best steps."""
    ends = []
    for i, state in enumerate(states):
        at, params = int(diverged[i]), model.Params(*state.params)
        last, why, best_step = run.total, f"the duration of {run.config.duration} is over", None
        if best is not None and best.step[i] > 0:
            best_step = int(best.step[i])
            params = model.Params(*(a[i] for a in best.params))
        if best is not None and best.stopped[i] >= 0:
            last = int(best.stopped[i])
            why = f"no lower validation loss in {run.patience} evaluations"
        if at >= 0:
            last, why = at, "it diverged"
        ends.append(results.End(params, at if at >= 0 else None, last, why, best_step))
    return ends


def advance(run: Run, programs: Programs, state: TrainState, step: int) -> Iterator[Event]:
    """Trains to the end; the events, none of them waited for.

    What is asked for at once takes about a second, so that signals and the clock are looked at as
    often; where an epoch is cut changes nothing.
    """
    saved = asked = time.perf_counter()
    most = 64
    while step < run.total:
        stops = [run.total, step + most, next_multiple(step, run.epoch)]
        stops.append(next_multiple(step, run.evaluate))
        if run.save is not None:
            stops.append(next_multiple(step, run.save))
        stop = min(stops)
        state, steps = programs.advance(state, run.train_data, np.int32(stop))
        taken = slice(step % run.epoch, step % run.epoch + stop - step)
        is_evaluation = stop % run.evaluate == 0 or stop == run.total
        test = programs.measure(state.params, run.test_data) if is_evaluation else None
        held = None
        if is_evaluation and programs.validate is not None:
            held = programs.validate(state.params, run.validation_data)
        is_save = run.save is not None and stop % run.save == 0
        now = time.perf_counter()
        # With a test loss, by which the best are kept, unless that takes as long again.
        if now - saved > run.save_seconds * (1 if is_evaluation else 2):
            is_save, saved = True, now
        if now - asked > 2:
            most = max(most // 2, 1)
        elif now - asked < 0.5 and stop - step == most:
            most *= 2
        step, asked = stop, now
        yield Event(step, state, steps, taken, test, held, is_save)


def next_multiple(step: int, of: int) -> int:
    """The first one above ``step``."""
    return (step // of + 1) * of


def added(sums: np.ndarray, event: Event) -> np.ndarray:
    """The sums with the steps of the event, one after the other, so that cuts change nothing."""
    loss, accuracy, weight = (
        np.atleast_2d(np.asarray(a, np.float64))[:, event.taken] for a in event.steps
    )
    terms = np.stack([loss * weight, accuracy * weight, weight])
    return np.cumsum(np.concatenate([sums[:, :, None], terms], axis=2), axis=2)[:, :, -1]


def examples(run: Run, steps: int) -> int:
    """That a member has seen after so many steps."""
    n = len(run.train_data.x)
    epochs, rest = divmod(steps, run.epoch)
    return epochs * n + min(rest * run.config.batch_size, n)


def make_rows(
    run: Run,
    event: Event,
    indices: Sequence[int],
    sums: np.ndarray,
    diverged: np.ndarray,
    seconds: float,
    since: float,
) -> list[dict[str, Any]]:
    """A row for each member: of the steps since the last one, and of the test data."""
    epoch = event.step / run.epoch
    splits = {"test": event.test, "validation": event.validation}
    splits = {name: with_member_axis(a) for name, a in splits.items() if a is not None}
    rows = []
    for i, member in enumerate(indices):
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
                "examples_per_second": weight * len(indices) / max(seconds - since, 1e-9),
            }
        )
    return rows


def with_member_axis(test: Any) -> Any:
    """Blocks ``[blocks]`` of a run alone as ``[1, blocks]``."""
    alone = np.ndim(test.weight) == 1
    return jax.tree.map(lambda a: np.asarray(a)[None] if alone else np.asarray(a), test)


def unstacked(state: TrainState, members: int) -> list[TrainState]:
    """The states of a group one by one, on the host, without step and key."""
    own: Any = {"step": None, "key": None}
    host = jax.device_get(state._replace(**own))
    if members == 1 and host.diverged.ndim == 0:
        return [host]
    return [jax.tree.map(lambda a, i=i: a[i], host) for i in range(members)]


def describe(rows: Sequence[dict[str, Any]]) -> str:
    """For the progress bar: the run, or the best of the members."""
    best = min(rows, key=logs.loss)
    split = logs.split(best)
    loss = "none" if best[f"{split}_loss"] is None else f"{best[f'{split}_loss']:.4f}"
    if len(rows) > 1:
        return f"{len(rows)} members, lowest {split} loss {loss} nats"
    return f"{split} loss {loss} nats, {split} accuracy {best[f'{split}_accuracy']:.4f}"


def explain(run: Run, ends: Sequence[results.End]) -> str:
    """What to do where all members have diverged."""
    step = min(end.last_step for end in ends)
    who = "training" if len(ends) == 1 else f"all {len(ends)} members"

    def lowest(values: Iterable[float]) -> str:
        first, *others = sorted(set(values))
        return f"{first:g} and more" if others else f"{first:g}"

    rate = lowest(member.learning_rate for member in run.members)
    return (
        f"{who} diverged: the loss is no finite number at step {step} (epoch "
        f"{step // run.epoch + 1}), with learning rate {rate}, of which schedule "
        f"{run.config.schedule} takes {float(run.share(step)):.3g} there, and l2 "
        f"{lowest(member.l2 for member in run.members)}; try a third of the learning rate and "
        "another --workdir"
    )


def one_late(iterator: Iterator[T]) -> Iterator[T]:
    """The same items, each handed out after the next one was asked for.

    So that the device has something to do while one of them is written down.
    """
    nothing = object()
    previous: Any = nothing
    for item in iterator:
        if previous is not nothing:
            yield previous
        previous = item
    if previous is not nothing:
        yield previous
