"""Minibatch training: one update step, a whole epoch as one program, evaluation in blocks.

All are pure: the state goes in and comes out, and it has all that a run depends on. What a sweep
varies is in arrays of it, so that a new value compiles nothing and `make_sweep` trains many models
at once; stopped after any step, saved and taken up again, a run goes on as if nothing had been.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from softmax_jax import head, losses, metrics, model
from softmax_jax._dtypes import at_least_float32
from softmax_jax._fork import refuse_broken_process
from softmax_jax.checks import (
    as_array,
    as_real,
    checked_count,
    checked_real,
)
from softmax_jax.data import blocks
from softmax_jax.data.shuffle import permutation
from softmax_jax.data.targets import Ids, SparseTargets, checked, hits, parse, raw
from softmax_jax.data.types import Data, features, formed_on_host
from softmax_jax.loss_options import check_label_smoothing
from softmax_jax.metrics import Metrics
from softmax_jax.model import Params
from softmax_jax.penalty import Penalty


class TrainState(NamedTuple):
    """All that training depends on besides the data, the optimiser and the batch size."""

    step: jax.Array
    """int32; one for all members of a sweep."""
    params: Params
    opt_state: optax.OptState
    key: jax.Array
    """Of the order of the examples, from which and ``step`` each minibatch follows."""
    learning_rate: jax.Array
    """A factor on the updates of the optimiser."""
    l2: jax.Array
    label_smoothing: jax.Array
    diverged: jax.Array
    """int32: the step whose loss or result was not finite, or -1. It and all later ones leave
    parameters and optimiser as they were before it."""


class StepMetrics(NamedTuple):
    """Scores of a batch under the parameters before its step: float32 scalars."""

    loss: jax.Array
    """Mean cross-entropy with the targets as they are given, in nats: as `evaluate` has it."""
    accuracy: jax.Array
    weight: jax.Array
    """Of the batch: the sum of its example weights."""


@jax.transfer_guard("allow")
def init(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array | None = None,
    learning_rate: float | jax.Array = 1.0,
    l2: float | jax.Array = 0.0,
    label_smoothing: float | jax.Array = 0.0,
) -> TrainState:
    """The state before the first step.

    Args:
      params: where to start.
      optimizer: its learning rate, or the shape of its schedule, is multiplied by the one here.
      key: of the order of the examples, for `make_epoch`; by default ``jax.random.key(0)``.
      learning_rate: a factor on the updates.
      l2: see `losses.objective`.
      label_smoothing: see `losses.cross_entropy`.

    Raises:
      ValueError: if ``l2`` is negative or ``label_smoothing`` outside [0, 1].
      RuntimeError: in a process that was forked after its parent had used JAX.
    """
    if not isinstance(l2, jax.core.Tracer) and not l2 >= 0:
        raise ValueError(f"l2 must not be negative, got {l2}")
    check_label_smoothing(label_smoothing)
    refuse_broken_process()
    params = Params(as_real(params.w, "params.w"), as_real(params.b, "params.b"))
    with jax.numpy_dtype_promotion("standard"):  # as optax expects
        opt_state = optimizer.init(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=opt_state,
        key=jax.random.key(0) if key is None else key,
        learning_rate=jnp.asarray(learning_rate, jnp.float32),
        l2=jnp.asarray(l2, jnp.float32),
        label_smoothing=jnp.asarray(label_smoothing, jnp.float32),
        diverged=jnp.full((), -1, jnp.int32),
    )


class Program:
    """A jitted function of a state and a batch, which are made fit for JAX before it sees them.

    Host arrays become JAX arrays of the same numbers: 64-bit integers are not wrapped, class ids
    are looked at. What JAX has already passes as it is; an id out of range in it makes the loss
    NaN, and so the step diverges.
    """

    def __init__(self, function: Callable) -> None:
        self._jitted = jax.jit(function)

    @jax.transfer_guard("allow")
    def __call__(self, state: TrainState, batch: Data, *stop: Any) -> Any:
        """Runs it."""
        return self._jitted(state, _admitted(state.params, batch, look=False), *stop)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """See `jax.jit`."""
        return self._jitted.lower(*arguments)


def _admitted(params: Params, batch: Data, *, look: bool) -> Data:
    """The batch as JAX reads it rightly; told to ``look``, ids on the device are checked too."""
    batch = formed_on_host(batch)
    x, targets = checked_real(batch.x, "x"), batch.targets
    arrays = targets if isinstance(targets, SparseTargets) else (targets,)
    if look or not all(isinstance(a, jax.Array) for a in arrays):
        if not isinstance(targets, SparseTargets):
            targets = as_array(targets, "targets")
        if x.shape[:1] == jnp.shape(arrays[0])[:1]:  # the others are told of below
            targets = raw(checked(targets, (*x.shape[:-1], jnp.shape(params.w)[-1])))
    return Data(
        x,
        targets,
        None if batch.weights is None else checked_real(batch.weights, "weights"),
        *(
            a if a is None or jnp.isscalar(a) else checked_real(a, "scale, shift")
            for a in batch[3:]
        ),
    )


def make_update(
    optimizer: optax.GradientTransformation, *, most_logits: int = head.MOST_LOGITS
) -> Program:
    """``update(state, batch) -> (state, metrics)``, jitted: one step of any optax optimiser.

    Call it once and keep the result; it compiles once for each batch shape. Of a batch with more
    than ``most_logits`` logits, and of one with sparse targets, they are not held, see
    `head.linear_cross_entropy`.
    """
    return Program(partial(_update, optimizer, most_logits=most_logits))


def _update(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Data,
    *,
    most_logits: int,
    strategy: str = "auto",
) -> tuple[TrainState, StepMetrics]:
    is_large = len(batch.x) * state.params.w.shape[1] > most_logits
    if is_large or isinstance(batch.targets, SparseTargets):
        gradient, step_metrics = _gradient_of_large_head(state, batch, strategy)
    else:
        gradient, step_metrics = _gradient(state, batch)
    with jax.numpy_dtype_promotion("standard"):  # as optax expects
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: (state.learning_rate * u).astype(u.dtype), updates)
        params = optax.apply_updates(state.params, updates)
    is_finite = jnp.isfinite(step_metrics.loss)
    for array in params:
        is_finite &= jnp.all(jnp.isfinite(array))
    goes_on = is_finite & (state.diverged < 0)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(goes_on, new, old),
        (params, opt_state),
        (state.params, state.opt_state),
    )
    return state._replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        diverged=jnp.where(goes_on | (state.diverged >= 0), state.diverged, state.step),
    ), step_metrics


def _gradient(state: TrainState, batch: Data) -> tuple[Params, StepMetrics]:
    """In closed form, eq. 3.4.10; `experiments/gradcheck.py` holds it to `jax.grad`."""
    x, targets, weights = features(batch), batch.targets, batch.weights
    # Gradient and metrics need the logits; the compiler computes them once.
    scores = model.logits(state.params, x)
    gradient = losses.objective_gradient(
        state.params,
        x,
        targets,
        weights=weights,
        l2=state.l2,
        label_smoothing=state.label_smoothing,
    )
    return gradient, StepMetrics(
        loss=losses.weighted_mean(losses.cross_entropy(scores, targets), weights),
        accuracy=metrics.accuracy(scores, targets, weights),
        weight=_weight(batch),
    )


def _gradient_of_large_head(
    state: TrainState, batch: Data, strategy: str
) -> tuple[Params, StepMetrics]:
    """The same without all the logits."""
    x, weights = features(batch), batch.weights
    parsed = parse(batch.targets, (len(x), state.params.w.shape[1]))
    weight = _weight(batch)

    def objective(params):
        out = head.linear_cross_entropy(
            x,
            params.w,
            params.b,
            parsed,
            weights=weights,
            label_smoothing=state.label_smoothing,
            extras=("nats", "argmax"),
            strategy=strategy,
        )
        mean = jnp.sum(out.loss) / jnp.where(weight == 0, 1, weight)
        return mean + Penalty(state.l2).value(at_least_float32(params.w)), out

    gradient, out = jax.grad(objective, has_aux=True)(state.params)
    return gradient, StepMetrics(
        loss=losses.weighted_mean(out.nats, weights),
        accuracy=losses.weighted_mean(hits(out.argmax[:, None], parsed), weights),
        weight=weight,
    )


def _weight(batch: Data) -> jax.Array:
    if batch.weights is None:
        return jnp.float32(len(batch.x))
    return jnp.sum(batch.weights, dtype=jnp.float32)


def make_epoch(
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    most_logits: int = head.MOST_LOGITS,
) -> Program:
    """``epoch(state, data, stop) -> (state, metrics)``, jitted: a pass over ``data``, one program.

    From ``state.step`` on, to the end of the epoch that it is in, or to ``stop`` if that is sooner.
    The rows are shuffled by ``state.key`` and the number of the epoch, and taken in minibatches of
    ``batch_size``; each row is seen once. If they do not divide evenly, the last minibatch is
    filled up with rows of weight zero. With the data on the device, Python is not involved between
    the first step and the last. An epoch run in pieces is the same to the last bit. Of a minibatch
    with more than ``most_logits`` logits they are not held, see `head.linear_cross_entropy`.

    The metrics are those of all steps of the epoch, ``[ceil(n / batch_size)]``; where a step was
    not taken they are zero, and so is its weight.

    Raises:
      ValueError: if ``batch_size`` is not positive, or, from the epoch, if the arrays of ``data``
        have no rows or not equally many.
    """
    return Program(_make_epoch(optimizer, batch_size, most_logits))


def make_sweep(
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    shared_order: bool,
    most_logits: int = head.MOST_LOGITS,
) -> Program:
    r"""`make_epoch` for many states at once, stacked by `stack`; the metrics get an axis in front.

    With a shared order, the members of the sweep see the same minibatch at the same time, and one
    wide product :math:`X [W_1 \dots W_m]` serves them all.
    """
    axes = sweep_axes(shared_order)
    # Under vmap the fused strategy of a large head would do its work in both ways.
    epoch = _make_epoch(optimizer, batch_size, most_logits, strategy="recompute")
    return Program(jax.vmap(epoch, in_axes=(axes, None, None), out_axes=(axes, 0)))


def sweep_axes(shared_order: bool) -> TrainState:
    """Where the members are in a stacked state: axis 0, or None for what they have in common."""
    axes: Any = dict.fromkeys(TrainState._fields, 0)
    return TrainState(**axes | {"step": None, "key": None if shared_order else 0})


@jax.transfer_guard("allow")
def stack(states: Sequence[TrainState], *, shared_order: bool) -> TrainState:
    """The states of a sweep as one; ``step`` and a shared order are those of the first."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    first = states[0]
    return stacked._replace(step=first.step, key=first.key if shared_order else stacked.key)


