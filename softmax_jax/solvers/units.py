r"""Features in units of their own: a change of variables that leaves the problem as it is.

Columns come in seconds since 1970 and in metres, and a float has some digits only. So the work is
on :math:`z_j = (x_j - c_j)\, g_j`, with the mean :math:`c_j` of a feature and a power of two
:math:`g_j` that makes it of size one. With :math:`W'_j = W_j / g_j` and :math:`b' = b + c^\top W`
the logits are the same, and the penalty of :math:`W` is one of :math:`g_j W'_j`: that of a feature
has the factor :math:`g_j`. Products with powers of two do not round.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import Array, Bool, Float, NDArray
from softmax_jax.model import Params
from softmax_jax.penalty import Penalty
from softmax_jax.solvers import passes
from softmax_jax.solvers.placement import added_up, largest_of_all, summed_over_devices
from softmax_jax.solvers.precision import holds_rows
from softmax_jax.solvers.problem import Problem, block_of, cast, over_blocks
from softmax_jax.solvers.spread import Spread

# Between these, squares of factors are numbers.
_SMALLEST, _LARGEST = 1e-100, 1e100


class Units(NamedTuple):
    """Units of the features that the solvers see, in those that users have."""

    mean: Float[NDArray, "*p d"]
    """Users' features where the solvers' are zero."""
    size: Float[NDArray, "*p d"]
    """Powers of two: a user's weight is the solvers' times ``size``."""
    varies: Bool[NDArray, "*p d"]
    """Features that have more than one value among the rows with weight."""


def of_their_own(
    stored: Problem,
    scale: Float[NDArray, " d"],
    shift: Float[NDArray, " d"],
    largest: float,
    *,
    standardize: bool,
    spread: Spread | None = None,
) -> tuple[Problem, Units]:
    """Puts a problem into units of its own.

    Args:
      stored: with features as they are stored, in float64.
      scale: users' features are ``x * scale + shift``.
      shift: see there.
      largest: the largest stored number in size.
      standardize: penalise the weights of features divided by their standard deviations.
      spread: that of the features, if it is known; that of sparse ones has to be.

    Returns:
      The problem in its own units, and these.
    """
    found = spread or _spread(stored, largest)
    has_intercept = bool(np.asarray(stored.intercept) > 0)
    center, reach = _center_and_reach(
        found, scale, shift, has_intercept, in_float32=holds_rows(stored, largest)
    )
    units = _units(center, reach, scale, shift)
    problem = stored._replace(center=center, scale=scale * units.size)
    factor = units.size
    if standardize:
        deviation = (
            found.deviation * np.abs(problem.scale) if spread else np.asarray(_deviations(problem))
        )
        factor = _standardized(units, deviation)
    penalty = _in_units(problem.penalty, units, _penalised(units, factor))
    return problem._replace(penalty=penalty), units


def of_several(
    spread: Spread,
    scale: Float[NDArray, " d"],
    shift: Float[NDArray, " d"],
    *,
    fit_intercept: bool,
    standardize: bool,
) -> tuple[Float[NDArray, "p d"], Units, Float[NDArray, "p d"]]:
    """Returns centers, units and factors of the penalty of several problems; see `of_their_own`."""
    center, reach = _center_and_reach(spread, scale, shift, fit_intercept, in_float32=False)
    units = _units(center, reach, scale, shift)
    factor = units.size
    if standardize:
        factor = _standardized(units, spread.deviation * np.abs(scale * units.size))
    return center, units, _penalised(units, factor)


def _center_and_reach(
    spread: Spread,
    scale: Float[NDArray, " d"],
    shift: Float[NDArray, " d"],
    has_intercept: bool,
    *,
    in_float32: bool,
) -> tuple[Float[NDArray, "*p d"], Float[NDArray, "*p d"]]:
    """Returns where features are zero, and their largest distance from there, for their users."""
    first, mean, reach = spread[:3]
    if has_intercept:
        center = first + mean
        if in_float32:
            # Exact in float32 where the features are, so that differences are.
            center = center.astype(np.float32).astype(np.float64)
        # A constant one is zero to the last digit.
        center = np.where(reach == 0, first, center)
    else:
        if (np.isin(scale, 0) & ~np.isin(shift, 0)).any():
            raise ValueError("scale: 0 for a feature with a shift, which is an intercept")
        center = np.broadcast_to(-shift / np.where(np.isin(scale, 0), 1, scale), first.shape)
        reach = np.maximum(np.abs(first - center), reach)
    return center, reach * np.abs(scale)


def _units(
    center: Float[NDArray, "*p d"],
    reach: Float[NDArray, "*p d"],
    scale: Float[NDArray, " d"],
    shift: Float[NDArray, " d"],
) -> Units:
    varies = reach > 1e-300
    size = np.ldexp(1.0, -np.frexp(np.where(varies, reach, 1))[1])
    return Units(center * scale + shift, size, varies)


def _standardized(units: Units, deviation: Float[NDArray, "*p d"]) -> Float[NDArray, "*p d"]:
    """Returns factors for features divided by their deviations, which are the solvers'.

    As in scikit-learn's StandardScaler, what does not vary is left in its unit.
    """
    return np.where(deviation > 0, deviation, units.size)


def _penalised(units: Units, factor: Float[NDArray, "*p d"]) -> Float[NDArray, "*p d"]:
    """Returns factors whose squares are numbers, also for what does not vary."""
    largest = np.max(factor, axis=-1, keepdims=True, where=units.varies, initial=0)
    factor = np.where(units.varies, factor, np.where(largest > 0, largest, 1))
    return np.clip(factor, _SMALLEST, _LARGEST)


def _in_units(penalty: Penalty, units: Units, factor: Float[NDArray, " d"]) -> Penalty:
    """Returns the penalty of weights in the solvers' units."""

    def limit(a):
        return None if a is None else np.asarray(a) / units.size

    return dataclasses.replace(
        penalty, factor=factor, lower=limit(penalty.lower), upper=limit(penalty.upper)
    )


