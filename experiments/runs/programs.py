"""The compiled programs of a run, and training with them as a stream of events."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from runs.plan import Plan
from softmax_jax import ensemble, evaluation, metrics, model, parallel, processes, training
from softmax_jax.training import StepMetrics, TrainState

T = TypeVar("T")


class Programs(NamedTuple):
    """Compiled programs, for members of a sweep that are trained at once, or for a run alone."""

    advance: Callable[..., tuple[TrainState, StepMetrics]]
    measure: Callable[..., metrics.Metrics]
    """Measures parameters on the test data."""
    validate: Callable[..., metrics.Metrics] | None
    """Measures parameters on the validation data, if there are such."""


class Seconds(NamedTuple):
    """Times before the first step."""

    trace: float
    """Tracing of the functions, and lowering: work of Python, in each process."""
    compile: float
    """Compilation by XLA, or reading from the cache what it compiled before."""


class Event(NamedTuple):
    """Training after some steps; its arrays are on the device and not waited for."""

    step: int
    state: TrainState
    steps: StepMetrics
    """Scores of the steps of an epoch; with an axis of members in front if there are several."""
    taken: slice
    """Steps of the epoch that were taken since the last event."""
    test: metrics.Metrics | None
    """Sums over the test data, if it is time to evaluate."""
    validation: metrics.Metrics | None
    """Sums over the validation data, if there are such and it is time."""
    is_save: bool
    """Whether it is time for a checkpoint."""


def first_state(plan: Plan, indices: Sequence[int]) -> TrainState:
    """Returns the state before the first step: stacked, or of a run alone as it is."""
    states = []
    for i in indices:
        member = plan.members[i]
        init_key, _ = jax.random.split(jax.random.key(member.init_seed))
        _, order_key = jax.random.split(jax.random.key(member.order_seed))
        params = model.init(
            init_key, num_features=plan.train_data.x.shape[1], num_classes=plan.num_classes
        )
        states.append(
            training.init(
                params,
                plan.optimizer,
                key=order_key,
                learning_rate=member.learning_rate,
                l2=member.l2,
                label_smoothing=member.label_smoothing,
            )
        )
    if len(plan.members) > 1:
        states = [ensemble.stack(states, shared_order=plan.shared_order)]
    return parallel.laid_out(states[0], plan.num_classes)


def compiled(plan: Plan, state: TrainState) -> tuple[Programs, Seconds]:
    """Compiles the programs for states like this one; returns what that took, too."""
    start = time.perf_counter()
    batch_size = plan.config.batch_size
    if len(plan.members) == 1:
        epoch = training.make_epoch(plan.optimizer, batch_size=batch_size, parts=plan.config.parts)
        measure = jax.jit(evaluation.measure_blocks)
    else:
        epoch = ensemble.make_epoch(
            plan.optimizer,
            batch_size=batch_size,
            shared_order=plan.shared_order,
            parts=plan.config.parts,
        )
        measure = jax.jit(jax.vmap(evaluation.measure_blocks, in_axes=(0, None)))
    lowered = [
        epoch.lower(state, plan.train_data, np.int32(0)),
        measure.lower(state.params, plan.test_data),
    ]
    if plan.validation_data is not None:
        lowered.append(measure.lower(state.params, plan.validation_data))
    traced = time.perf_counter()
    programs = [program.compile() for program in lowered]
    seconds = Seconds(traced - start, time.perf_counter() - traced)
    return Programs(*programs, *[None] * (3 - len(programs))), seconds


def advance(plan: Plan, programs: Programs, state: TrainState, step: int) -> Iterator[Event]:
    """Trains to the end, and yields events, none of them waited for.

    What is asked for at once takes about a second, so that signals and the clock are looked at as
    often; where an epoch is cut changes nothing.
    """
    begun = time.perf_counter()

    def clock() -> float:
        # Of the first process, as all have to take the same steps.
        return float(processes.from_first(np.float32(time.perf_counter() - begun)))

    saved = asked = 0.0
    most = 64
    while step < plan.total:
        stops = [plan.total, step + most, next_multiple(step, plan.epoch)]
        stops.append(next_multiple(step, plan.evaluate))
        if plan.save is not None:
            stops.append(next_multiple(step, plan.save))
        stop = min(stops)
        state, steps = programs.advance(state, plan.train_data, np.int32(stop))
        taken = slice(step % plan.epoch, step % plan.epoch + stop - step)
        is_evaluation = stop % plan.evaluate == 0 or stop == plan.total
        test = programs.measure(state.params, plan.test_data) if is_evaluation else None
        held = None
        if is_evaluation and programs.validate is not None:
            held = programs.validate(state.params, plan.validation_data)
        is_save = plan.save is not None and stop % plan.save == 0
        now = clock()
        # With a test loss, by which the best are kept, unless that takes as long again.
        if now - saved > plan.save_seconds * (1 if is_evaluation else 2):
            is_save, saved = True, now
        if now - asked > 2:
            most = max(most // 2, 1)
        elif now - asked < 0.5 and stop - step == most:
            most *= 2
        step, asked = stop, now
        yield Event(step, state, steps, taken, test, held, is_save)


def next_multiple(step: int, of: int) -> int:
    """Returns the first multiple above ``step``."""
    return (step // of + 1) * of


def one_late(iterator: Iterator[T]) -> Iterator[T]:
    """Yields the same items, each after the next one was asked for.

    The device so has something to do while an item is written down.
    """
    nothing = object()
    previous: Any = nothing
    for item in iterator:
        if previous is not nothing:
            yield previous
        previous = item
    if previous is not nothing:
        yield previous


def unstacked(state: TrainState, members: int) -> list[TrainState]:
    """Returns the states of a group one by one, on the host, without step and key."""
    own: Any = {"step": None, "key": None}
    host = processes.on_host(state._replace(**own))
    if members == 1 and host.diverged.ndim == 0:
        return [host]
    return [jax.tree.map(lambda a, i=i: a[i], host) for i in range(members)]
