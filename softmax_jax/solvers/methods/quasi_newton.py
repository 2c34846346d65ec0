r"""L-BFGS on a preconditioner, with an exact line search: the second-order method for l1 = 0.

The two-loop recursion of `pairs` starts from the approximate inverse Hessian of `preconditioner`,
so that the few pairs it keeps only have to mend what is wrong with that. A step is one pass over
the rows: forward, :math:`X \Delta`, and after the search back, :math:`X^\top R`. In between, the
search moves along kept logits, which needs no pass: a few evaluations of n q exponentials.

A problem of a path begins where its neighbour ended, and first goes on in the direction in which
the last two solutions differ, as solutions are smooth in the logarithm of l2:

.. math:: \theta \leftarrow \theta + t\, (\theta - \theta_{\mathrm{anchor}}),

with the solution :math:`\theta_{\mathrm{anchor}}` of the neighbour before.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import Array, ArrayLike, Bool, Float, Int, NDArray
from softmax_jax.solvers import passes
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.jobs import Job
from softmax_jax.solvers.methods import line_search, preconditioner
from softmax_jax.solvers.methods.components import Basis, Sizes, basis, scores
from softmax_jax.solvers.methods.dual import Dual, bound, penalised
from softmax_jax.solvers.methods.logits_free import LogitsFree
from softmax_jax.solvers.methods.method import IterativeMethod, Method, Mixture
from softmax_jax.solvers.methods.newton import Newton
from softmax_jax.solvers.methods.pairs import Pairs, no_pairs, two_loops, with_pair, without_slot
from softmax_jax.solvers.methods.preconditioner import Preconditioner
from softmax_jax.solvers.passes import dot, per_problem
from softmax_jax.solvers.problem import Problem, with_blocks
from softmax_jax.solvers.sparse import SparseRows


class Aids(NamedTuple):
    """Arrays that the preconditioner is made of."""

    basis: Basis
    scores: Float[Array, "pool rows 1+r"]
    """A one and the first component scores of the pool of rows."""


class State(NamedTuple):
    """State of ``k`` problems, at ``theta``."""

    theta: Float[Array, "k q columns"]
    gradient: Float[Array, "k q columns"]
    """Gradient of the objective with the strengths ``l2``."""
    l2: Float[Array, " k"]
    value: Float[Array, " k"]
    """Objectives; inf before the first step."""
    gap: Float[Array, " k"]
    """Duality gaps in working precision, as if the bias were at its minimum."""
    dual: Dual
    logits: Float[Array, "blocks k q rows"]
    """Logits, with the offset."""
    anchor: Float[Array, "k q columns"]
    """Parameters that the problem began with: for a successor, its neighbour's solution."""
    predictor: Float[Array, "k q columns"]
    """Directions of the next steps of problems that have one."""
    has_predictor: Bool[Array, " k"]
    """Problems whose next step is along their predictor."""
    step: Float[Array, " k"]
    """Lengths of the last steps, where the next search begins."""
    pairs: Pairs
    done: Bool[Array, " k"]
    """Problems whose gap is small enough, or that no step brings on."""
    preconditioner: Preconditioner
    age: Int[Array, " k"]
    """Steps since the preconditioner was made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuasiNewton(IterativeMethod[State]):
    """L-BFGS on an approximate Hessian, for l1 = 0: the default.

    It keeps the n q logits of each problem, and several arrays of their size.

    Example:
      >>> from softmax_jax.solvers import fit
      >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
      >>> print(fit(x, y, l2=0.1, method=QuasiNewton(memory=20)).status)
      certified
    """

    memory: int = 8
    """Pairs of moves and changes of the gradient."""
    flat: float = 0.25
    """The line search ends where the slope is this share of the first one."""
    sizes: Sizes = Sizes()  # noqa: RUF009  (frozen)
    """How much of the Hessian the preconditioner has."""
    renewal: int = 30
    """Steps after which a preconditioner is renewed, which takes the time of several steps."""
    renewal_of_exact: int = 8
    """The same where it is the Hessian itself, as it makes the method Newton's."""
    handed_over: int = 10
    """Steps by which a preconditioner counts as older for a problem that inherits it."""
    handed_over_exact: int = 8
    """The same where it was the Hessian itself."""
    most_logits: int = 2**28
    """Number of logits, n q, from which on `beyond` takes over: a gigabyte of float32."""
    beyond: LogitsFree = LogitsFree()  # noqa: RUF009  (frozen)
    """Method for more logits, if there is no offset."""
    few: Newton | None = Newton()  # noqa: RUF009  (frozen)
    """Method where its step costs twice as much as one of this method at most, or penalties of
    features differ by orders."""
    patience: int = 60
    warm_up_steps: int = 12
    in_row_space: bool | None = None
    float64_target: float = 1e-18

    def instead(self, inputs: Inputs, jobs: Sequence[Job]) -> Method:
        """Returns `beyond` where there are too many logits, and `few` where it costs less."""
        if inputs.n * inputs.q >= self.most_logits and inputs.problem.offset is None:
            return self.beyond
        problem, q = inputs.problem, inputs.q
        is_small = inputs.n * inputs.d * q <= self.float64_below
        if self.few is None or not is_small or isinstance(problem.x, SparseRows):
            return self
        suits = self.few.suits(problem.blocks * problem.rows, problem.d, q)
        # Penalties that differ by orders leave little to a Hessian that is not all there.
        is_hard = inputs.needs_float64 and self.sizes.is_exact(problem.d, q)
        if not (suits or is_hard) or any(job.l2 == 0 for job in jobs):
            return self
        return dataclasses.replace(self.few, fallback=self)

    def reason(self, inputs: Inputs) -> str:
        """Returns what part of the Hessian is inverted exactly."""
        d, q = inputs.problem.d, inputs.q
        rank = self.sizes.rank(d, q)
        kind = "features" if self.sizes.is_exact(d, q) else "principal components"
        return (
            f"the Hessian of {rank:,} {kind} and the bias, of order {(1 + rank) * q:,} out of "
            f"{(1 + d) * q:,}, is inverted exactly, at the cost of "
            f"{self.sizes.steps_for_core:g} steps at most"
        )

    def sized(self, inputs: Inputs) -> Self:
        """Returns the method with the order of the core decided."""
        if inputs.needs_float64:
            return self
        return dataclasses.replace(self, sizes=self.sizes.decided(inputs.problem, inputs.q))

    def renewal_for(self, d: int, q: int) -> int:
        """Returns the steps after which a preconditioner is renewed."""
        return self.renewal_of_exact if self.sizes.is_exact(d, q) else self.renewal

    def steps_between_looks(self, d: int, q: int) -> int:
        """Returns as many steps as one preconditioner serves."""
        return self.renewal_for(d, q)

    def patience_with(self, d: int, q: int, *, small: bool) -> int:
        """Returns the steps without progress that count: few where the Hessian is exact."""
        if small and self.sizes.is_exact(d, q):
            return self.renewal_of_exact
        return self.patience

    def aids(self, problem: Problem, factor: jax.Array, q: int) -> Aids:
        """Returns the components of the features, and the component scores."""
        axes = basis(self.sizes, problem, factor, q)
        u = axes.components[:, : self.sizes.rank(problem.d, q)]
        return Aids(axes, scores(self.sizes, problem, u))

    def init(self, problem: Problem, aids: Aids, theta: jax.typing.ArrayLike) -> State:
        """Returns the state after a step from zero, where logits take no pass, to ``theta``."""
        k = np.shape(problem.penalty.l2)[0]
        # The preconditioner is yet to come: it is made where the problems stand then.
        state, _ = self.advance(
            problem,
            aids,
            _blank(self, problem, aids, theta),
            target=np.zeros(k, problem.dtype),
            limit=np.asarray(1),
            stop_at_first=np.bool_(False),
        )
        return state

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
        """Renews preconditioners that are old enough, and takes up to ``limit`` steps."""
        return _advance(self, problem, aids, state, target, limit, stop_at_first)

    def hand_over(
        self, problem: Problem, state: State, slot: ArrayLike, source: ArrayLike
    ) -> State:
        """Lets a new problem in ``slot`` go on from where that of ``source`` stands.

        Its first step leads further the way from the neighbour before to this one. The dual of the
        source is one of the new problem too.
        """
        return _hand_over(self, problem, state, slot, source)

    def restart(self, state: State, slot: ArrayLike) -> State:
        """Forgets the pairs, which rounding may have spoilt, and the preconditioner."""
        return _restart(self, state, slot)

    def dual(self, state: State, target: Float[NDArray, " k"]) -> Mixture:
        """Returns the mean of the distributions met on the way."""
        plain, value = np.asarray(state.dual.plain), np.asarray(state.value)
        return Mixture(state.dual.probabilities, ~(plain <= target * value))


