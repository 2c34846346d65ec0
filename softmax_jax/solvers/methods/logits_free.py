r"""L-BFGS on passes that form a tile of logits at a time, where they are too many to hold.

The other methods keep the n q logits of each problem, to move along them for free. Here a pass is
`head.linear_cross_entropy` on a block of rows, the method `optax.lbfgs` without a preconditioner,
and the certificate comes from one pass in float64.

For the bound, residuals must sum to zero over the rows, as the bias is free (see the module
`certificate`). The predictions P almost do: their mean over the rows is :math:`\bar p`, that of the
targets :math:`\bar y`. So they are mixed with one distribution Q, the same for all rows, that makes
up for the difference,

.. math:: P' = (1 - \epsilon) P + \epsilon Q, \qquad
    Q = \bar y + \frac{1 - \epsilon}{\epsilon} (\bar y - \bar p),

with the smallest ε for which Q is not negative,
:math:`\epsilon = \max_j (\bar p_j - \bar y_j)^+ / \bar p_j`; a bias that is held at zero needs no
mixing. For centered features :math:`X^\top S Q = 0`, so with :math:`G = X^\top S (P - Y)` and
:math:`G_Y = X^\top S Y`

.. math:: F^* \ge \sum_i s_i H(p'_i) - \frac{1}{2 l_2} \|X^\top S (P' - Y)\|^2
    \ge (1 - \epsilon) \sum_i s_i H(p_i) + \epsilon H(Q)
    - \frac{1}{2 l_2} \|(1 - \epsilon) G - \epsilon G_Y\|^2,

the first by Fenchel's inequality, the second as entropy is concave.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from softmax_jax._annotations import Array, ArrayLike, Bool, Float, NDArray
from softmax_jax.head import linear_cross_entropy
from softmax_jax.model import Params
from softmax_jax.penalty import Penalty
from softmax_jax.solvers import passes
from softmax_jax.solvers.certificate import Certificate
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.methods.lbfgs import last_passes, optimizer_of, stepped
from softmax_jax.solvers.methods.method import IterativeMethod, Mixture, Setup
from softmax_jax.solvers.problem import NEVER, Problem, block_of, cast, counts, over_blocks
from softmax_jax.solvers.sparse import SparseRows
from softmax_jax.solvers.units import centered

_Absent: TypeAlias = Bool[Array | NDArray, " q"]
"""Classes that have no weight."""


class State(NamedTuple):
    """Iterate of one problem, its gap, and the memory of the optimiser."""

    params: Params
    """``w: [d, q]``, ``b: [q]``."""
    absent: Bool[Array, " q"]
    """Classes that have no weight."""
    value: Float[Array, " 1"]
    gap: Float[Array, " 1"]
    done: Bool[Array, " 1"]
    optimizer: optax.OptState

    @property
    def theta(self) -> Float[Array, "1 q columns"]:
        """Parameters, the bias in front."""
        bias = jnp.where(self.absent, NEVER, self.params.b).astype(self.params.b.dtype)
        return jnp.concatenate([bias[:, None], self.params.w.T], axis=1)[None]


class Aids(NamedTuple):
    """Means over the rows that the bound needs, in float64."""

    targets_gradient: Float[Array, "d q"]
    """``Xᵀ S Y``."""
    mean_targets: Float[Array, " q"]


class _Pass(NamedTuple):
    """Sums over all rows, weighted: ``s_i`` sum to one."""

    loss: Float[Array, ""]
    gradient: Params
    """Gradient of the loss: ``Xᵀ S (P - Y)`` and ``mean p - mean y``."""
    entropy: Float[Array, ""]
    """``Σ s_i H(p_i)``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitsFree(IterativeMethod[State]):
    """`optax.lbfgs` on passes that never hold all logits, for l1 = 0 and no offset.

    Example:
      >>> from softmax_jax.solvers import QuasiNewton
      >>> method = QuasiNewton(most_logits=2**26, beyond=LogitsFree(memory=20))
      >>> method.beyond.memory  # what is taken for more logits than that
      20
    """

    memory: int = 10
    """Pairs of moves and changes of the gradient."""
    scalings: int = 10
    """Passes to bring mean predictions closer to mean targets, before a certificate."""
    width: int = 1
    steps: int = 20
    """Passes of a line search, at most; the host looks at the problem after each."""
    patience: int = 60
    warm_up: tuple[int, ...] = ()
    float64_below: int = 0
    tightening: float = 4.0
    passes_to_begin = 0
    watches_separation = False

    def reason(self, inputs: Inputs) -> str:
        """Returns the memory that is not needed."""
        gib = 4 * inputs.n * inputs.q / 2**30
        return f"each array of logits in float32 would take {gib:.2g} GiB"

    def check(self, *, has_l1: bool, grouped: bool, has_offset: bool, is_plain: bool) -> None:
        """Refuses offsets and absolute penalties."""
        if has_offset:
            raise ValueError("offset: the method 'logits-free' takes none; choose another method")
        if has_l1:
            raise ValueError("l1: the method 'logits-free' is for smooth penalties; take another")

    def prepare(
        self, inputs: Inputs, weightings: Sequence[int], dtype: DTypeLike, *, penalised: bool
    ) -> Setup:
        """Returns the problem with features of mean zero, which the bound needs."""
        (m,) = weightings
        rows = inputs.problem._replace(weights=inputs.problem.weights[:, m : m + 1])
        exact, units = centered(rows, inputs.units, _mean(rows))
        mean_targets = _mean_targets(exact, inputs.q)
        nothing = Params(jnp.zeros((exact.d, inputs.q)), jnp.zeros(inputs.q))
        # With constant predictions and centered features, the gradient is that of the targets.
        none, _ = _measured(exact, nothing, inputs.absent[m])
        bias = jnp.where(mean_targets > 0, jnp.log(mean_targets), 0) * exact.intercept
        origin = np.zeros((inputs.q, 1 + exact.d))
        origin[:, 0] = bias
        aids = Aids(-none.gradient.w, mean_targets)
        return Setup(exact, cast(exact, dtype), units, aids, origin)

    def init(self, problem: Problem, aids: Aids, theta: jax.typing.ArrayLike) -> State:
        """Returns the state at ``theta``, without a pass."""
        (own,) = np.asarray(theta)
        absent = ~counts(own[:, 0])
        own = np.where(absent[:, None], 0, own)
        return self._fresh(Params(jnp.asarray(own[:, 1:].T), jnp.asarray(own[:, 0])), absent)

    def _fresh(self, params: Params, absent: _Absent) -> State:
        dtype = params.w.dtype
        unknown, done = jnp.full(1, jnp.inf, dtype), jnp.zeros(1, bool)
        # The line search would widen the parameters where float64 is there.
        with jax.enable_x64(dtype == jnp.float64):
            optimizer = optimizer_of(self.memory, self.steps).init(params)
        return State(params, jnp.asarray(absent), unknown, unknown, done, optimizer)

    def advance(
        self,
        problem: Problem,
        aids: Aids,
        state: State,
        *,
        target: ArrayLike,
        limit: ArrayLike,
        stop_at_first: ArrayLike,
    ) -> tuple[State, jax.Array]:
        """Takes one step, of up to ``limit`` passes."""
        with jax.enable_x64(problem.dtype == jnp.float64):
            return step(self, problem, state, target, np.asarray(limit, np.int32))

    def hand_over(
        self, problem: Problem, state: State, slot: ArrayLike, source: ArrayLike
    ) -> State:
        """Lets a new problem go on from where the last one stands."""
        return self._fresh(state.params, state.absent)

    def restart(self, state: State, slot: ArrayLike) -> State:
        """Empties the memory."""
        return self._fresh(state.params, state.absent)

    def certify(
        self,
        setup: Setup,
        exact: Problem,
        theta: Array | NDArray,
        dual: Mixture | None,
        slot: ArrayLike,
        weighting: ArrayLike,
        *,
        most: float,
    ) -> tuple[Certificate, int]:
        """Certifies the problem, in up to `scalings` passes in float64."""
        own = jnp.asarray(theta[0], jnp.float64)
        absent = ~counts(own[:, 0])
        params = Params(own[:, 1:].T, jnp.where(absent, 0, own[:, 0]))
        return _certified(exact, setup.aids, params, absent, max(min(self.scalings, most), 1))


