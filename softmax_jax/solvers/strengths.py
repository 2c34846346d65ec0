r"""Strengths of the penalty: as they are given, or a path from the largest of any use.

At :math:`W = 0` with its best bias, let the loss be :math:`F_0` and its gradient in the weights
:math:`G`. Without offsets the predictions there are the shares of the classes, and
:math:`G = X^\top S (1 \bar y^\top - Y)`. As the loss is convex,

.. math:: F(W, b) \ge F_0 + \langle G, W \rangle + \frac{l_2}{2} \|W\|^2 + l_1 \|W\|_1.

So :math:`W = 0` is the solution from :math:`l_1 = \max_{jk} |G_{jk}|` on, whatever l2 is, and not
below it; with ``grouped`` that is the largest norm of a row. Factors on the strengths divide the
gradient; where some are 0, :math:`G` is the gradient at the solution with no other weights.
With l2 alone no strength is large enough for that, but the objective is at least
:math:`F_0 - \|G\|^2 / (2 l_2)`: from :math:`l_2 = \|G\|^2 / (2 \epsilon F_0)` on, features explain
no more than the share :math:`\epsilon` of the loss. Both keep their meaning if features come in
other units.
"""

from collections.abc import Callable
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import checks
from softmax_jax._annotations import AnyArray, Array, Bool, Float, NDArray
from softmax_jax.solvers import passes
from softmax_jax.solvers.bias import best_bias
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.problem import NEVER, Problem, block_of, over_blocks

AUTO = "auto"
NUMBER = 22
# The strongest l2 explains at most this share of the loss.
_SHARE = 0.01
# The weakest strengths, as shares of the strongest: three a decade for l2, and seven for l1, whose
# solutions change faster. With fewer rows than features l1 below a hundredth explains all of them.
_WEAKEST_L2 = 1e-7
_WEAKEST_L1 = 1e-3
_WEAKEST_L1_OF_FEW_ROWS = 1e-2
# Above the largest l1 where it follows from a solution, which is not exact.
_MARGIN = 1e-6


def checked(
    l2: AnyArray, l1: AnyArray
) -> tuple[Float[NDArray, "..."] | str, Float[NDArray, "..."] | str]:
    """Checks strengths: non-negative and finite numbers of any shape, or ``auto`` for one of them.

    Raises:
      ValueError: if they are something else.
    """
    l2, l1 = _checked(l2, "l2"), _checked(l1, "l1")
    if isinstance(l2, str) and isinstance(l1, str):
        raise ValueError("l2, l1: both are 'auto'; give numbers for one of them")
    return l2, l1


def _checked(value: AnyArray, name: str) -> Float[NDArray, "..."] | str:
    if isinstance(value, str) and value == AUTO:
        return AUTO
    try:
        strength = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        strength = np.zeros(0)
    if strength.size == 0 or not (np.isfinite(strength) & (strength >= 0)).all():
        raise ValueError(f"{name}: {value}; expected finite numbers, 0 or more")
    return strength


def checked_path(number: SupportsIndex, ratio: float | None) -> tuple[int, float | None]:
    """Checks the number of strengths of an ``auto`` path, and the share of the weakest.

    Raises:
      ValueError: if there is no strength, or the weakest is not the least.
    """
    if ratio is not None and not 0 < ratio < 1:
        raise ValueError(f"weakest: {ratio!r}; expected a share between 0 and 1, or None")
    return checks.checked_count(number, "strengths"), ratio


def grid(
    l2: Float[NDArray, "..."] | str,
    l1: Float[NDArray, "..."] | str,
    inputs: Inputs,
    number: int = NUMBER,
    ratio: float | None = None,
    unpenalised: Callable[[int, float], Float[NDArray, "q columns"]] | None = None,
) -> tuple[Float[NDArray, "*grid"], Float[NDArray, "*grid"]]:
    """Returns l2 and l1 with the shape of the grid; ``auto`` is its last axis, from strong to weak.

    Several weightings share the path of the one with the largest strengths.

    Args:
      l2: strengths, or ``auto``.
      l1: strengths, or ``auto``.
      inputs: the rows.
      number: how many ``auto`` stands for.
      ratio: the weakest of these, as a share of the strongest; None means a default.
      unpenalised: returns the solution for a weighting under an l1 that leaves no penalised weight;
        wanted where some weights are not penalised.
    """
    if isinstance(l2, str) or isinstance(l1, str):
        largest_l2, largest_l1 = _largest(inputs, unpenalised)
        if isinstance(l2, str):
            path = _path(largest_l2, ratio or _WEAKEST_L2, number)
            l2, l1 = path, np.asarray(l1)[..., None]
        else:
            few = inputs.n < inputs.d
            weakest = _WEAKEST_L1_OF_FEW_ROWS if few else _WEAKEST_L1
            l2, l1 = np.asarray(l2)[..., None], _path(largest_l1, ratio or weakest, number)
    l2, l1 = np.broadcast_arrays(l2, l1)
    return l2, l1


