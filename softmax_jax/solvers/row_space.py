r"""Problems with more features than rows, solved in as many dimensions as there are rows.

With a squared penalty the weights of the solution are a combination of the rows (the representer
theorem, Schölkopf, Herbrich and Smola 2001). Let :math:`Z = X F^{-1}` be the features in the units
in which they are penalised, :math:`V = F W` the weights for them, and

.. math:: Z Z^\top = U S^2 U^\top, \qquad V = Z^\top U S^{-1} B.

Then :math:`Z V = U S B` and :math:`|V|^2 = |B|^2`: the problem with features :math:`U S`, which are
:math:`n \times n`, weights :math:`B` and the same strength. Its features are their own principal
components. The change of variables is exact but for rounding, and the certificate is that of the
weights for the features as they are.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import Array, Float, NDArray
from softmax_jax.solvers import cost, passes, schedule
from softmax_jax.solvers.certificate import Certificate, certified_together
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.jobs import OUT_OF_PRECISION, Job, Stop, verdict
from softmax_jax.solvers.methods.method import IterativeMethod
from softmax_jax.solvers.plan import Plan
from softmax_jax.solvers.problem import (
    NEVER,
    Problem,
    block_of,
    over_blocks,
)
from softmax_jax.solvers.report import Report
from softmax_jax.solvers.solution import Solution, negligible, solution_of
from softmax_jax.solvers.sparse import SparseRows
from softmax_jax.solvers.units import Units, from_solver

# The first step, another, and the certificates inside and outside.
_LEAST_PASSES = 4


class RowSpace(NamedTuple):
    """A change of variables."""

    vectors: Float[Array, "n n"]
    """``U``, for the rows in the order of the blocks."""
    sizes: Float[Array, " n"]
    """``S``, largest first; 0 where that is rounding."""


def pays(inputs: Inputs, jobs: Sequence[Job]) -> bool:
    """Returns whether it costs less to solve the problems so."""
    within, without = costs(inputs, jobs)
    return within < without


def costs(inputs: Inputs, jobs: Sequence[Job]) -> tuple[float, float]:
    """Returns what it costs to solve the problems in the space of the rows, and as they are."""
    n, d, q = inputs.problem.blocks * inputs.problem.rows, inputs.problem.d, inputs.q
    steps = cost.STEPS + cost.STEPS_FROM_NEIGHBOUR * (len(jobs) - 1)
    change = cost.FLOAT64 * (2.0 * n * n * d + 2 * cost.eigenvectors(n))
    return change + steps * cost.step(n, n * n, q), steps * cost.step(n, n * d, q)


def applies(inputs: Inputs, jobs: Sequence[Job], stop: Stop) -> bool:
    """Returns whether the problems can be solved so: dense rows, l2 > 0, and no start given."""
    return (
        not isinstance(inputs.problem.x, SparseRows)
        and inputs.initial is None
        and inputs.problem.penalty.is_plain
        and all(job.l2 > 0 and job.l1 == 0 for job in jobs)
        and stop.max_passes >= _LEAST_PASSES
    )


def solve(
    inputs: Inputs,
    jobs: Sequence[Job],
    method: IterativeMethod,
    stop: Stop,
    report: Report,
    *,
    slots: int = 1,
) -> dict[tuple[int, ...], tuple[Solution, Job]]:
    """Solves jobs as `schedule.solve` does, in the space of the rows."""
    space, features = _change(inputs.problem)
    less = stop._replace(max_passes=stop.max_passes - 1)
    inside = schedule.solve(_inside(inputs, features), jobs, method, less, report, slots=slots)
    within, without = costs(inputs, jobs)
    reason = f"in the space of the rows: it takes {within:.1e} FLOP, that of features {without:.1e}"
    solved = {}
    for m in sorted({job.weighting for job in jobs}):
        own = [(s, job) for s, job in inside.values() if job.weighting == m]
        ended = [job for _, job in own]
        plans = [_with_reason(solution.plan, reason) for solution, _ in own]
        thetas = _outside(inputs.problem, space, _stacked([solution for solution, _ in own]))
        certified = certified_together(inputs.problem, m, ended, thetas)
        for i, (job, alone) in enumerate(zip(ended, certified, strict=True)):
            found, job = _settled(inputs, job.after(1), alone, method, stop, report)
            solved[job.place] = found._replace(plan=found.plan or plans[i]), job
    return solved


def _inside(inputs: Inputs, features: Float[Array, "blocks rows n"]) -> Inputs:
    """Returns the problem in the new variables; whether it is small is up to the old ones."""
    n = features.shape[-1]
    zeros, ones = jnp.zeros(n), jnp.ones(n)
    penalty = dataclasses.replace(inputs.problem.penalty, factor=ones)
    problem = inputs.problem._replace(x=features, center=zeros, scale=ones, penalty=penalty)
    units = Units(np.zeros(n), np.ones(n), np.ones(n, bool))
    return inputs._replace(problem=problem, units=units)


def _with_reason(plan: Plan | NDArray | None, reason: str) -> Plan:
    assert isinstance(plan, Plan)
    return plan._replace(reasons=(*plan.reasons, reason))


def _stacked(solutions: Sequence[Solution]) -> np.ndarray:
    """Returns ``[k, q, 1 + n]`` parameters, the bias in front."""
    w, b = (np.stack([getattr(s.params, name) for s in solutions]) for name in ("w", "b"))
    b = np.where(np.isneginf(b), NEVER, b)
    return np.concatenate([b[..., None], np.swapaxes(w, 1, 2)], axis=2)


def _settled(
    inputs: Inputs,
    job: Job,
    certificate: Certificate,
    method: IterativeMethod,
    stop: Stop,
    report: Report,
) -> tuple[Solution, Job]:
    """Returns the solution that is certified, or else what all features lead to from there."""
    ended = verdict(
        job,
        stop,
        value=float(certificate.value[0]),
        gap=float(certificate.gap[0]),
        slope=float(certificate.slope[0]),
        floor=negligible(inputs, job.weighting),
        patience=1,
        done=False,
        separated=False,
    )
    if ended is not None and ended != OUT_OF_PRECISION:
        return solution_of(inputs, inputs.units, certificate, job, ended, tol=stop.tol), job
    report.solved -= 1
    start = from_solver(inputs.units, np.asarray(certificate.theta[0]))
    inputs = inputs._replace(initial=start)
    (found,) = schedule.solve(inputs, [job.begun_anew()], method, stop, report).values()
    return found


@compiled
def _change(problem: Problem) -> tuple[RowSpace, Float[Array, "blocks rows n"]]:
    """Returns the change of variables and the new features."""
    blocks, rows = problem.blocks, problem.rows
    n, counts = blocks * rows, _counts(problem)

    def penalised(j):
        x = passes.features(problem, j) / jnp.broadcast_to(problem.factor, (rows, problem.d))
        return x * block_of(counts, j)[:, None]

    def gram_of(i):
        own = penalised(i)
        return jax.lax.map(
            lambda j: jnp.matmul(own, penalised(j).T, precision="highest"), jnp.arange(blocks)
        )

    gram = jax.lax.map(gram_of, jnp.arange(blocks)).transpose(0, 2, 1, 3).reshape(n, n)
    values, vectors = jnp.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    is_rounding = values <= n * jnp.finfo(values.dtype).eps * values[0]
    sizes = jnp.sqrt(jnp.where(is_rounding, 0, values))
    features = vectors * jnp.broadcast_to(sizes, vectors.shape)
    return RowSpace(vectors, sizes), features.reshape(blocks, rows, n)


@compiled
def _outside(
    problem: Problem, space: RowSpace, theta: Float[Array, "k q columns"]
) -> Float[Array, "k q _"]:
    """Returns parameters for the features: a pass back, for all problems together."""
    k, q, _ = theta.shape
    inverse = jnp.where(space.sizes > 0, 1 / jnp.where(space.sizes > 0, space.sizes, 1), 0)
    b = theta[..., 1:] * jnp.broadcast_to(inverse, theta[..., 1:].shape)
    a = jnp.matmul(b, space.vectors.T, precision="highest")
    a = jnp.moveaxis(a.reshape(k, q, problem.blocks, problem.rows), 2, 0)
    counts = _counts(problem)

    def add(j, w):
        own = block_of(a, j)
        own = own * jnp.broadcast_to(block_of(counts, j), own.shape)
        return w + passes.backward(problem, own, j)[..., 1:]

    zero = jnp.zeros((k, q, problem.d), theta.dtype)
    w = over_blocks(problem, add, zero)
    w = w / jnp.broadcast_to(problem.factor**2, w.shape)
    return jnp.concatenate([theta[..., :1], w], axis=-1)


def _counts(problem: Problem) -> Float[Array, "blocks rows"]:
    """Returns 1 for rows that have weight under any weighting, else 0."""
    return jnp.any(problem.weights > 0, axis=1).astype(problem.dtype)