@jax.jit
def _mean(problem: Problem) -> Float[Array, " d"]:
    """Returns the means of the features."""

    def add(j, total):
        s = block_of(problem.weights, j)[0]
        return total + passes.weighted_sum(problem, s, j)

    return over_blocks(problem, add, jnp.zeros(problem.d, problem.dtype))


def _over_rows(problem: Problem, params: Params, absent: _Absent, *, exact: bool) -> _Pass:
    """Passes over the rows, with the entropy only if it is exact."""
    extras = ("entropy",) if exact else ()

    if isinstance(problem.x, SparseRows):
        return _over_sparse_rows(problem, params, absent)

    def loss_of(params, j):
        y = block_of(problem.targets, j)
        s = block_of(problem.weights, j)[0]
        out = linear_cross_entropy(
            passes.features(problem, j),
            params.w,
            jnp.where(absent, -jnp.inf, params.b),
            y.T,
            weights=s,
            extras=extras,
            strategy="recompute",
        )
        entropy = jnp.zeros_like(out.loss) if out.entropy is None else out.entropy
        return jnp.sum(out.loss), jnp.sum(s * entropy)

    def add(j, carry):
        (loss, entropy), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, j)
        gradient = gradient._replace(b=gradient.b * problem.intercept)
        return jax.tree.map(jnp.add, carry, _Pass(loss, gradient, entropy))

    zero = jnp.zeros((), problem.dtype)
    start = _Pass(zero, jax.tree.map(jnp.zeros_like, params), zero)
    with jax.default_matmul_precision("highest"):
        return over_blocks(problem, add, start)


