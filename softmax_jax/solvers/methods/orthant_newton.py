r"""Newton's method on the weights that are not zero, for the elastic net: the default for l1 > 0.

Where no weight changes its sign the objective is smooth. So a step goes on as Newton's method would
in the orthant of the present signs (Andrew and Gao 2007; Keskar, Nocedal, Öztoprak and Wächter
2016). With the gradient G of the loss, a weight is in it if it is not zero, with its sign, or if
:math:`|G| > \tau`, with the sign of -G; for those, A,

.. math:: (H_{AA} + \mathrm{diag}(\rho_A))\, D_A = -(G + \rho W + \tau \sigma)_A

is solved by conjugate gradients, a product with the Hessian being a pass over the rows without
exponentials. Weights that would leave the orthant become zero, and the others are solved for anew,
as they would not have gone there with these held: without that, a weight that comes and one that
goes may take turns for ever. The line to where all that leads is searched on kept logits. Zeros are
exact after whole steps.

The loss does not see one number added to a feature's weights of all classes. It is set by itself,
so that of each feature at least one weight is zero where l2 = 0.

A path is walked in one program: each strength begins where the line through the last two solutions
leads, and most need one step or two from there.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, ArrayLike, Bool, Float, Int
from softmax_jax.solvers import cost, offsets, passes
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.diagonal import variances
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.jobs import Job
from softmax_jax.solvers.methods.class_blocks import renewed_blocks
from softmax_jax.solvers.methods.components import Sizes, scores, step_of
from softmax_jax.solvers.methods.corner import Corner, corner_of, without_common_part
from softmax_jax.solvers.methods.dual import gap_of_sharp
from softmax_jax.solvers.methods.line_search import backtrack
from softmax_jax.solvers.methods.method import Method, PathMethod, Walk
from softmax_jax.solvers.methods.orthant import Preconditioner, newton_direction
from softmax_jax.solvers.methods.proximal import Proximal
from softmax_jax.solvers.methods.walking import Path, Way, walk
from softmax_jax.solvers.passes import dot, per_problem
from softmax_jax.solvers.problem import Problem, within_limits
from softmax_jax.solvers.sparse import SparseRows


class Aids(NamedTuple):
    """Arrays that preconditioners are made of."""

    variance: Float[Array, " columns"]
    """One for the bias, and the variances of the features."""
    rows: Float[Array, "pool rows columns"]
    """A one and the features of the pool of rows; or no blocks."""


class State(NamedTuple):
    """State of ``k`` problems, at ``theta``."""

    theta: Float[Array, "k q columns"]
    logits: Float[Array, "blocks k q rows"]
    """Logits, with the offset; of each row, up to one number for all classes."""
    probabilities: Float[Array, "blocks k q rows"]
    loss: Float[Array, " k"]
    """Mean losses."""
    gradient: Float[Array, "k q columns"]
    """Gradient of the mean loss."""
    value: Float[Array, " k"]
    gap: Float[Array, " k"]
    blocks: Float[Array, "k q_or_0 columns columns"]
    """Inverse Hessians of single classes, if there are any."""
    coupled: Bool[Array, "k q columns"]
    """Parameters that these couple."""
    age: Int[Array, " k"]
    """Steps since these were made."""
    predictor: Float[Array, "k q columns"]
    """Directions of the next steps of problems that have one."""
    has_predictor: Bool[Array, " k"]
    """Problems whose next step is along their predictor."""
    damping: Float[Array, " k"]
    """Share of its diagonal that is added to the Hessian."""
    steps: Int[Array, " k"]
    """Steps so far."""
    passes: Int[Array, " k"]
    """Passes so far, with those of products."""
    failures: Int[Array, " k"]
    """Steps in a row that led nowhere."""
    done: Bool[Array, " k"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrthantNewton(PathMethod):
    """Newton's method on the weights that are not zero, for l1 > 0: the default there.

    Example:
      >>> import numpy as np
      >>> from softmax_jax.solvers import fit
      >>> x, y = np.array([[0.0, 1], [1, 0], [2, 0], [3, 1]]), np.array([0, 0, 1, 1])
      >>> solution = fit(x, y, l2=0.0, l1=0.05, l1_method=OrthantNewton())
      >>> print(solution.status)
      certified
      >>> np.all(solution.params.w == 0, axis=1).tolist()  # the second feature tells nothing
      [False, True]
    """

    fallback: Method | None = Proximal()  # noqa: RUF009  (frozen)
    """Method for problems that this one does not solve, if any."""
    fallback_after: int = 1000
    """Passes after which it takes over."""
    products: int = 150
    """Products with the Hessian a step, at most."""
    rounds: int = 5
    """Times that a step is mended where weights leave the orthant."""
    accuracy: float = 0.1
    """Share of the residual, in the norm of the preconditioner, at which a step is good enough."""
    share: float = 0.5
    """Share of the largest excess over its threshold above which a weight leaves zero in the first
    step; its powers in the following ones."""
    least_damping: float = 1e-10
    """Share of its diagonal that is added to the Hessian, at least; ten roundings where that is
    more. It grows where steps lead nowhere."""
    patience: int = 6
    """Steps in a row that lead nowhere after which precision counts as exhausted."""
    most_in_float32: int = 20
    """Steps for a strength of a path after which the rest of it is left to float64."""
    float64_below: int = 100_000
    steps_for_blocks: float = 400.0
    """Steps that the inverse Hessians of single classes may cost, for conjugate gradients to be
    preconditioned by them; where they cost more, diagonals have to do."""
    most_in_blocks: int = 2**26
    """Numbers that they may have: 256 MiB of float32 for each problem."""
    renewal: int = 10
    """Steps after which they are renewed."""
    newcomers: float = 0.15
    """Share of the moving parameters, of those that they do not couple, above which they are, too.
    """
    sample: int = 4096
    """Rows that they, and the variances of the features, are estimated from."""
    pool: int = 16_384
    """Rows that these are drawn from: their features are kept."""

    def reason(self, inputs: Inputs) -> str:
        """Returns the kind of problem that it is for."""
        if not inputs.problem.penalty.is_plain:
            return "the default where single weights have penalties or limits of their own"
        return "the default where l1 > 0"

    def instead(self, inputs: Inputs, jobs: Sequence[Job]) -> Method:
        """Returns the fallback where offsets are large."""
        is_large = offsets.are_large(inputs, self)
        return self.fallback if is_large and self.fallback is not None else self

    def successor(self, inputs: Inputs) -> Method | None:
        """Returns the fallback."""
        return self.fallback

    @property
    def successor_after(self) -> float:
        """Passes after which the fallback takes over."""
        return self.fallback_after

    def aids(self, problem: Problem, factor: jax.Array, q: int) -> Aids:
        """Returns what preconditioners are made of."""
        rows = jnp.zeros((0, problem.rows, 1 + problem.d), problem.dtype)
        if self.has_blocks(problem, q):
            pool = Sizes(pool=self.pool)
            rows = scores(pool, problem, jnp.eye(problem.d, dtype=problem.dtype))
        return Aids(variances(problem, self.sample), rows)

    def has_blocks(self, problem: Problem, q: int) -> bool:
        """Returns whether Hessians of single classes are worth their cost."""
        is_large = q * (1 + problem.d) ** 2 > self.most_in_blocks
        if is_large or problem.penalty.grouped or isinstance(problem.x, SparseRows):
            return False
        rows = min(problem.blocks * problem.rows, self.sample)
        costs = q * cost.inverse_hessian(rows, 1 + problem.d)
        return costs <= self.steps_for_blocks * step_of(problem, q)

    def walk(
        self,
        problem: Problem,
        aids: Aids,
        theta: ArrayLike,
        previous: ArrayLike,
        *,
        l2: ArrayLike,
        l1: ArrayLike,
        target: ArrayLike,
        limit: ArrayLike,
    ) -> Walk:
        """Solves a path of strengths in one program."""
        return _walk(self, problem, aids, theta, previous, l2, l1, target, limit)


def _begun(
    method: OrthantNewton, problem: Problem, aids: Aids, theta: Float[Array, "k q columns"]
) -> State:
    k, q, columns = theta.shape
    classes = q if len(aids.rows) else 0
    logits = passes.logits(problem, theta)
    loss, probabilities = passes.loss_and_probabilities(problem, logits)
    zero, none = jnp.zeros(k, theta.dtype), jnp.zeros(k, jnp.int32)
    state = State(
        theta=theta,
        logits=logits,
        probabilities=probabilities,
        loss=loss,
        gradient=passes.gradient(problem, probabilities),
        value=zero,
        gap=zero,
        blocks=jnp.zeros((k, classes, columns, columns), theta.dtype),
        coupled=jnp.zeros(theta.shape, bool),
        # They are made before the first step.
        age=none + method.renewal,
        predictor=jnp.zeros_like(theta),
        has_predictor=jnp.zeros(k, bool),
        damping=zero + _least_damping(method, theta.dtype),
        steps=none,
        passes=none,
        failures=none,
        done=jnp.zeros(k, bool),
    )
    return _measured(problem, state)


def _least_damping(method: OrthantNewton, dtype: jnp.dtype) -> float:
    return max(method.least_damping, 10 * float(jnp.finfo(dtype).eps))


def _measured(problem: Problem, state: State) -> State:
    """Returns the state with objectives and gaps for the strengths of the problem."""
    w, g = state.theta[..., 1:], state.gradient
    # The bias is not at its minimum, but will be.
    gap = gap_of_sharp(problem, w, g[..., 1:], state.loss) + jnp.sum(jnp.abs(g[..., 0]), axis=-1)
    return state._replace(value=state.loss + problem.penalty.value(w), gap=gap)


def _step(
    method: OrthantNewton, problem: Problem, aids: Aids, state: State, limit: Int[Array, " k"]
) -> State:
    """Takes a step with each problem that is not done, of so many passes in all at most."""
    state = state._replace(theta=without_common_part(problem, state.theta))
    state = _measured(problem, state)
    penalty, w, g = problem.penalty, state.theta[..., 1:], state.gradient
    works = ~state.done & ~state.has_predictor
    share = method.share ** (1 + state.steps).astype(g.dtype)
    corner = corner_of(problem, state.theta, g, share)
    state = _with_blocks_renewed(method, problem, aids, corner, state, works)
    direction, products = newton_direction(
        problem,
        corner,
        state.probabilities,
        Preconditioner(aids.variance, state.blocks, state.damping),
        jnp.where(works, jnp.minimum(method.products, limit - state.passes - 1), 0),
        rounds=method.rounds,
        accuracy=method.accuracy,
    )
    direction = jnp.where(per_problem(state.has_predictor), state.predictor, direction)
    ahead = passes.linear(problem, direction)
    slope = dot(g, direction) + penalty.value(w + direction[..., 1:]) - penalty.value(w)
    t, loss, probabilities = backtrack(
        problem, state.theta, state.logits, state.value, direction, ahead, slope, state.done
    )
    is_whole, fails = t == 1, t == 0
    # A whole step keeps the zeros that were found.
    there = jnp.where(
        per_problem(is_whole), state.theta + direction, state.theta + per_problem(t) * direction
    )
    there = within_limits(problem, there)
    eased = jnp.where(is_whole, state.damping / 3, state.damping)
    damping = jnp.where(t < 0.1, 30 * state.damping, eased)
    counts = ~state.has_predictor
    state = state._replace(
        theta=jnp.where(per_problem(fails), state.theta, there),
        logits=state.logits + t[None, :, None, None] * ahead,
        probabilities=probabilities,
        loss=loss,
        gradient=passes.gradient(problem, probabilities),
        has_predictor=jnp.zeros_like(state.has_predictor),
        damping=jnp.where(
            counts, jnp.maximum(damping, _least_damping(method, g.dtype)), state.damping
        ),
        steps=state.steps + ~state.done,
        age=state.age + works,
        passes=state.passes + jnp.where(state.done, 0, 1 + products),
        failures=jnp.where(fails & ~state.done, state.failures + counts, 0),
    )
    return _measured(problem, state)


def _with_blocks_renewed(
    method: OrthantNewton,
    problem: Problem,
    aids: Aids,
    corner: Corner,
    state: State,
    works: Bool[Array, " k"],
) -> State:
    if not len(aids.rows):
        return state
    newcomers = jnp.sum(corner.moves & ~state.coupled, axis=(1, 2))
    are_many = newcomers > method.newcomers * jnp.sum(corner.moves, axis=(1, 2))
    renewed = ((state.age >= method.renewal) | are_many) & works
    return state._replace(
        blocks=renewed_blocks(
            problem, aids.rows, method.sample, state.logits, corner, state.blocks, renewed
        ),
        coupled=jnp.where(per_problem(renewed), corner.moves, state.coupled),
        age=jnp.where(renewed, 0, state.age),
    )


@partial(compiled, static_argnames="method")
def _walk(
    method: OrthantNewton,
    problem: Problem,
    aids: Aids,
    theta: Float[Array, "k q columns"],
    previous: Float[Array, "k q columns"],
    l2: Float[Array, " strengths"],
    l1: Float[Array, " strengths"],
    target: Float[Array, " strengths"],
    limit: jax.Array,
) -> Walk:
    def begin(problem, theta):
        return _begun(method, problem, aids, theta)

    def step(problem, state, done):
        most = jnp.full(len(theta), limit, jnp.int32)
        return _step(method, problem, aids, state._replace(done=done), most)

    def is_stuck(state):
        stuck = (state.failures >= method.patience) | (state.passes >= limit)
        if theta.dtype == jnp.float32:
            # It gets harder from there on, so that float64 has to do.
            stuck = stuck | (state.steps >= method.most_in_float32)
        return stuck

    def begin_next(state, predictor, moves, has_predictor):
        rested = _least_damping(method, theta.dtype)
        return state._replace(
            predictor=jnp.where(per_problem(moves), predictor, state.predictor),
            has_predictor=jnp.where(moves, has_predictor, state.has_predictor),
            damping=jnp.where(moves, rested, state.damping),
            steps=jnp.where(moves, 0, state.steps),
            passes=jnp.where(moves, 0, state.passes),
            failures=jnp.where(moves, 0, state.failures),
        )

    way = Way(begin, _measured, step, is_stuck, begin_next)
    return walk(way, problem, theta, previous, Path(l2, l1, target))