def _spread(stored: Problem, largest: float) -> Spread:
    """Returns the `Spread` of dense features, all but the deviation."""
    dtype = jnp.float32 if holds_rows(stored, largest) else jnp.float64
    first, mean, reach = (np.asarray(a, np.float64) for a in _statistics(cast(stored, dtype)))
    return Spread(first, mean, reach, np.full_like(mean, np.nan))


@jax.jit
def _statistics(
    problem: Problem,
) -> tuple[Float[Array, " d"], Float[Array, " d"], Float[Array, " d"]]:
    """Returns the first row as stored, and the mean and the largest difference from it."""
    first = passes.features(problem, jnp.int32(0))[0]
    problem = problem._replace(center=first)

    def of_rows(problem, _):
        def add(j, carry):
            x = passes.features(problem, j)
            s = jnp.mean(block_of(problem.weights, j), axis=0)
            counted = jnp.where(s[:, None] > 0, jnp.abs(x), 0)
            return carry[0] + s @ x, jnp.maximum(carry[1], jnp.max(counted, axis=0))

        zero = jnp.zeros(problem.d, problem.dtype)
        return over_blocks(problem, add, (zero, zero))

    def combined(found):
        return added_up(found[0]), largest_of_all(found[1])

    return first, *summed_over_devices(of_rows, problem, (), combined=combined)


@jax.jit
def _deviations(problem: Problem) -> Float[Array, " d"]:
    """Returns the standard deviations of the features, over all weightings together.

    They are formed from differences to the first row, which are exactly zero where nothing varies.
    """
    first = passes.features(problem, jnp.int32(0))[:1]

    def sums(problem, _, first):
        def add(j, carry):
            x = passes.features(problem, j)
            x = x - jnp.broadcast_to(first, x.shape)
            s = jnp.sum(block_of(problem.weights, j), axis=0)
            return carry[0] + jnp.sum(s), carry[1] + s @ x, carry[2] + s @ (x * x)

        zero = jnp.zeros(problem.d, problem.dtype)
        return over_blocks(problem, add, (jnp.zeros((), problem.dtype), zero, zero))

    total, mean, square = summed_over_devices(sums, problem, (), first)
    mean, square = mean / total, square / total
    return jnp.sqrt(jnp.maximum(square - mean**2, 0))


