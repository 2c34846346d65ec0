"""`fit_many`: many small problems, each with rows of its own, in one call.

A small problem costs less than to ask for its solution. So they are stacked, and one program takes
them in turn, each for as many steps of Newton's method as it needs; on a device with many cores,
some at a time. Those with more parameters are solved one by one, by programs that they share.
"""

import concurrent.futures
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import _fork
from softmax_jax._annotations import AnyArray, Array, Float, NDArray
from softmax_jax.checks import is_sparse
from softmax_jax.data import host_targets
from softmax_jax.data.blocks import NUMBERS
from softmax_jax.penalty import Penalty
from softmax_jax.solvers import cost, jax_settings, spread
from softmax_jax.solvers import strengths as checked_strengths
from softmax_jax.solvers.buckets import rounded_up
from softmax_jax.solvers.certificate import certify
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.fit import checked_stop, fit
from softmax_jax.solvers.jobs import MAX_PASSES, TOL
from softmax_jax.solvers.methods import newton
from softmax_jax.solvers.methods.newton import Newton
from softmax_jax.solvers.plan import Plan
from softmax_jax.solvers.problem import NEVER, Problem
from softmax_jax.solvers.rows import Rows, checked_rows
from softmax_jax.solvers.solution import (
    NEGLIGIBLE,
    History,
    Progress,
    Solution,
    deviance_explained,
    stacked,
)
from softmax_jax.solvers.units import Units, of_several, to_users
from softmax_jax.status import Status


def fit_many(
    x: AnyArray | Sequence[AnyArray],
    y: AnyArray | Sequence[AnyArray],
    *,
    l2: AnyArray,
    num_classes: SupportsIndex | None = None,
    sample_weight: AnyArray | Sequence[AnyArray] | None = None,
    scale: AnyArray = None,
    shift: AnyArray = None,
    fit_intercept: bool = True,
    standardize: bool = False,
    tol: float = TOL,
    max_passes: float = MAX_PASSES,
    callback: Callable[[Progress], None] | None = None,
) -> Solution:
    r"""Solves many problems, each with rows of its own, as `fit` does a single one.

    .. math:: F_p(W_p, b_p) = \frac{\sum_i s_{pi} l_{pi}}{\sum_i s_{pi}}
        + \frac{l_{2,p}}{2} \|W_p\|^2

    Small ones of few parameters are solved by one program, in float64, to rounding; the others, and
    those that this does not certify, by `fit` in turn. Each has a certificate of its own.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(100, 30, 2))  # a hundred problems of 30 rows
      >>> y = (x.sum(axis=2) > 0).astype(int)
      >>> solution = fit_many(x, y, l2=0.1)
      >>> solution.params.w.shape, set(map(str, solution.status))
      ((100, 2, 2), {'certified'})

    Args:
      x: ``[p, n, d]`` features of p problems; or a sequence of p arrays ``[n_i, d]``, which may
        have different numbers of rows.
      y: ``[p, n]`` class ids, or ``[p, n, q]`` probabilities; or a sequence of p arrays.
      l2: strength of the squared penalty, a number or ``[p]``.
      num_classes: q, by default one more than the largest class id of all problems.
      sample_weight: ``[p, n]`` weights, or a sequence of p arrays; None means 1.
      scale: the features are ``x * scale + shift``; numbers, or ``[d]``. None means 1 and 0.
      shift: see ``scale``.
      fit_intercept: see `fit`.
      standardize: see `fit`; by the deviations in each problem.
      tol: see `fit`.
      max_passes: see `fit`; for each problem.
      callback: called with a `Progress` when problems are solved, some at a time.

    Returns:
      A `Solution` whose arrays have an axis of problems in front.

    Raises:
      ValueError: as `fit`; rows are numbered through all problems.
    """
    _fork.refuse_broken_process()
    began, stop = time.perf_counter(), checked_stop(tol, max_passes)
    ends, x, y, sample_weight = _joined(x, y, sample_weight)
    problems = len(ends)
    strengths, _ = checked_strengths.checked(l2, 0.0)
    if isinstance(strengths, str) or strengths.shape not in ((), (problems,)):
        raise ValueError(f"l2: {l2!r}; expected a number, or one for each of {problems} problems")
    strengths = np.broadcast_to(strengths, problems)
    told = callback and jax_settings.under_present_settings(callback)
    with jax_settings.held():
        rows = checked_rows(
            x,
            y,
            num_classes=num_classes,
            sample_weight=sample_weight,
            class_weight=None,
            offset=None,
            scale=scale,
            shift=shift,
            initial=None,
        )
    own = _Problems(rows, ends, strengths, fit_intercept, standardize)
    for i in range(problems):
        at, q = own.of(i), rows.mass.shape[1]
        mass = host_targets.mass_of_classes(rows.y[at], rows.weights[0, at], q)
        host_targets.refuse_single_class(mass, f"y of problem {i}")
    solutions: dict[tuple[int, ...], Solution] = {}

    def report(found: dict[int, Solution]) -> None:
        solutions.update({(i,): solution for i, solution in found.items()})
        if told and found:
            last = list(found.values())[-1]
            told(
                Progress(
                    time.perf_counter() - began,
                    len(solutions),
                    problems,
                    float(last.passes),
                    float(last.objective),
                    float(last.relative_gap),
                )
            )

    for found in _solved_together(own, stop.tol, stop.max_passes):
        report(found)
    q = rows.mass.shape[1]
    for i in range(problems):
        if (i,) not in solutions:
            part = own.of(i)
            one = fit(
                x[part],
                y[part],
                l2=float(strengths[i]),
                num_classes=q,
                sample_weight=rows.weights[0, part],
                scale=scale,
                shift=shift,
                fit_intercept=fit_intercept,
                standardize=standardize,
                tol=tol,
                max_passes=max_passes,
            )
            report({i: one})
    return stacked(solutions, (problems,))._replace(l2=strengths, l1=np.zeros(problems))


