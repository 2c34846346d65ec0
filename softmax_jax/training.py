"""Minibatch training: one update step, and a whole epoch as one program.

Both are pure: the state goes in and comes out, and it has all that a run depends on. Stopped
after any step, saved and taken up again, a run goes on as if nothing had been. Hyper-parameters are
arrays of the state, so that a new value compiles nothing, and `ensemble` trains many models at
once.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from softmax_jax import head, losses, metrics, model, parallel
from softmax_jax._annotations import AnyArray, Array, Float, Integer, PyTree, Scalar, Shaped
from softmax_jax._dtypes import at_least_float32
from softmax_jax._fork import refuse_broken_process
from softmax_jax.checks import as_real, checked_count, checked_strength
from softmax_jax.data import blocks
from softmax_jax.data.admission import admitted, number_of_examples, on_stream
from softmax_jax.data.shuffle import permutation
from softmax_jax.data.targets import SparseTargets, hits, parse
from softmax_jax.data.types import Data, features
from softmax_jax.loss_options import check_label_smoothing
from softmax_jax.model import Params
from softmax_jax.penalty import Penalty


class TrainState(NamedTuple):
    """State of training: all it depends on besides data, optimiser and batch size.

    Members of a sweep are stacked along an axis in front, see `ensemble.stack`.
    """

    step: Integer[Array, ""]
    """int32; one for all members of a sweep."""
    params: Params
    opt_state: optax.OptState
    key: Shaped[Array, "..."]
    """Key of the order of the examples; with ``step`` it determines each minibatch."""
    learning_rate: Float[Array, "*m"]
    """Factor on the updates of the optimiser."""
    l2: Float[Array, "*m"]
    label_smoothing: Float[Array, "*m"]
    diverged: Integer[Array, "*m"]
    """int32: the step whose loss or result was not finite, or -1. It and all later ones leave
    parameters and optimiser as they were before it."""


class StepMetrics(NamedTuple):
    """Scores of a batch under the parameters before its step: float32 scalars.

    Those of an epoch have an axis of steps, and those of a sweep one of members in front.
    """

    loss: Float[Array, "*steps"]
    """Mean cross-entropy with the targets as they are given, in nats: as `evaluate` has it."""
    accuracy: Float[Array, "*steps"]
    weight: Float[Array, "*steps"]
    """Sum of the example weights of the batch."""


@jax.transfer_guard("allow")
def init(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    key: Shaped[Array, "..."] | None = None,
    learning_rate: Scalar = 1.0,
    l2: Scalar = 0.0,
    label_smoothing: Scalar = 0.0,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      params: where to start.
      optimizer: its learning rate, or the shape of its schedule, is multiplied by the one here.
      key: of the order of the examples, for `make_epoch`; by default ``jax.random.key(0)``.
      learning_rate: a factor on the updates.
      l2: see `losses.objective`.
      label_smoothing: see `losses.cross_entropy`.

    Raises:
      ValueError: if ``l2`` is negative or not finite, or ``label_smoothing`` outside [0, 1].
      RuntimeError: in a process that was forked after its parent had used JAX.

    Example:
      >>> state = init(Params(jnp.zeros((4, 3)), jnp.zeros(3)), optax.adam(0.1), l2=0.01)
      >>> int(state.step), f"{state.l2:.2f}", int(state.diverged)
      (0, '0.01', -1)
    """
    if not isinstance(l2, jax.core.Tracer):
        checked_strength(l2, "l2")
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

    Example:
      >>> optimizer = optax.sgd(0.5)
      >>> state = init(Params(jnp.zeros((1, 2)), jnp.zeros(2)), optimizer)
      >>> update = make_update(optimizer)  # a program
      >>> state, scores = update(state, Data(x=jnp.ones((4, 1)), targets=jnp.zeros(4, int)))
      >>> isinstance(update, Program), int(state.step), f"{scores.loss:.4f}"
      (True, 1, '0.6931')
    """

    def __init__(self, function: Callable) -> None:
        def with_state_laid_out(state, *others):
            num_classes = state.params.w.shape[-1]
            state, scores = function(state, *others)
            return parallel.laid_out(state, num_classes), scores

        def on_mesh(state, *others):
            places = parallel.present_places(state), PartitionSpec()
            return parallel.on_automatic_axes(with_state_laid_out, (state, *others), places)

        self._jitted = jax.jit(on_mesh)

    @jax.transfer_guard("allow")
    def __call__(
        self, state: TrainState, batch: Data, *stop: AnyArray | None
    ) -> tuple[TrainState, StepMetrics]:
        """Runs it."""
        num_classes = jnp.shape(state.params.w)[-1]
        return on_stream(
            lambda batch: self._jitted(state, admitted(batch, num_classes, look=False), *stop),
            batch,
        )

    def lower(self, *arguments: PyTree) -> jax.stages.Lowered:
        """See `jax.jit`."""
        return self._jitted.lower(*arguments)


def make_update(
    optimizer: optax.GradientTransformation, *, most_logits: int = head.MOST_LOGITS
) -> Program:
    """Returns ``update(state, batch) -> (state, metrics)``, one step of an optax optimiser, jitted.

    Call it once and keep the result; it compiles once for each batch shape. Of a batch with more
    than ``most_logits`` logits, and of one with sparse targets, they are not held, see
    `head.linear_cross_entropy`.

    Example:
      >>> optimizer = optax.sgd(0.5)
      >>> state = init(Params(jnp.zeros((2, 2)), jnp.zeros(2)), optimizer)
      >>> batch = Data(x=jnp.eye(2), targets=jnp.array([0, 1]))
      >>> state, scores = make_update(optimizer)(state, batch)
      >>> f"{scores.loss:.4f}", state.params.w.tolist()
      ('0.6931', [[0.125, -0.125], [-0.125, 0.125]])
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
    """Returns the gradient in closed form, eq. 3.4.10, and the scores of the batch."""
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
    """Returns the same as `_gradient` without holding all the logits."""
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