@partial(compiled, static_argnames="method")
def _blank(
    method: QuasiNewton, problem: Problem, aids: Aids, theta: Float[Array, "k q columns"]
) -> State:
    """Returns the state at zero, about to step to ``theta``."""
    k, q, columns = theta.shape
    order = q * aids.scores.shape[-1]
    zero, nothing = jnp.zeros(k, theta.dtype), jnp.zeros_like(theta)
    logits = jnp.zeros((problem.blocks, k, q, problem.rows), theta.dtype)
    return State(
        theta=nothing,
        gradient=nothing,
        l2=problem.l2,
        value=zero + jnp.inf,
        gap=zero + jnp.inf,
        dual=Dual(logits, nothing, zero - jnp.inf, zero + jnp.inf),
        logits=logits if problem.offset is None else logits + problem.offset[:, None],
        anchor=theta,
        predictor=theta,
        has_predictor=jnp.ones(k, bool),
        step=zero + 1,
        pairs=no_pairs(method.memory, theta),
        done=jnp.zeros(k, bool),
        preconditioner=Preconditioner(
            core=jnp.zeros((k, order, order), theta.dtype),
            class_vectors=jnp.zeros((k, q, q), theta.dtype),
            class_values=jnp.zeros((k, q), theta.dtype),
        ),
        # It is renewed after the first step.
        age=jnp.full(k, method.renewal_for(columns - 1, q) - 1, jnp.int32),
    )