def _make_epoch(
    optimizer: optax.GradientTransformation,
    batch_size: int,
    most_logits: int,
    strategy: str = "auto",
) -> Callable:
    batch_size = checked_count(batch_size, "batch_size")

    def epoch(state, data, stop=None):
        n = _num_examples(data)
        rows_a_step = min(batch_size, n)
        steps = -(-n // rows_a_step)
        filling = steps * rows_a_step - n
        index = state.step // steps
        # Epochs are counted from one.
        order = permutation(jax.random.fold_in(state.key, index + 1), n)
        order = jnp.pad(order, (0, filling)).reshape(steps, rows_a_step)
        is_real = (jnp.arange(steps * rows_a_step) < n).reshape(steps, rows_a_step)
        first, end = index * steps, (index + 1) * steps
        end = end if stop is None else jnp.minimum(end, stop)

        def step(carry):
            state, done = carry
            i = state.step - first
            batch = blocks.take(data, order[i], is_real[i] if filling else None)
            state, one = _update(
                optimizer, state, batch, most_logits=most_logits, strategy=strategy
            )
            return state, jax.tree.map(
                lambda seen, value: seen.at[i].set(value.astype(seen.dtype)), done, one
            )

        empty = StepMetrics(*(jnp.zeros(steps, jnp.float32) for _ in StepMetrics._fields))
        return jax.lax.while_loop(lambda carry: carry[0].step < end, step, (state, empty))

    return epoch


def _num_examples(data: Data) -> int:
    if isinstance(data.targets, SparseTargets):
        raise ValueError("targets: epochs and evaluation take no SparseTargets; make_update does")
    arrays = {"x": data.x, "targets": data.targets, "weights": data.weights}
    rows = {name: a.shape[0] for name, a in arrays.items() if a is not None}
    if 0 in rows.values() or len(set(rows.values())) > 1:
        raise ValueError(f"x, targets and weights need equally many rows, and some: got {rows}")
    return rows["x"]


@jax.transfer_guard("allow")
def evaluate(
    params: Params,
    data: Data,
    *,
    block_size: int = blocks.ROWS,
    k: int = 5,
    confusion: bool = False,
    most_logits: int = head.MOST_LOGITS,
) -> Metrics:
    """Measures ``params`` on all of ``data``, a block of rows at a time.

    Arrays on the host are read as the numbers they are, see `features` and `model.centred`.

    Each block is summed on the device in float32, and the blocks on the host in float64. Metrics
    of further data, on this host or another, are added by `metrics.merge`.

    Args:
      params: the model.
      data: ``n`` examples, on the device or the host.
      block_size: rows at a time, of which as many are floating-point features at once. The result
        depends on it by rounding only.
      k: see `metrics.measure`.
      confusion: see `metrics.measure`.
      most_logits: logits that are held at a time. If a block has more, class ids are scored
        without them, see `metrics.measure_head`, and all else in smaller blocks.

    Returns:
      `Metrics` of NumPy float64 sums.

    Raises:
      ValueError: if the arrays of ``data`` have no rows or not equally many, class ids are outside
        [0, q), or ``block_size`` is not a positive integer.
    """
    return metrics.total(
        measure_blocks(
            params,
            data,
            block_size=block_size,
            k=k,
            confusion=confusion,
            most_logits=most_logits,
        )
    )


@jax.transfer_guard("allow")
def measure_blocks(
    params: Params,
    data: Data,
    *,
    block_size: int = blocks.ROWS,
    k: int = 5,
    confusion: bool = False,
    most_logits: int = head.MOST_LOGITS,
) -> Metrics:
    """The part of `evaluate` on the device, which need not be waited for.

    Returns:
      `Metrics` with a leading axis of blocks, for `metrics.total`.
    """
    block_size, k = checked_count(block_size, "block_size"), checked_count(k, "k")
    data = formed_on_host(data)
    if data.scale is None and data.shift is None:
        params, x = model.centred(params, data.x)
        data = data._replace(x=x)
    params = Params(checked_real(params.w, "params.w"), checked_real(params.b, "params.b"))
    data = _admitted(params, data, look=True)
    return _measured_blocks(
        params, data, block_size=block_size, k=k, confusion=confusion, most_logits=most_logits
    )


@partial(jax.jit, static_argnames=("block_size", "k", "confusion", "most_logits"))
def _measured_blocks(
    params: Params, data: Data, *, block_size: int, k: int, confusion: bool, most_logits: int
) -> Metrics:
    n = _num_examples(data)
    q = params.w.shape[1]
    block_size = min(block_size, n)
    by_head = block_size * q > most_logits and not confusion
    by_head = by_head and isinstance(checked(data.targets, (n, q)), Ids)
    if not by_head:
        block_size = min(block_size, max(most_logits // q, 1))

    def measured(_: None, start: Any, is_new: jax.Array) -> tuple[None, Metrics]:
        block = blocks.block_of(data, start, is_new)
        x, targets, weights = features(block), block.targets, block.weights
        if by_head:
            return None, metrics.measure_head(params, x, targets, weights, k=k)
        scores = model.logits(params, x)
        return None, metrics.measure(scores, targets, weights, k=k, confusion=confusion)

    return blocks.scan(measured, None, n, block_size)[1]