def _weight(batch: Data) -> Float[Array, ""]:
    if batch.weights is None:
        return jnp.float32(len(batch.x))
    return jnp.sum(batch.weights, dtype=jnp.float32)


def make_epoch(
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    parts: int = 1,
    most_logits: int = head.MOST_LOGITS,
) -> Program:
    """Returns ``epoch(state, data, stop) -> (state, metrics)``, a pass over ``data``, jitted.

    It is one program. It goes from ``state.step`` on, to the end of the epoch that it is in, or to
    ``stop`` if that is sooner. The rows are shuffled by ``state.key`` and the number of the epoch,
    and taken in minibatches of ``batch_size``; each row is seen once. If they do not divide evenly,
    the last minibatch is filled up with rows of weight zero. With the data on the device, Python is
    not involved between the first step and the last. An epoch run in pieces is the same to the last
    bit. Of a minibatch with more than ``most_logits`` logits they are not held, see
    `head.linear_cross_entropy`. Of features in files, `StoredRows`, a minibatch is read while
    the device works on the one before, and the program is waited for.

    With several ``parts``, the rows are as many parts of consecutive ones, each of which is
    shuffled by itself and fills its share of every minibatch. Devices of a mesh that have whole
    parts, see `parallel.spread`, then need no row of one another. The order depends on the number
    of parts, not on the devices.

    The metrics are those of all steps of the epoch, ``[ceil(n / batch_size)]``; where a step was
    not taken they are zero, and so is its weight.

    Raises:
      ValueError: if ``batch_size`` or ``parts`` is not positive, or, from the epoch, if the arrays
        of ``data`` have no rows or not equally many, or the parts do not divide them, or a
        minibatch, evenly.

    Example:
      >>> data = Data(x=jnp.eye(2), targets=jnp.array([0, 1]))
      >>> optimizer = optax.sgd(0.5)
      >>> state = init(Params(jnp.zeros((2, 2)), jnp.zeros(2)), optimizer)
      >>> state, steps = make_epoch(optimizer, batch_size=1)(state, data)
      >>> int(state.step), steps.loss.shape
      (2, (2,))
    """
    return Program(epoch_function(optimizer, batch_size, most_logits, parts=parts))


def epoch_function(
    optimizer: optax.GradientTransformation,
    batch_size: int,
    most_logits: int,
    strategy: str = "auto",
    parts: int = 1,
) -> Callable:
    """Returns the epoch of `make_epoch`, not jitted, with the strategy of its large heads.

    Example:
      >>> data = Data(x=jnp.eye(2), targets=jnp.array([0, 1]))
      >>> optimizer = optax.sgd(0.5)
      >>> state = init(Params(jnp.zeros((2, 2)), jnp.zeros(2)), optimizer)
      >>> epoch = epoch_function(optimizer, batch_size=2, most_logits=head.MOST_LOGITS)
      >>> int(jax.jit(epoch)(state, data)[0].step)
      1
    """
    batch_size, parts = checked_count(batch_size, "batch_size"), checked_count(parts, "parts")

    def epoch(state, data, stop=None):
        n = number_of_examples(data)
        rows_a_step = min(batch_size, n)
        if n % parts or rows_a_step % parts:
            raise ValueError(
                f"parts: {parts} do not divide {n} rows, or {rows_a_step} of a minibatch, evenly; "
                "fill up with rows of weight 0, as parallel.spread does"
            )
        own, own_a_step = n // parts, rows_a_step // parts
        steps = -(-own // own_a_step)
        filling = steps * own_a_step - own
        index = state.step // steps
        # Epochs are counted from one.
        order = _order(jax.random.fold_in(state.key, index + 1), own, parts)
        order = jnp.pad(order, ((0, 0), (0, filling))).reshape(parts, steps, own_a_step)
        is_real = (jnp.arange(steps * own_a_step) < own).reshape(steps, own_a_step)
        first, end = index * steps, (index + 1) * steps
        end = end if stop is None else jnp.minimum(end, stop)

        def step(carry):
            state, done = carry
            i = state.step - first
            batch = blocks.take(
                data,
                order[:, i],
                is_real[i] if filling else None,
                following=order[:, jnp.minimum(i + 1, steps - 1)],
            )
            state, one = _update(
                optimizer, state, batch, most_logits=most_logits, strategy=strategy
            )
            return state, jax.tree.map(
                lambda seen, value: seen.at[i].set(value.astype(seen.dtype)), done, one
            )

        empty = StepMetrics(*(jnp.zeros(steps, jnp.float32) for _ in StepMetrics._fields))
        return jax.lax.while_loop(lambda carry: carry[0].step < end, step, (state, empty))

    return epoch


def _order(key: Shaped[Array, "..."], n: int, parts: int) -> Integer[Array, "parts {n}"]:
    """Returns a permutation of the ``n`` rows of each part."""
    if parts == 1:
        return permutation(key, n)[None]
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(parts))
    return jax.vmap(lambda key: permutation(key, n))(keys)