class _Problems(NamedTuple):
    """Problems whose rows are joined."""

    rows: Rows
    ends: NDArray
    """``[p]``: where the rows of each problem end."""
    l2: Float[NDArray, " p"]
    fit_intercept: bool
    standardize: bool

    def of(self, i: int) -> slice:
        """Returns the rows of a problem."""
        return slice(self.ends[i - 1] if i else 0, self.ends[i])

    def entropy_of(self, i: int) -> float:
        """Returns the mean entropy of the targets of a problem."""
        part = self.of(i)
        return float(host_targets.mean_entropy(self.rows.y[part], self.rows.weights[:, part])[0])


def _joined(
    x: AnyArray, y: AnyArray, sample_weight: AnyArray
) -> tuple[NDArray, NDArray, NDArray, NDArray | None]:
    """Returns where the rows of each problem end, and the rows of all of them."""
    parts = [np.asarray(part) for part in x]
    if not parts or any(is_sparse(part) for part in x):
        raise ValueError("x: expected dense features [p, n, d], or a sequence of arrays [n_i, d]")
    d = np.shape(parts[0])[-1] if parts[0].ndim else 0
    for i, part in enumerate(parts):
        if part.ndim != 2 or part.shape[1] != d:
            raise ValueError(f"x: problem {i} has shape {part.shape}; expected [n, {d}]")
    lengths = [len(part) for part in parts]

    def joined(arrays: AnyArray, name: str) -> NDArray:
        own = [np.asarray(a) for a in arrays]
        if [len(a) if a.ndim else 0 for a in own] != lengths:
            raise ValueError(f"{name}: expected as many rows in each problem as in x")
        return np.concatenate(own)

    weights = None if sample_weight is None else joined(sample_weight, "sample_weight")
    return np.cumsum(lengths), np.concatenate(parts), joined(y, "y"), weights


