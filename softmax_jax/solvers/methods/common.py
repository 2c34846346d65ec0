r"""The number that may be added to a feature's weights of all classes.

The loss does not see it, so that it is set where the penalty is least: along it there is no
curvature, and a step of Newton's method would not know how far to go.
"""

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float

# Halvings of an interval, to the last digit of float64.
_HALVINGS = 60


def common_set_apart(
    u: Float[Array, "q columns"],
    free: Bool[Array, "q columns"],
    threshold: Float[Array, " columns"],
    ridge: Float[Array, " columns"],
) -> Float[Array, "q columns"]:
    r"""Subtracts the best number from the weights of each feature that are free.

    It minimises ``sum_c ridge/2 (u_c - v)^2 + threshold |u_c - v|``. With m numbers at or below v
    the slope is zero at :math:`v_m = \bar u + (q - 2m) \cdot threshold / (q \cdot ridge)`, so
    that the minimum is the median of the ``u_c`` and the ``v_m``; without a ridge, the median of
    the ``u_c`` that is nearest to zero.
    """
    q = u.shape[0]
    count = jnp.sum(free, axis=0)
    ordered = jnp.sort(jnp.where(free, u, jnp.inf), axis=0)

    def at(i):
        return jnp.take_along_axis(ordered, jnp.clip(i, 0, q - 1)[None], axis=0)[0]

    nearest = jnp.clip(0, at((count - 1) // 2), at(count // 2))
    m = jnp.arange(q + 1)[:, None]
    mean = jnp.sum(jnp.where(free, u, 0), axis=0) / jnp.maximum(count, 1)
    lever = threshold / (jnp.maximum(count, 1) * jnp.where(ridge > 0, ridge, 1))
    between = mean[None] + (count[None] - 2 * m) * lever[None]
    between = jnp.where(m <= count[None], between, jnp.inf)
    both = jnp.sort(jnp.concatenate([ordered, between]), axis=0)
    smooth = jnp.take_along_axis(both, count[None], axis=0)[0]
    common = jnp.where(ridge > 0, smooth, nearest)
    # Of the biases, which are not penalised, any number is as good.
    common = jnp.where(threshold > 0, common, mean)
    common = jnp.where(count > 1, common, 0)
    return jnp.where(free, u - common[None], u)


def common_within_limits(
    u: Float[Array, "q columns"],
    free: Bool[Array, "q columns"],
    threshold: Float[Array, "q columns"],
    ridge: Float[Array, "q columns"],
    lower: Float[Array, "q columns"],
    upper: Float[Array, "q columns"],
) -> Float[Array, "q columns"]:
    r"""Subtracts the best number, as `common_set_apart` does, where classes differ.

    It minimises ``sum_c ridge_c/2 (u_c - v)^2 + threshold_c |u_c - v|`` over the ``v`` that leave
    all weights within their limits. The slope rises with v, so that its zero is found by bisection.
    It is a ``u_c``, or the number at which a limit is reached, if there is one that near.
    """
    u, threshold, ridge = (jnp.where(free, a, 0) for a in (u, threshold, ridge))

    def slopes(v):
        """Returns those to the left and to the right."""
        apart = v[None] - u
        squared = jnp.sum(ridge * apart, axis=0)
        absolute = jnp.sum(threshold * jnp.sign(apart), axis=0)
        kinks = jnp.sum(jnp.where(apart == 0, threshold, 0), axis=0)
        return squared + absolute - kinks, squared + absolute + kinks

    lowest = jnp.max(jnp.where(free, u - upper, -jnp.inf), axis=0)
    highest = jnp.min(jnp.where(free, u - lower, jnp.inf), axis=0)
    low = jnp.clip(jnp.min(jnp.where(free, u, jnp.inf), axis=0), lowest, highest)
    high = jnp.clip(jnp.max(jnp.where(free, u, -jnp.inf), axis=0), lowest, highest)

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        falls = slopes(middle)[1] < 0
        return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (low, high))
    places = jnp.concatenate([jnp.where(free, u, jnp.inf), lowest[None], highest[None]])
    distance = jnp.abs(places - high[None])
    nearest = jnp.take_along_axis(places, jnp.argmin(distance, axis=0)[None], axis=0)[0]
    width = high - low + 8 * jnp.finfo(u.dtype).eps * jnp.abs(high)
    common = jnp.where(jnp.min(distance, axis=0) <= width, nearest, high)
    # Where zero is as good as any there is nothing to do.
    left, right = slopes(jnp.zeros_like(low))
    is_best = ((left <= 0) | (highest <= 0)) & ((right >= 0) | (lowest >= 0))
    stays = is_best | ~jnp.isfinite(common) | (jnp.sum(free, axis=0) < 2)
    return jnp.where(free, u - jnp.where(stays, 0, common)[None], u)