def _over_sparse_rows(problem: Problem, params: Params, absent: _Absent) -> _Pass:
    """Passes over sparse rows, with the logits of a block at a time."""
    q = len(params.b)
    bias = jnp.where(absent, NEVER, params.b).astype(params.b.dtype)
    theta = jnp.concatenate([bias[:, None], params.w.T], axis=1)[None]

    def add(j, carry):
        p, below, log_z = passes.softmax(passes.forward(problem, theta, j))
        y, s = passes.targets(problem, j, q), block_of(problem.weights, j)
        loss = jnp.sum(s * (log_z - passes.over_classes(y * below)))
        entropy = jnp.sum(s * (log_z - passes.over_classes(p * below)))
        (g,) = passes.backward(problem, s[:, None] * (p - y), j)
        gradient = Params(g[:, 1:].T, g[:, 0] * problem.intercept)
        return jax.tree.map(jnp.add, carry, _Pass(loss, gradient, entropy))

    zero = jnp.zeros((), problem.dtype)
    return over_blocks(problem, add, _Pass(zero, jax.tree.map(jnp.zeros_like, params), zero))


def _penalty(problem: Problem) -> Penalty:
    """Returns the penalty of the one problem, for weights ``[d, q]``."""
    return Penalty(problem.l2[0], factor=problem.factor, class_axis=-1)