def _path(largest: float, weakest: float, number: int) -> Float[NDArray, " strengths"]:
    # Where no feature has to do with the classes, any strength will do.
    return np.geomspace(1, weakest, number) * (largest if 0 < largest < np.inf else 1)


def _largest(
    inputs: Inputs, unpenalised: Callable[[int, float], Float[NDArray, "q columns"]] | None
) -> tuple[float, float]:
    """Returns the largest l2 and l1 over the weightings."""
    largest = []
    for m in range(len(inputs.absent)):
        loss, _, g = without_weights(inputs, m)
        l1 = largest_l1(inputs, g)
        if unpenalised is not None and l1 > 0:
            loss, g = _loss_and_gradient(inputs, m, unpenalised(m, l1))
            l1 = (1 + _MARGIN) * largest_l1(inputs, g)
        share = _SHARE * np.where(loss > 0, loss, np.inf)
        relative = inputs.problem.penalty.relative
        weighed = g if relative is None else _over(g, relative)
        largest.append((np.sum(g * weighed) / (2 * share), l1))
    l2, l1 = np.max(largest, axis=0)
    return float(l2), float(l1)


def largest_l1(inputs: Inputs, g: Float[NDArray, "1 q d"]) -> float:
    """Returns the least l1 under which no penalised weight leaves zero, given the gradient."""
    penalty = inputs.problem.penalty
    sizes = np.where(penalty.reach(-g) > 0, penalty.sizes(g), 0)
    return float((sizes if penalty.relative is None else _over(sizes, penalty.relative)).max())


def _over(a: Float[NDArray, "1 q d"], relative: AnyArray) -> Float[NDArray, "1 q d"]:
    """Returns ``a`` over the factors, and zero where these are."""
    relative = np.asarray(relative)
    return np.where(relative > 0, a / np.where(relative > 0, relative, 1), 0)


def without_weights(
    inputs: Inputs, weighting: int
) -> tuple[Float[NDArray, ""], Float[NDArray, "1 q"], Float[NDArray, "1 q d"]]:
    """Returns the loss, the bias and the gradient at ``W = 0`` with its best bias: half a pass."""
    weights = inputs.problem.weights[:, weighting : weighting + 1]
    problem = inputs.problem._replace(weights=weights)
    return jax.device_get(_without_weights(problem, inputs.absent[weighting]))


@jax.jit
def _without_weights(
    problem: Problem, absent: Bool[Array, " q"]
) -> tuple[Float[Array, ""], Float[Array, "1 q"], Float[Array, "1 q d"]]:
    q = absent.size
    total = passes.mass(problem)
    never = jnp.where(absent, NEVER, 0.0)[None]

    def add_target(j, share):
        s = passes.weights(problem, j, total)[:, None]
        return share + jnp.sum(s * passes.targets(problem, j, q), axis=-1)

    if problem.offset is None:
        share = over_blocks(problem, add_target, jnp.zeros((1, q), problem.dtype))
        bias = jnp.where(share > 0, jnp.log(jnp.where(share > 0, share, 1)), never)
    else:
        logits = problem.offset[:, None] + never[None, ..., None]
        bias = never + best_bias(problem, logits)

    bias = bias * problem.intercept

    def add(j, carry):
        o = jnp.broadcast_to(bias[..., None], (1, q, problem.rows))
        if problem.offset is not None:
            o = o + block_of(problem.offset, j)[None]
        p, below, log_z = passes.softmax(o)
        y, s = passes.targets(problem, j, q), passes.weights(problem, j, total)
        terms = log_z - passes.over_classes(y * below)
        r = s[:, None] * (p - y)
        loss = carry[0] + jnp.sum(s * terms)
        return loss, carry[1] + passes.backward(problem, r, j)

    zero = jnp.zeros((1, q, 1 + problem.d), problem.dtype)
    loss, g = over_blocks(problem, add, (jnp.zeros((), problem.dtype), zero))
    # As the features would have it in whose units they are penalised.
    return loss, bias, g[..., 1:] / problem.factor[None, None]


def _loss_and_gradient(
    inputs: Inputs, weighting: int, theta: Float[NDArray, "q columns"]
) -> tuple[Float[NDArray, ""], Float[NDArray, "1 q d"]]:
    """Returns the loss and the gradient at ``theta``, as `without_weights` does."""
    weights = inputs.problem.weights[:, weighting : weighting + 1]
    problem = inputs.problem._replace(weights=weights)
    return jax.device_get(_at(problem, theta[None]))


@jax.jit
def _at(
    problem: Problem, theta: Float[Array, "1 q columns"]
) -> tuple[Float[Array, ""], Float[Array, "1 q d"]]:
    loss, probabilities = passes.loss_and_probabilities(problem, passes.logits(problem, theta))
    g = passes.gradient(problem, probabilities)
    return loss[0], g[..., 1:] / problem.factor[None, None]