@partial(compiled, static_argnames="method", donate_argnames="state")
def _hand_over(
    method: QuasiNewton, problem: Problem, state: State, slot: jax.Array, source: jax.Array
) -> State:
    def inherit(array, axis=0):
        own = jax.lax.dynamic_slice_in_dim(array, source, 1, axis)
        return jax.lax.dynamic_update_slice_in_dim(array, own, slot, axis)

    theta, l2 = state.theta[source], problem.l2[slot]
    change = (l2 - state.l2[source]) * (problem.factor**2)[None] * theta[..., 1:]
    exact = method.sizes.is_exact(problem.d, theta.shape[0])
    older = method.handed_over_exact if exact else method.handed_over
    age = state.age[source] + older
    state = _with_pairs_forgotten(state, slot)
    return state._replace(
        theta=inherit(state.theta),
        gradient=state.gradient.at[slot].set(state.gradient[source].at[:, 1:].add(change)),
        l2=state.l2.at[slot].set(l2),
        value=inherit(state.value),
        gap=state.gap.at[slot].set(jnp.inf),
        dual=Dual(
            inherit(state.dual.probabilities, 1),
            inherit(state.dual.gradient),
            inherit(state.dual.entropy),
            inherit(state.dual.plain),
        ),
        logits=inherit(state.logits, 1),
        anchor=state.anchor.at[slot].set(theta),
        predictor=state.predictor.at[slot].set(theta - state.anchor[source]),
        has_predictor=state.has_predictor.at[slot].set(True),
        preconditioner=jax.tree.map(inherit, state.preconditioner),
        age=state.age.at[slot].set(age),
    )