def _solved_together(
    own: _Problems, tol: float, max_passes: float
) -> Iterator[dict[int, Solution]]:
    """Yields solutions by number, those that are certified, of the problems that are small."""
    method = Newton()
    rows, lengths = own.rows, np.diff(own.ends, prepend=0)
    n, d, q = rounded_up(int(lengths.max())), rows.x.shape[1], rows.mass.shape[1]
    chosen = np.flatnonzero(own.l2 > 0)
    if chosen.size == 0 or not method.suits(n, d, q):
        return
    on_cpu = jax.default_backend() == "cpu"
    workers = (os.cpu_count() or 1) if on_cpu else 1
    # Of one length, as each is compiled for.
    chunks = max(-(-chosen.size * n * d // NUMBERS), min(workers, chosen.size))
    length = rounded_up(-(-chosen.size // chunks))
    parts = [chosen[i : i + length] for i in range(0, chosen.size, length)]

    def solved(part: NDArray) -> dict[int, Solution]:
        filled = np.resize(part, length)
        with jax_settings.held():
            problems, units, absent, baseline = _stack(own, filled, n)
            found = jax.device_get(
                _solve(
                    method,
                    problems,
                    np.where(absent, NEVER, 0.0),
                    np.float64(own.fit_intercept),
                    np.float64(min(max_passes - 1, method.fallback_after)),
                    side_by_side=1 if on_cpu else cost.SIDE_BY_SIDE,
                )
            )
        return _certified(own, part, found, units, absent, baseline, tol, method, n)

    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        yield from threads.map(solved, parts)


class _Stack(NamedTuple):
    """Problems of one shape, with an axis in front; see `Problem`."""

    x: AnyArray
    targets: AnyArray
    weights: AnyArray
    center: AnyArray
    scale: AnyArray
    factor: AnyArray
    l2: AnyArray


class _Found(NamedTuple):
    """Certified solutions, in the solvers' units, of problems with an axis in front."""

    theta: Array
    value: Array
    gap: Array
    slope: Array
    loss: Array
    steps: Array


def _stack(own: _Problems, chosen: NDArray, n: int) -> tuple[_Stack, Units, NDArray, NDArray]:
    """Returns the problems, filled up to ``n`` rows by ones of no weight; and facts about them.

    These are their units, which classes have no weight ``[p, q]``, and the losses without features.
    """
    rows, first = own.rows, np.concatenate([[0], own.ends[:-1]])[chosen, None]
    last = own.ends[chosen, None]
    at = first + np.arange(n)
    counts = at < last
    at = np.minimum(at, last - 1)
    weights = np.where(counts, rows.weights[0][at], 0)
    total = weights.sum(axis=1)
    q, x, y = rows.mass.shape[1], rows.x[at], rows.y[at]
    masses = partial(host_targets.mass_of_classes, q=q)
    mass = np.stack(list(map(masses, y, weights)))
    shares = weights / total[:, None]
    center, units, factor = of_several(
        spread.of_rows(x, shares),
        rows.scale,
        rows.shift,
        fit_intercept=own.fit_intercept,
        standardize=own.standardize,
    )
    share = mass / total[:, None]
    baseline = -np.sum(share * np.log(np.where(share > 0, share, 1)), axis=1)
    stack = _Stack(
        x=x,
        targets=host_targets.rows_last(y),
        weights=shares,
        center=center,
        scale=rows.scale * units.size,
        factor=factor,
        l2=own.l2[chosen],
    )
    return stack, units, (mass == 0) & own.fit_intercept, baseline


@partial(compiled, static_argnames=("method", "side_by_side"))
def _solve(
    method: Newton,
    stack: _Stack,
    bias: Float[Array, "p q"],
    intercept: Float[Array, ""],
    limit: Float[Array, ""],
    *,
    side_by_side: int,
) -> _Found:
    """Solves problems one after the other, or some at a time, and certifies them."""

    def one(mapped):
        own, bias = mapped
        problem = Problem(
            x=own.x[None],
            center=own.center,
            scale=own.scale,
            intercept=intercept,
            targets=own.targets[None],
            weights=own.weights[None, None],
            offset=None,
            penalty=Penalty(own.l2[None], jnp.zeros(1), own.factor, class_axis=-2),
            active=jnp.int32(1),
        )
        theta = jnp.zeros((1, bias.size, 1 + problem.d)).at[0, :, 0].set(bias)
        state, taken = newton.steps(
            method,
            problem,
            newton.blank(problem, theta),
            jnp.full(1, method.float64_target),
            limit,
            jnp.bool_(False),
        )
        found = certify(problem, state.theta, None, is_best_bias=True)
        return _Found(
            found.theta[0], found.value[0], found.gap[0], found.slope[0], found.loss[0], taken[0]
        )

    return jax.lax.map(one, (stack, bias), batch_size=side_by_side if side_by_side > 1 else None)


def _certified(
    own: _Problems,
    chosen: NDArray,
    found: _Found,
    units: Units,
    absent: NDArray,
    baseline: NDArray,
    tol: float,
    method: Newton,
    rows_of_each: int,
) -> dict[int, Solution]:
    """Returns solutions by number, for the features that users have: those that are certified."""
    params, centered, error = to_users(
        units, np.asarray(found.theta), ~absent, fit_intercept=own.fit_intercept, centered=True
    )
    gap = np.where(found.gap < found.value, found.gap + error**2 / 2, found.value)
    relative = gap / np.maximum(found.value, NEGLIGIBLE * baseline)
    nothing = np.zeros(0)
    n, d, q = rows_of_each, units.mean.shape[1], absent.shape[1]
    plan = Plan(
        method=method,
        dtype="float64",
        rows=n,
        features=d,
        classes=q,
        blocks=1,
        flop=cost.step(n, n * d, q),
        reasons=(f"Newton: {method.reason_for(n, d, q)}", "one program for many problems"),
    )
    return {
        int(number): Solution(
            params=jax.tree.map(lambda a, i=i: a[i], params),
            centered=jax.tree.map(lambda a, i=i: a[i], centered),
            mean=units.mean[i],
            objective=float(found.value[i]),
            loss=float(found.loss[i]),
            deviance_explained=deviance_explained(
                float(found.loss[i]),
                baseline[i] if own.fit_intercept else np.log(absent.shape[1]),
                own.entropy_of(int(number)),
            ),
            gap=gap[i],
            relative_gap=relative[i],
            slope=float(found.slope[i]),
            status=Status.CERTIFIED,
            reason="",
            passes=float(found.steps[i] + 1),
            history=History(*(nothing for _ in History._fields)),
            plan=plan,
        )
        for i, number in enumerate(chosen)
        if relative[i] <= tol
    }