@partial(jax.jit, static_argnames="method")
def step(
    method: "LogitsFree", problem: Problem, state: State, target: jax.Array, most: jax.Array
) -> tuple[State, jax.Array]:
    """Takes a step, and returns the passes that its line search took, ``[1]``, up to ``most``.

    The value and the gap are those before the step.
    """
    penalty = _penalty(problem)

    def evaluate(params):
        found = _over_rows(problem, params, state.absent, exact=False)
        w = found.gradient.w + penalty.gradient(params.w)
        value = found.loss + penalty.smooth_value(params.w)
        return value, Params(w, found.gradient.b)

    new = stepped(evaluate, state.params, state.optimizer, memory=method.memory, most=most)
    gap = penalty.conjugate(new.gradient.w)
    done = (gap <= target * new.value)[:1]
    state = State(new.params, state.absent, new.value[None], gap[None], done, new.optimizer)
    return state, last_passes(new.optimizer)[None]


@jax.jit
def _measured(exact: Problem, params: Params, absent: _Absent) -> tuple[_Pass, Float[Array, " q"]]:
    """Returns a pass, and a step of iterative scaling for the bias (Darroch and Ratcliff 1972)."""
    found = _over_rows(exact, params, absent, exact=True)
    mean_y = _mean_targets(exact, len(params.b))
    mean_p = mean_y + found.gradient.b
    ratio = jnp.where(mean_y > 0, mean_y, 1) / jnp.where(mean_p > 0, mean_p, 1)
    return found, jnp.where((mean_y > 0) & (mean_p > 0), jnp.log(ratio), 0)


def _mean_targets(problem: Problem, q: int) -> Float[Array, " {q}"]:
    """Returns mean probabilities of the targets."""
    y, s = problem.targets, problem.weights[:, 0]
    if y.ndim == 3:
        return jnp.einsum("jqr,jr->q", y, s)
    return jnp.zeros(q, s.dtype).at[y.ravel()].add(s.ravel())


def _certified(
    exact: Problem, aids: Aids, params: Params, absent: _Absent, most: float
) -> tuple[Certificate, int]:
    """Moves the bias so that means agree better, in up to ``most`` passes; returns their number."""
    best, lowest, taken = None, np.inf, 0
    while taken + 1 <= most:
        found, move = _measured(exact, params, absent)
        value, gap, slope = _bound(exact, found, params, aids)
        taken += 1
        is_better = best is None or float(gap) < 0.7 * lowest
        if is_better:
            theta = jnp.concatenate([params.b[:, None], params.w.T], axis=1)
            best = Certificate(theta[None], value[None], gap[None], slope[None], found.loss[None])
            lowest = float(gap)
            params = params._replace(b=params.b + move)
        else:
            break
    assert best is not None
    return best, taken


@jax.jit
def _bound(
    problem: Problem, found: _Pass, params: Params, aids: Aids
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Returns objective, gap and slope; the gap is the objective where nothing is known."""
    penalty = _penalty(problem)
    value = found.loss + penalty.smooth_value(params.w)
    slope = jnp.where(problem.l2[0] > 0, jnp.nan, jnp.max(jnp.abs(found.gradient.w)))
    excess = found.gradient.b
    mean_p = aids.mean_targets + excess
    share = jnp.where(excess > 0, excess / jnp.where(mean_p > 0, mean_p, 1), 0)
    # A little more than needed, for rounding.
    mix = jnp.minimum(jnp.max(share) * (1 + 1e-9), 1)
    other = (
        aids.mean_targets - jnp.where(mix > 0, (1 - mix) / jnp.where(mix > 0, mix, 1), 0) * excess
    )
    other = jnp.maximum(other, 0)
    entropy_of_other = -jnp.sum(jax.scipy.special.xlogy(other, other))
    g = (1 - mix) * found.gradient.w - mix * aids.targets_gradient
    dual = (1 - mix) * found.entropy + mix * entropy_of_other - penalty.conjugate(g)
    gap = value - dual + 16 * jnp.finfo(value.dtype).eps * jnp.abs(value)
    return value, jnp.where(jnp.isfinite(gap), jnp.clip(gap, 0, value), value), slope