@partial(compiled, static_argnames="method", donate_argnames="state")
def _restart(method: QuasiNewton, state: State, slot: jax.Array) -> State:
    _, q, columns = state.theta.shape
    old = method.renewal_for(columns - 1, q)
    return _with_pairs_forgotten(state, slot)._replace(age=state.age.at[slot].set(old))


def _with_pairs_forgotten(state: State, slot: jax.Array) -> State:
    return state._replace(
        pairs=without_slot(state.pairs, slot),
        step=state.step.at[slot].set(1),
        done=state.done.at[slot].set(False),
    )


@partial(compiled, static_argnames="method", donate_argnames="state")
def _advance(
    method: QuasiNewton,
    problem: Problem,
    aids: Aids,
    state: State,
    target: Float[Array, " k"],
    limit: jax.Array,
    stop_at_first: jax.Array,
) -> tuple[State, jax.Array]:
    blocks, size = aids.scores.shape[0], method.sizes.sample
    share = jnp.asarray(problem.active, problem.dtype) / problem.blocks
    is_active = (jnp.arange(blocks) < problem.active).astype(problem.dtype)
    renewed = (state.age >= method.renewal_for(problem.d, state.theta.shape[1])) & ~state.done

    def preconditioner_of(i):
        weights = problem.weights[:blocks, jnp.minimum(i, problem.weights.shape[1] - 1)]
        seen = weights * is_active[:, None]
        return jax.lax.cond(
            renewed[i],
            lambda: preconditioner.build(
                size, aids.basis, aids.scores, state.logits[:blocks, i], seen, problem.l2[i], share
            ),
            lambda: jax.tree.map(lambda a: a[i], state.preconditioner),
        )

    made = jax.lax.map(preconditioner_of, jnp.arange(problem.l2.size))
    state = state._replace(preconditioner=made)
    state, taken = passes.steps_until_done(
        lambda state: _step(method, problem, aids.basis, state, target),
        state,
        limit,
        stop_at_first,
    )
    return state._replace(age=jnp.where(renewed, 0, state.age) + taken), taken


def _step(
    method: QuasiNewton, problem: Problem, basis: Basis, state: State, target: Float[Array, " k"]
) -> State:
    direction = -two_loops(
        state.pairs,
        state.gradient,
        lambda v: preconditioner.apply(state.preconditioner, basis, problem.l2, v),
    )
    direction, decrement = line_search.guarded(
        state.gradient, direction, state.predictor, state.has_predictor
    )
    ahead = passes.linear(problem, direction)
    is_first = jnp.isinf(state.value)
    line = line_search.Line(
        theta=state.theta,
        logits=state.logits,
        value=state.value,
        gradient=state.gradient,
        direction=direction,
        ahead=ahead,
        step=state.step,
        is_fixed=is_first,
        is_done=state.done,
    )
    t, loss, probabilities = line_search.search(problem, line, flat=method.flat)
    move = per_problem(t) * direction
    theta = state.theta + move
    logits = with_blocks(problem, lambda o, a: o + per_problem(t) * a, state.logits, ahead)
    here = Dual(
        probabilities,
        passes.gradient(problem, probabilities),
        entropy=loss,
        plain=jnp.full_like(loss, jnp.inf),
    )
    value, gradient = penalised(problem, theta, loss, here.gradient)
    change = gradient - state.gradient
    along = jnp.where(is_first, 0, dot(move, change))
    gap, dual = bound(problem, theta, loss, here, state.dual, decrement)

    return state._replace(
        theta=theta,
        gradient=gradient,
        value=value,
        gap=gap,
        dual=dual,
        logits=logits,
        has_predictor=jnp.zeros_like(state.has_predictor),
        step=jnp.where((t > 0) & ~state.has_predictor, t, state.step),
        pairs=with_pair(state.pairs, move, change, along, state.done),
        done=state.done | (gap <= target * value) | ((t == 0) & ~state.has_predictor),
    )
