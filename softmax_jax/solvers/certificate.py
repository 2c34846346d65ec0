r"""Certificates: a bound, in float64, of how far an objective is above its minimum.

Fenchel duality. With the penalty :math:`\Omega(W) = \frac{l_2}{2} |W|^2 + l_1 \|W\|_1`, any rows of
distributions :math:`P` such that :math:`R = S (P - Y)` sums to zero over the rows (``S`` being the
weights as shares of their sum) bound every objective from below,

.. math:: F(W, b) \ge \sum_i s_i [H(p_i) + (p_i - y_i) \cdot a_i] - \Omega^*(-X^\top R),

with the offsets :math:`a_i`. It is the free bias that asks for the zero sums. So F is first
minimised over b alone, on kept logits, after which :math:`P = \mathrm{softmax}(O)` qualifies; with
the bias held at zero it does as it is. The distance between both sides is a sum of terms that are
not negative, so that nothing cancels:

.. math:: \sum_i s_i \mathrm{KL}(p_i \,\|\, \mathrm{softmax}(o_i))
    + \Omega(W) + \langle W, G \rangle + \Omega^*(-G), \qquad G = X^\top R.

With l1 = 0 and P = softmax(O) that is :math:`|G + l_2 W|^2 / (2 l_2)`. With l2 = 0 < l1,
:math:`\Omega^*` is finite only where :math:`|G| \le l_1`; P is moved towards Y until that holds.
With neither there is no bound. Where single weights are not penalised at all, their entries of G
have to be zero, and P is moved to where they are; see `unpenalised`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import Array, Bool, Float, NDArray
from softmax_jax.solvers import passes
from softmax_jax.solvers.bias import best_bias_and_root, no_root
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.passes import over_classes, per_problem
from softmax_jax.solvers.placement import summed_over_devices
from softmax_jax.solvers.problem import (
    Problem,
    Strengths,
    block_of,
    counts,
    over_blocks,
    with_strengths,
    within_limits,
)
from softmax_jax.solvers.unpenalised import balanced


class Certificate(NamedTuple):
    """Certified parameters of ``k`` problems."""

    theta: Float[Array, "k q columns"]
    """Parameters, with the bias that is best for its weights."""
    value: Float[Array, " k"]
    """Objectives, in nats."""
    gap: Float[Array, " k"]
    """Gaps: the minimum is not below ``value - gap``."""
    slope: Float[Array, " k"]
    """Largest entries of the gradient where nothing is penalised, else NaN."""
    loss: Float[Array, " k"]
    """Mean losses: the objectives without their penalties."""


def certify(
    problem: Problem,
    theta: Float[Array, "k q columns"],
    dual: Float[Array, "blocks k q rows"] | None,
    *,
    is_needed: Bool[Array, ""] | bool = True,
    is_best_bias: bool = False,
) -> Certificate:
    """Finds the best bias for the weights of ``theta``, and a bound for the result: about a pass.

    Args:
      problem: in float64; with one weighting.
      theta: ``[k, q, 1 + d]`` parameters.
      dual: distributions for the bound, which are tilted until their
        residuals sum to zero; by default those of ``theta`` with its best bias.
      is_needed: whether to take ``dual``, which about doubles the time, and not these.
      is_best_bias: whether that of ``theta`` is the best one. Where it is not, nothing is known of
        the gap but that the objective is not negative.
    """
    # In working precision limits are rounded.
    theta = within_limits(problem, theta)
    penalty = problem.penalty
    logits = passes.logits(problem, theta)
    best = _of_both(problem, logits, dual, is_needed, is_best=is_best_bias)
    theta, logits = theta.at[..., 0].add(best.bias), logits + best.bias[None, :, :, None]
    w, loss, p = theta[..., 1:], best.loss, best.probabilities
    r = passes.gradient(problem, p)
    free = penalty.is_free(w, r[..., 1:])
    if free is not None:
        p = balanced(problem, p, jnp.pad(free, ((0, 0), (0, 0), (1, 0)), constant_values=True))
        r = passes.gradient(problem, p)
    g, unfinished = _settled(theta, r, free)

    # With l2 = 0 the residuals are shrunk until they fit, and what the loss loses by it is added.
    eps = jnp.finfo(theta.dtype).eps
    fitting = 1 / jnp.maximum(penalty.dual_norm(-g), 1)
    c = jnp.where(problem.l2 > 0, 1, (1 - 4 * eps) * fitting)
    divergence = jax.lax.cond(
        jnp.all(c == 1) & (~jnp.bool_(is_needed) | (dual is None)) & (free is None),
        lambda: jnp.zeros_like(loss),
        lambda: _divergence(problem, logits, p, c),
    )
    value = loss + penalty.value(w)
    gap = divergence + penalty.fenchel_young(w, per_problem(c) * g)
    # If more is left than rounding, nothing is known but that the objective is not negative.
    gap = gap + unfinished.leftover * unfinished.reach + 16 * eps * value
    is_penalised = (problem.l2 > 0) | (jnp.asarray(penalty.l1) > 0)
    is_bounded = (unfinished.leftover < 1e-10) & is_penalised
    gap = jnp.where(is_bounded, jnp.minimum(gap, value), value)
    slope = jnp.max(jnp.abs(g + penalty.gradient(w)), axis=(1, 2))
    slope = jnp.where(is_penalised, jnp.nan, slope)
    return Certificate(theta, value, gap, slope, loss)


class _Best(NamedTuple):
    """Best bias for some logits, and the loss and the probabilities with it."""

    bias: Float[Array, "k q"]
    loss: Float[Array, " k"]
    probabilities: Float[Array, "blocks k q rows"]


def _of_both(
    problem: Problem,
    logits: Float[Array, "blocks k q rows"],
    dual: Float[Array, "blocks k q rows"] | None,
    is_needed: Bool[Array, ""] | bool,
    *,
    is_best: bool,
) -> _Best:
    """Returns bias and loss of the logits, and probabilities of the dual if it is needed."""
    _, k, q, _ = logits.shape
    biases = jnp.zeros((2, k, q), logits.dtype)

    def scores_of_dual():
        assert dual is not None
        # What is zero is taken for next to nothing, so that tilting can raise it.
        return jnp.log(jnp.maximum(dual, 1e-300))

    # A loop, as it is compiled once for both.
    def one(i, carry):
        biases, root = carry
        o = logits if dual is None else jax.lax.cond(i == 0, lambda: logits, scores_of_dual)
        bias, root = best_bias_and_root(problem, o, root, has_root=i > 0)
        return biases.at[i].set(bias), root

    if not is_best:
        number = 1 if dual is None else jnp.where(is_needed, 2, 1)
        number = jnp.where(problem.intercept > 0, number, 0)
        biases, _ = jax.lax.fori_loop(0, number, one, (biases, no_root(logits)))
    loss, p = passes.loss_and_probabilities(problem, logits + biases[0][None, :, :, None])
    if dual is not None:
        p = jax.lax.cond(
            is_needed,
            lambda: _probabilities(problem, scores_of_dual() + biases[1][None, :, :, None]),
            lambda: p,
        )
    return _Best(biases[0], loss, p)


def _probabilities(
    problem: Problem, logits: Float[Array, "blocks k q rows"]
) -> Float[Array, "blocks k q rows"]:
    return passes.loss_and_probabilities(problem, logits)[1]


class _Unfinished(NamedTuple):
    """The rest of sums that are zero at the minimum: of the bias, and weights not penalised."""

    leftover: Float[Array, " k"]
    reach: Float[Array, " k"]
    """How far these parameters could still have to go."""


def _settled(
    theta: Float[Array, "k q columns"],
    residuals: Float[Array, "k q columns"],
    free: Bool[Array, "k q d"] | None,
) -> tuple[Float[Array, "k q d"], _Unfinished]:
    """Returns the gradient in the weights that are penalised, and what is left of the others."""
    w, g = theta[..., 1:], residuals[..., 1:]
    leftover, reach = jnp.sum(jnp.abs(residuals[..., 0]), axis=-1), _reach(theta)
    if free is None:
        return g, _Unfinished(leftover, reach)
    leftover = leftover + jnp.sum(jnp.abs(jnp.where(free, g, 0)), axis=(1, 2))
    reach = jnp.maximum(reach, 1 + jnp.max(jnp.abs(jnp.where(free, w, 0)), axis=(1, 2)))
    return jnp.where(free, 0, g), _Unfinished(leftover, reach)


def _reach(theta: Float[Array, "k q columns"]) -> Float[Array, " k"]:
    """Returns one more than the largest bias, in size."""
    has_weight = counts(theta[..., 0])
    b = jnp.where(has_weight, theta[..., 0], 0)
    center = jnp.sum(b, axis=-1) / jnp.sum(has_weight, axis=-1)
    return 1 + jnp.max(jnp.where(has_weight, jnp.abs(b - center[:, None]), 0), axis=-1)


def _divergence(
    problem: Problem,
    logits: Float[Array, "blocks k q rows"],
    probabilities: Float[Array, "blocks k q rows"],
    c: Float[Array, " k"],
) -> Float[Array, " k"]:
    """Returns the mean KL divergence of ``y + c (probabilities - y)`` from ``softmax(logits)``."""
    _, k, q, _ = logits.shape

    def sums(problem, of_rows, c, mass):
        logits, probabilities = of_rows

        def add(j, total):
            y = passes.targets(problem, j, q)
            s = passes.weights(problem, j, mass)
            _, below, log_z = passes.softmax(block_of(logits, j))
            p = y + per_problem(c) * (block_of(probabilities, j) - y)
            # Padded by p's and q's sums, each term is not negative.
            log_q = below - log_z[:, None]
            terms = jax.scipy.special.xlogy(p, p) - p * log_q - p + jnp.exp(log_q)
            return total + jnp.sum(s * over_classes(jnp.maximum(terms, 0)), axis=-1)

        return over_blocks(problem, add, jnp.zeros(k, logits.dtype))

    mass = passes.mass(problem)
    return summed_over_devices(sums, problem, (logits, probabilities), c, mass)


def certified_together(
    problem: Problem,
    weighting: int,
    jobs: Sequence[Strengths],
    theta: Float[Array | NDArray, "k q columns"],
) -> list[Certificate]:
    """Certifies several problems of one weighting in one pass, and fetches each `Certificate`.

    Args:
      problem: the rows, in float64, with all weightings.
      weighting: by number.
      jobs: the strengths of the problems.
      theta: their parameters.
    """
    alone = problem._replace(weights=problem.weights[:, weighting : weighting + 1])
    alone = with_strengths(alone, jobs, np.float64)
    found = jax.device_get(_certified(alone, theta.astype(np.float64)))
    return [jax.tree.map(lambda a, i=i: a[i : i + 1], found) for i in range(len(jobs))]


@compiled
def _certified(problem: Problem, theta: Float[Array, "k q columns"]) -> Certificate:
    return certify(problem, theta, None)
