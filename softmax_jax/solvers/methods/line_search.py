r"""An exact line search on kept logits, which takes no pass over the rows.

.. math:: \varphi(t) = \sum_i s_i\, l(o_i + t \delta_i) + \tfrac{1}{2} \sum \rho\, (W + t \Delta)^2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float
from softmax_jax.solvers import passes
from softmax_jax.solvers.passes import dot, over_classes, per_problem
from softmax_jax.solvers.placement import summed_and_filled
from softmax_jax.solvers.problem import Problem, block_of, counts, over_blocks, put


class Line(NamedTuple):
    """A line through the parameters of each of ``k`` problems."""

    theta: Float[Array, "k q columns"]
    """Parameters at its start."""
    logits: Float[Array, "blocks k q rows"]
    """Logits there, with the offset."""
    value: Float[Array, " k"]
    """Objectives there."""
    gradient: Float[Array, "k q columns"]
    direction: Float[Array, "k q columns"]
    ahead: Float[Array, "blocks k q rows"]
    """Logits of the direction."""
    step: Float[Array, " k"]
    """Lengths at which the search begins."""
    is_fixed: Bool[Array, " k"]
    """Problems that take that length as it is."""
    is_done: Bool[Array, " k"]
    """Problems that stay at the start."""


def guarded(
    gradient: Float[Array, "k q columns"],
    direction: Float[Array, "k q columns"],
    predictor: Float[Array, "k q columns"],
    has_predictor: Bool[Array, " k"],
) -> tuple[Float[Array, "k q columns"], Float[Array, " k"]]:
    """Returns directions to search in, and by how much each promises to lower the objective.

    A direction that does not lead down, or is not finite, is replaced by the steepest one. That of
    a predictor is taken as it is, and promises nothing that is known: inf.

    Args:
      gradient: that of the objective.
      direction: that of a model of the objective, to whose minimum it leads.
      predictor: a direction from elsewhere.
      has_predictor: problems that go there.
    """
    slope = dot(gradient, direction)
    leads_down = jnp.isfinite(slope) & (slope <= 0)
    direction = jnp.where(per_problem(leads_down), direction, -gradient)
    decrement = jnp.where(has_predictor, jnp.inf, -dot(gradient, direction) / 2)
    return jnp.where(per_problem(has_predictor), predictor, direction), decrement


def search(
    problem: Problem, line: Line, *, flat: float
) -> tuple[Float[Array, " k"], Float[Array, " k"], Float[Array, "blocks k q rows"]]:
    """Finds steps at which the slope is at most the share ``flat`` of the first one, in size.

    Newton's method on the slope, which rises with t as the objective is convex, kept between the
    steps known to be too short and too long. The step is 0 for problems that are done, and where
    the direction does not lead down.

    Returns:
      The steps, and the mean losses and probabilities there.
    """
    w, v = line.theta[..., 1:], line.direction[..., 1:]
    ww, wv, vv = (problem.penalty.smooth_inner(a, b) for a, b in ((w, w), (w, v), (v, v)))
    # No objective is above the one at the start but by rounding, or the slope was rounding as well.
    highest = line.value * (1 + 64 * jnp.finfo(w.dtype).eps)
    first = dot(line.gradient, line.direction)
    downhill = (line.is_fixed | (first < 0)) & ~line.is_done

    def go_on(carry):
        _, _, _, found, tries, _ = carry
        return jnp.any(~found) & (tries < 60)

    def try_step(carry):
        t, low, high, found, tries, probe = carry
        probe = probe_at(problem, line.logits, line.ahead, t, probe.probabilities)
        slope = probe.slope + wv + t * vv
        second_derivative = probe.second_derivative + vv
        is_lower = probe.loss + (ww + t * (2 * wv + t * vv)) / 2 <= highest
        falls = (slope < 0) & is_lower
        low = jnp.where(falls, t, low)
        high = jnp.where(falls, high, t)
        newton = t - slope / second_derivative
        # Far out on a slope the curvature vanishes and Newton's step with it has no bound.
        safe = jnp.where(low > 0, 0.5 * (low + high), 0.1 * high)
        safe = jnp.where(jnp.isinf(high), 8 * t, safe)
        inside = (newton > low) & (newton < high) & (newton <= 8 * t)
        is_flat = is_lower & (jnp.abs(slope) <= flat * jnp.abs(first))
        found = found | line.is_fixed | ~downhill | is_flat
        # The last two keep to what is known to lead down.
        following = jnp.where(tries >= 58, low, jnp.where(inside, newton, safe))
        return jnp.where(found, t, following), low, high, found, tries + 1, probe

    zero = jnp.zeros_like(first)
    t = jnp.where(downhill, line.step, 0)
    nothing = Probe(zero, zero, zero, jnp.zeros_like(line.ahead))
    # One try at least, for the losses and probabilities of all.
    unknown = jnp.zeros_like(downhill)
    carry = (t, zero, zero + jnp.inf, unknown, 0, nothing)
    t, _, _, _, _, probe = jax.lax.while_loop(go_on, try_step, carry)
    return t, probe.loss, probe.probabilities


class Probe(NamedTuple):
    """The mean loss at a step, its derivatives in the step, and the probabilities there."""

    loss: Float[Array, " k"]
    slope: Float[Array, " k"]
    second_derivative: Float[Array, " k"]
    probabilities: Float[Array, "blocks k q rows"]


def probe_at(
    problem: Problem,
    logits: Float[Array, "blocks k q rows"],
    ahead: Float[Array, "blocks k q rows"],
    t: Float[Array, " k"],
    into: Float[Array, "blocks k q rows"],
) -> Probe:
    """Evaluates the loss at ``logits + t ahead``.

    Args:
      problem: the rows.
      logits: where the line begins.
      ahead: logits of its direction.
      t: steps.
      into: probabilities of blocks that are not active; the others are used up.
    """

    def of_rows(problem, arrays, t, mass):
        logits, ahead, into = arrays

        def add(j, carry):
            (loss, slope, second_derivative), probabilities = carry
            a = block_of(ahead, j)
            y = passes.targets(problem, j, logits.shape[2])
            s = passes.weights(problem, j, mass)
            p, below, log_z = passes.softmax(block_of(logits, j) + per_problem(t) * a)
            mean, variance = passes.mean_and_variance(p, a)
            sums = (
                loss + jnp.sum(s * (log_z - over_classes(y * below)), axis=-1),
                slope + jnp.sum(s * (mean - over_classes(y * a)), axis=-1),
                second_derivative + jnp.sum(s * variance, axis=-1),
            )
            return sums, put(probabilities, p, j)

        zero = jnp.zeros_like(t)
        return over_blocks(problem, add, ((zero, zero, zero), into))

    arrays, mass = (logits, ahead, into), passes.mass(problem)
    (loss, slope, curvature), filled = summed_and_filled(of_rows, problem, arrays, t, mass)
    return Probe(loss, slope, curvature, filled)


def backtrack(
    problem: Problem,
    theta: Float[Array, "k q columns"],
    logits: Float[Array, "blocks k q rows"],
    value: Float[Array, " k"],
    direction: Float[Array, "k q columns"],
    ahead: Float[Array, "blocks k q rows"],
    slope: Float[Array, " k"],
    is_done: Bool[Array, " k"],
) -> tuple[Float[Array, " k"], Float[Array, " k"], Float[Array, "blocks k q rows"]]:
    """Halves a step until the objective, with any penalty, falls by some of what it promises.

    Args:
      problem: with strengths.
      theta: parameters at the start.
      logits: logits there, with the offset.
      value: objectives there.
      direction: the whole step.
      ahead: its logits.
      slope: what the whole step promises, the penalty as it is and the loss as if it were linear.
      is_done: problems that stay at the start.

    Returns:
      The steps, 0 where the objective never falls, and the mean losses and probabilities there.
    """
    # A loss is a difference of logits, with their rounding.
    largest = jnp.max(jnp.where(counts(logits), jnp.abs(logits), 0), axis=(0, 2, 3))
    rounding = 16 * jnp.finfo(value.dtype).eps * jnp.maximum(value, largest)

    def at(t):
        there = logits + t[None, :, None, None] * ahead
        loss, probabilities = passes.loss_and_probabilities(problem, there)
        moved = theta[..., 1:] + per_problem(t) * direction[..., 1:]
        return loss + problem.penalty.value(moved), loss, probabilities

    def falls(t, reached):
        return reached <= value + 1e-4 * t * jnp.minimum(slope, 0) + rounding

    def go_on(carry):
        t, (reached, _, _), tries = carry
        return jnp.any(~falls(t, reached)) & (tries < 40)

    def shorten(carry):
        t, (reached, _, _), tries = carry
        # Where it has not fallen by then, it never does.
        shorter = jnp.where(tries < 38, t / 2, 0)
        t = jnp.where(falls(t, reached), t, shorter)
        return t, at(t), tries + 1

    whole = jnp.where(is_done, 0, jnp.ones_like(value))
    t, (_, loss, probabilities), _ = jax.lax.while_loop(go_on, shorten, (whole, at(whole), 0))
    return t, loss, probabilities