def centered(
    problem: Problem, units: Units, mean: Float[Array | NDArray, " d"]
) -> tuple[Problem, Units]:
    """Centers the features at their ``mean``, where there is a bias to make up for it."""
    if not np.asarray(problem.intercept) > 0:
        return problem, units
    moved = np.where(units.varies, mean, 0)
    scale = np.where(units.varies, problem.scale, 1)
    return (
        problem._replace(center=problem.center + moved / scale),
        units._replace(mean=units.mean + moved / units.size),
    )


def to_solver(units: Units, theta: Float[NDArray, "q columns"]) -> Float[NDArray, "q columns"]:
    """Converts parameters, biases first, from the features that users have."""
    w = theta[:, 1:] / units.size
    bias = theta[:, :1] + (theta[:, 1:] @ units.mean)[:, None]
    return np.concatenate([bias, np.where(units.varies, w, 0)], axis=1)


def from_solver(units: Units, theta: Float[NDArray, "q columns"]) -> Float[NDArray, "q columns"]:
    """Converts parameters back to the features that users have: the inverse of `to_solver`."""
    w = np.where(units.varies, theta[:, 1:] * units.size, 0)
    return np.concatenate([theta[:, :1] - (w @ units.mean)[:, None], w], axis=1)


def to_users(
    units: Units,
    theta: Float[NDArray, "*p q columns"],
    counts: Bool[NDArray, "*p q"],
    *,
    fit_intercept: bool,
    centered: bool,
) -> tuple[Params, Params, Float[NDArray | np.floating, "*p"]]:
    """Converts parameters to the features that users have, and to those less their mean.

    Args:
      units: those of ``theta``.
      theta: ``[..., q, 1 + d]`` parameters.
      counts: which classes have weight. The bias of another is -inf.
      fit_intercept: whether there is a bias.
      centered: let the weights of a feature sum to zero over the classes, where nothing but a
        squared penalty chooses among equal predictions.

    Returns:
      ``w: [..., d, q]`` and ``b: [..., q]`` twice, and how far ``b`` is from what it stands for, as
      float64 cannot hold it: by that ``b`` is off its optimum.
    """

    def mean_of_classes(a):
        return np.mean(a, axis=-1, keepdims=True, where=counts)

    w = np.where(units.varies[..., None, :], theta[..., 1:] * units.size[..., None, :], 0)
    if centered:
        w = w - np.mean(w, axis=-2, keepdims=True, where=counts[..., None])
    w = np.where(counts[..., None], w, 0) + 0.0  # no -0.0
    transposed = np.swapaxes(w, -1, -2)
    if not fit_intercept:
        none = np.zeros(counts.shape)
        params = Params(transposed, none)
        return params, params, np.zeros(counts.shape[:-1])
    bias = np.where(counts, theta[..., 0], 0)
    bias = np.where(counts, bias - mean_of_classes(bias), -np.inf)
    mean = units.mean.astype(np.longdouble)
    # A class at a time, as numbers of this type take four times the memory.
    shifts = [np.sum(w[..., c, :] * mean, axis=-1) for c in range(counts.shape[-1])]
    exact = np.where(counts, theta[..., 0] - np.stack(shifts, axis=-1), 0)
    # One number may be added to all biases; the choice is that they sum to zero.
    exact = exact - mean_of_classes(exact)
    b = exact.astype(np.float64)
    sizes = np.matmul(np.abs(w), np.abs(units.mean)[..., None]).max(axis=(-2, -1))
    rounding = np.finfo(np.longdouble).eps * mean.shape[-1] * sizes
    error = np.max(np.abs(exact - b), axis=-1, where=counts, initial=0) + rounding
    b = np.where(counts, b, -np.inf)
    return Params(transposed, b), Params(transposed, bias), error.astype(np.float64)
