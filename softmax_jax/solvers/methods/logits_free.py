r"""Where logits are too many to hold: L-BFGS on passes that form a tile of them at a time.

The other methods keep the n q logits of each problem, to move along them for free. Here a pass is
`head.linear_cross_entropy` on a block of rows, the method `optax.lbfgs` without a preconditioner,
and the certificate comes from one pass in float64.

For the bound, residuals must sum to zero over the rows, as the bias is free (`certificate`). The
predictions P almost do: their mean over the rows is :math:`\bar p`, that of the targets
:math:`\bar y`. So they are mixed with one distribution Q, the same for all rows, that makes up for
the difference,

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

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from softmax_jax.head import linear_cross_entropy
from softmax_jax.model import Params
from softmax_jax.penalty import Penalty
from softmax_jax.solvers import passes, schedule
from softmax_jax.solvers import units as _units
from softmax_jax.solvers.certificate import Certificate
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.methods import lbfgs
from softmax_jax.solvers.problem import Problem, block_of, cast, over_blocks
from softmax_jax.solvers.solution import Solution
from softmax_jax.status import Status, unbounded, used_up

# Logits of a problem from which on they are too many: a gigabyte of float32, of which the other
# methods keep several copies.
LIMIT = 2**28
# Passes to bring the means of the predictions closer to those of the targets, before a certificate.
_SCALINGS = 10
# Steps without progress after which the precision counts as exhausted.
_PATIENCE = 60


class _State(NamedTuple):
    params: Params
    optimizer: optax.OptState


class _Pass(NamedTuple):
    """Over all rows, weighted: ``s_i`` sum to one."""

    loss: jax.Array
    gradient: Params
    """Of the loss: ``Xᵀ S (P - Y)`` and ``mean p - mean y``."""
    entropy: jax.Array
    """``Σ s_i H(p_i)``."""


def applies(inputs: Inputs) -> bool:
    """Whether logits are too many."""
    return inputs.n * inputs.q >= LIMIT and inputs.problem.offset is None


def solve(
    inputs: Inputs, works: Sequence[schedule.Work], options: schedule.Options
) -> dict[tuple[int, ...], Solution]:
    """Solutions by place; see `schedule.solve`."""
    solved: dict[tuple[int, ...], Solution] = {}
    for m in sorted({work.weighting for work in works}):
        # The bound needs features of mean zero.
        rows = inputs.problem._replace(weights=inputs.problem.weights[:, m : m + 1])
        exact, units = _units.centered(rows, inputs.units, _mean(rows))
        own_inputs = inputs._replace(problem=exact, units=units)
        problem = cast(exact, jnp.float64 if inputs.is_wide else jnp.float32)
        absent = inputs.absent[m]
        params = _started(own_inputs, problem.dtype)
        nothing = Params(jnp.zeros((problem.d, inputs.q)), jnp.zeros(inputs.q))
        # With constant predictions and centered features, the gradient is that of the targets.
        none, _ = _measured(exact, nothing, absent)
        own = sorted((work for work in works if work.weighting == m), key=lambda work: -work.l2)
        for work in own:
            params, certificate, verdict = _solved(
                problem, exact, params, -none.gradient.w, absent, work, options, len(solved)
            )
            solved[work.place] = schedule.to_solution(own_inputs, certificate, work, verdict)
    return solved


def _started(inputs: Inputs, dtype: Any) -> Params:
    """The best bias alone, or the start that was given."""
    d, q = inputs.problem.d, inputs.q
    if inputs.initial is None:
        share = _mean_targets(inputs.problem, q)
        b = jnp.where(share > 0, jnp.log(share), 0) * inputs.problem.intercept
        return Params(jnp.zeros((d, q), dtype), b.astype(dtype))
    theta = _units.to_solver(inputs.units, inputs.initial)
    return Params(jnp.asarray(theta[:, 1:].T, dtype), jnp.asarray(theta[:, 0], dtype))


def _solved(
    problem: Problem,
    exact: Problem,
    params: Params,
    targets_gradient: jax.Array,
    absent: np.ndarray,
    work: schedule.Work,
    options: schedule.Options,
    solved: int,
) -> tuple[Params, Certificate, tuple[str, str]]:
    """The last iterate, its certificate, status and reason."""
    is_wide = problem.dtype == jnp.float64
    problem = schedule.with_strengths(problem, [work], problem.dtype)
    exact = schedule.with_strengths(exact, [work], np.float64)
    with jax.enable_x64(is_wide):
        state = _State(params, lbfgs.lbfgs().init(params))
    target, reason = work.target, ""
    while True:
        if work.passes_left(options) > 0:
            # The line search would widen the parameters where float64 is there.
            with jax.enable_x64(is_wide):
                most = np.int32(min(lbfgs.TRIES, work.passes_left(options)))
                state, value, gap, tries = _step(problem, state, absent, most)
            looked = _Looked(np.array([value]), np.array([gap]), np.zeros(1, bool))
            schedule.look([work], looked, tries[None], 1.0, options, solved)
            if work.idle_steps >= _PATIENCE:
                reason = "no step makes progress any more"
            elif work.passes_left(options) > 0 and not work.gap <= target * work.value:
                continue
        passes_left = max(min(_SCALINGS, options.max_passes - work.passes), 1)
        certificate, taken = _certified(exact, state.params, targets_gradient, absent, passes_left)
        work.passes += taken
        if certificate.gap[0] <= options.tol * certificate.value[0]:
            return state.params, certificate, (Status.CERTIFIED, "")
        if reason and work.l2 == 0:
            reason = unbounded(float(certificate.slope[0]))
        elif not reason and work.passes_left(options) < 1:
            reason = used_up(options.max_passes)
        if reason:
            return state.params, certificate, (Status.NOT_CERTIFIED, reason)
        target /= 4


class _Looked(NamedTuple):
    """What `schedule.look` reads of a state."""

    value: np.ndarray
    gap: np.ndarray
    done: np.ndarray


@jax.jit
def _mean(problem: Problem) -> jax.Array:
    """Of the features: ``[d]``."""

    def add(j, total):
        s = block_of(problem.weights, j)[0]
        return total + s @ passes.features(problem, j)

    return over_blocks(problem, add, jnp.zeros(problem.d, problem.dtype))


def _over_rows(problem: Problem, params: Params, absent: Any, *, exact: bool) -> _Pass:
    """The pass, with the entropy only if it is exact."""
    extras = ("entropy",) if exact else ()

    def loss_of(params, j):
        y = block_of(problem.targets, j)
        s = block_of(problem.weights, j)[0]
        out = linear_cross_entropy(
            passes.features(problem, j),
            params.w,
            jnp.where(absent, -jnp.inf, params.b),
            y.T if y.ndim == 2 else y,
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


def _penalty(problem: Problem) -> Penalty:
    """The penalty of the one problem, for weights ``[d, q]``."""
    return Penalty(problem.l2[0], factor=problem.factor, class_axis=-1)


@jax.jit
def _step(
    problem: Problem, state: _State, absent: jax.Array, most: jax.Array
) -> tuple[_State, jax.Array, jax.Array, jax.Array]:
    """One of L-BFGS; value and estimated gap before it, and how many passes it took of ``most``."""
    penalty = _penalty(problem)

    def evaluate(params):
        found = _over_rows(problem, params, absent, exact=False)
        w = found.gradient.w + penalty.gradient(params.w)
        value = found.loss + penalty.smooth_value(params.w)
        return value, Params(w, found.gradient.b)

    @jax.custom_vjp
    def objective(params):
        return evaluate(params)[0]

    objective.defvjp(evaluate, lambda gradient, ct: (jax.tree.map(lambda g: ct * g, gradient),))
    value_and_grad = optax.value_and_grad_from_state(objective)
    value, gradient = value_and_grad(state.params, state=state.optimizer)
    updates, optimizer = lbfgs.lbfgs(most).update(
        gradient, state.optimizer, state.params, value=value, grad=gradient, value_fn=objective
    )
    params = optax.apply_updates(state.params, updates)
    tries = optax.tree.get(optimizer, "info").num_linesearch_steps
    return _State(params, optimizer), value, penalty.conjugate(gradient.w), tries


@jax.jit
def _measured(exact: Problem, params: Params, absent: jax.Array) -> tuple[_Pass, jax.Array]:
    """In float64; and by what to move the bias to bring the means of the predictions closer."""
    found = _over_rows(exact, params, absent, exact=True)
    mean_y = _mean_targets(exact, len(params.b))
    mean_p = mean_y + found.gradient.b
    # One step of iterative scaling (Darroch and Ratcliff 1972).
    ratio = jnp.where(mean_y > 0, mean_y, 1) / jnp.where(mean_p > 0, mean_p, 1)
    return found, jnp.where((mean_y > 0) & (mean_p > 0), jnp.log(ratio), 0)


def _mean_targets(problem: Problem, q: int) -> jax.Array:
    """``[q]``."""
    y, s = problem.targets, problem.weights[:, 0]
    if y.ndim == 3:
        return jnp.einsum("jqr,jr->q", y, s)
    return jnp.zeros(q, s.dtype).at[y.ravel()].add(s.ravel())


def _certified(
    exact: Problem, params: Params, targets_gradient: jax.Array, absent: np.ndarray, most: float
) -> tuple[Certificate, int]:
    """With the bias moved so that means agree better, and the passes it took, up to ``most``."""
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), params)
    mean_y = _mean_targets(exact, len(params.b))
    best, lowest, taken = None, np.inf, 0
    while taken + 1 <= most:
        found, move = _measured(exact, params, absent)
        value, gap, slope = _bound(exact, found, params, mean_y, targets_gradient)
        taken += 1
        is_better = best is None or float(gap) < 0.7 * lowest
        if is_better:
            theta = jnp.concatenate([params.b[:, None], params.w.T], axis=1)
            best, lowest = Certificate(theta[None], value[None], gap[None], slope[None]), float(gap)
            params = params._replace(b=params.b + move)
        else:
            break
    assert best is not None
    return best, taken


@jax.jit
def _bound(
    problem: Problem, found: _Pass, params: Params, mean_y: jax.Array, targets_gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Objective, gap and slope; the gap is the objective where nothing is known."""
    penalty = _penalty(problem)
    value = found.loss + penalty.smooth_value(params.w)
    slope = jnp.max(jnp.abs(found.gradient.w + penalty.gradient(params.w)))
    excess = found.gradient.b
    mean_p = mean_y + excess
    share = jnp.where(excess > 0, excess / jnp.where(mean_p > 0, mean_p, 1), 0)
    # A little more than needed, for rounding.
    mix = jnp.minimum(jnp.max(share) * (1 + 1e-9), 1)
    other = mean_y - jnp.where(mix > 0, (1 - mix) / jnp.where(mix > 0, mix, 1), 0) * excess
    other = jnp.maximum(other, 0)
    entropy_of_other = -jnp.sum(jax.scipy.special.xlogy(other, other))
    g = (1 - mix) * found.gradient.w - mix * targets_gradient
    dual = (1 - mix) * found.entropy + mix * entropy_of_other - penalty.conjugate(g)
    gap = value - dual + 16 * jnp.finfo(value.dtype).eps * jnp.abs(value)
    return value, jnp.where(jnp.isfinite(gap), jnp.clip(gap, 0, value), value), slope
