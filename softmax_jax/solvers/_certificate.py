r"""How far an objective can be above its minimum: a bound, in float64.

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
With neither there is no bound.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax.solvers import _problem
from softmax_jax.solvers._problem import Problem, over_classes, wide


class Certificate(NamedTuple):
    """Of ``k`` problems."""

    theta: jax.Array
    """With the bias that is best for its weights."""
    value: jax.Array
    """``[k]`` objectives, in nats."""
    gap: jax.Array
    """``[k]``: the minimum is not below ``value - gap``."""
    slope: jax.Array
    """``[k]``: the largest entry of the gradient of a smooth objective; NaN if a dual was given."""


def penalty(problem: Problem, w: jax.Array, *, grouped: bool) -> jax.Array:
    """``Omega``: ``[k]`` for ``w: [k, q, d]``; grouped, a feature's weights count by their norm."""
    smooth = jnp.sum(w * w, axis=1) * problem.ridge / 2
    return jnp.sum(smooth + jnp.sum(sizes(w, grouped), axis=1) * problem.threshold, axis=-1)


def sizes(w: jax.Array, grouped: bool) -> jax.Array:
    """``|w|``, or the norms over the classes, ``[k, 1, d]``: what the l1 penalty sums."""
    return jnp.sqrt(jnp.sum(w * w, axis=1, keepdims=True)) if grouped else jnp.abs(w)


def fenchel_young(problem: Problem, w: jax.Array, g: jax.Array, *, grouped: bool) -> jax.Array:
    """``Omega(W) + <W, G> + Omega*(-G)``, not negative: ``[k]``; infinite where l2 = 0 < excess.

    Summed over entries or groups, each of which is not negative.
    """
    ridge, threshold = problem.ridge[:, None, :], problem.threshold[:, None, :]
    excess = jnp.maximum(sizes(g, grouped) - threshold, 0)
    conjugate = jnp.where(excess == 0, 0, excess**2 / (2 * ridge))
    wg = w * g
    inner = jnp.sum(wg, axis=1, keepdims=True) if grouped else wg
    square = jnp.sum(w * w, axis=1, keepdims=True) if grouped else w * w
    terms = 0.5 * ridge * square + threshold * sizes(w, grouped) + inner + conjugate
    smooth = (g + ridge * w) ** 2 / (2 * ridge)
    only_l2 = (problem.l1 == 0) & (problem.l2 > 0)
    return jnp.where(
        only_l2, jnp.sum(smooth, axis=(1, 2)), jnp.sum(jnp.maximum(terms, 0), axis=(1, 2))
    )


def certify(
    problem: Problem, theta: jax.Array, dual: jax.Array | None, *, grouped: bool
) -> Certificate:
    """The best bias for the weights of ``theta``, and a bound for the result: about a pass.

    Args:
      problem: in float64; with one weighting.
      theta: ``[k, q, 1 + d]``.
      dual: ``[blocks, k, q, rows]`` distributions for the bound, which are tilted until their
        residuals sum to zero; by default those of ``theta`` with its best bias.
      grouped: see `penalty`.
    """
    k = len(theta)
    logits = _problem.logits(problem, theta)
    if dual is not None:
        # What is zero is taken for next to nothing, so that tilting can raise it.
        logits = jnp.concatenate([logits, jnp.log(jnp.maximum(dual, 1e-300))], axis=1)
    bias = jax.lax.cond(
        problem.intercept > 0,
        lambda: best_bias(problem, logits),
        lambda: jnp.zeros(logits.shape[1:3], logits.dtype),
    )
    logits = logits + bias[None, :, :, None]
    loss, p = _problem.loss_and_probabilities(problem, logits)
    theta, loss = theta.at[..., 0].add(bias[:k]), loss[:k]
    w = theta[..., 1:]
    logits, p = logits[:, :k], p[:, -k:]
    r = _problem.gradient(problem, p)
    g = r[..., 1:]

    # With l2 = 0 the residuals are shrunk until they fit, and what the loss loses by it is added.
    eps = jnp.finfo(theta.dtype).eps
    c = jnp.where(problem.l2 > 0, 1, (1 - 4 * eps) * share_that_fits(problem, g, grouped=grouped))
    divergence = jax.lax.cond(
        jnp.all(c == 1) & (dual is None),
        lambda: jnp.zeros_like(loss),
        lambda: _divergence(problem, logits, p, c),
    )
    value = loss + penalty(problem, w, grouped=grouped)
    gap = divergence + fenchel_young(problem, w, wide(c) * g, grouped=grouped)
    # What is left of the zero sums, times how far the bias could still have to go, and rounding.
    # If that is more than rounding, nothing is known but that the objective is not negative.
    leftover = jnp.sum(jnp.abs(r[..., 0]), axis=-1)
    counts = theta[..., 0] > -1e29
    b = jnp.where(counts, theta[..., 0], 0)
    center = jnp.sum(b, axis=-1) / jnp.sum(counts, axis=-1)
    reach = 1 + jnp.max(jnp.where(counts, jnp.abs(b - center[:, None]), 0), axis=-1)
    gap = gap + leftover * reach + 16 * eps * value
    bounded = (leftover < 1e-10) & ((problem.l2 > 0) | (problem.l1 > 0))
    gap = jnp.where(bounded, jnp.minimum(gap, value), value)
    if dual is None:
        slope = jnp.max(jnp.abs(g + problem.ridge[:, None, :] * w), axis=(1, 2))
    else:
        slope = jnp.full_like(value, jnp.nan)
    return Certificate(theta, value, gap, slope)


def share_that_fits(problem: Problem, g: jax.Array, *, grouped: bool) -> jax.Array:
    """``[k]``: the largest share, up to 1, of ``g`` that the absolute penalty allows."""
    threshold = problem.threshold[:, None, :]
    excess = sizes(g, grouped) / jnp.where(threshold > 0, threshold, 1)
    return 1 / jnp.maximum(jnp.max(excess, axis=(1, 2)), 1)


def _divergence(
    problem: Problem, logits: jax.Array, probabilities: jax.Array, c: jax.Array
) -> jax.Array:
    """Mean KL divergence of ``y + c (probabilities - y)`` from ``softmax(logits)``."""
    _, k, q, _ = logits.shape
    mass = _problem.mass(problem)

    def add(j, total):
        y = _problem.targets(problem, j, q)
        s = _problem.weights(problem, j, mass)
        _, below, log_z = _problem.softmax(_problem.block_of(logits, j))
        p = y + wide(c) * (_problem.block_of(probabilities, j) - y)
        # Padded by p's and q's sums, each term is not negative.
        log_q = below - log_z[:, None]
        terms = jax.scipy.special.xlogy(p, p) - p * log_q - p + jnp.exp(log_q)
        return total + jnp.sum(s * over_classes(jnp.maximum(terms, 0)), axis=-1)

    return _problem.over_blocks(problem, add, jnp.zeros(k, logits.dtype))


def margin(problem: Problem, theta: jax.Array) -> jax.Array:
    """By how much a row's class leads in ``W x + b`` at least: above zero, they are separated.

    Half a pass: ``[k]``.
    """
    k, q, _ = theta.shape

    def least(j, margin):
        o = _problem.product(theta, _problem.features(problem, j))
        is_target = jnp.broadcast_to(_problem.targets(problem, j, q) > 0, o.shape)
        own = jnp.min(jnp.where(is_target, o, jnp.inf), axis=1)
        other = jnp.max(jnp.where(is_target, -jnp.inf, o), axis=1)
        counts = _problem.block_of(problem.weights, j) > 0
        return jnp.minimum(margin, jnp.min(jnp.where(counts, own - other, jnp.inf), axis=-1))

    return _problem.over_blocks(problem, least, jnp.full(k, jnp.inf, theta.dtype))


def best_bias(problem: Problem, logits: jax.Array) -> jax.Array:
    """``[k, q]`` to add to the bias: damped Newton on the loss in b alone, to rounding.

    The first step is one of iterative scaling (Darroch and Ratcliff 1972), to b + log(mean y / mean
    p), which never overshoots, and gets there from however far where offsets or weights are large.
    Where they are very large, the loss is all but piecewise linear, which tells Newton's method
    little; it is then minimised for the logits divided by a temperature, which falls to 1.
    """
    _, k, q, _ = logits.shape
    reach = jnp.max(logits, axis=2) - jnp.min(logits, axis=2, where=logits > -1e29, initial=jnp.inf)
    size = jnp.max(reach, axis=(0, 2))
    hot = jnp.where(size > 1000, size / 100, 1)
    mass = _problem.mass(problem)
    eye = jnp.eye(q, dtype=logits.dtype)

    def derivatives(b, heat):
        def add(j, carry):
            o = _problem.block_of(logits, j) + b[:, :, None]
            p, _, _ = _problem.softmax(o / wide(heat))
            y = _problem.targets(problem, j, q)
            s = _problem.weights(problem, j, mass)[:, None]
            sp = s * p
            first = jnp.sum(s * (p - y), axis=-1)
            second = jnp.sum(sp, axis=-1)[:, :, None] * eye[None]
            return carry[0] + first, carry[1] + second - jnp.einsum("kar,kbr->kab", sp, p)

        start = (jnp.zeros((k, q), logits.dtype), jnp.zeros((k, q, q), logits.dtype))
        return _problem.over_blocks(problem, add, start)

    def go_on(carry):
        _, _, size, last, far, i = carry
        falls = far | (size < 0.5 * last) | jnp.isinf(last)
        return (i < 300) & jnp.any((size > 1e-14) & falls)

    def newton(carry):
        b, heat, size, _, _, i = carry
        g, h = derivatives(b, heat)
        # Scaled to a unit diagonal, as classes may differ in weight by many orders. It is flat
        # along adding one number to all classes, or to some that are never confused with others.
        diagonal = jnp.einsum("kaa->ka", h)
        scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)
        values, vectors = jnp.linalg.eigh(scale[:, :, None] * h * scale[:, None, :])
        inverse = jnp.where(values > 1e-14, 1 / jnp.where(values > 1e-14, values, 1), 0)
        turned = jnp.einsum("kab,ka->kb", vectors, scale * g)
        step = -scale * jnp.einsum("kab,kb->ka", vectors, inverse * turned)
        # Within a change of the logits by one the loss stays close to its quadratic model.
        length = jnp.max(jnp.abs(step), axis=-1, keepdims=True)
        step = step / jnp.maximum(1, length)
        b = b + heat[:, None] * step
        is_far = length[:, 0] > 0.1
        cooler = jnp.where(is_far, heat, jnp.maximum(heat / 3, 1))
        rest = jnp.where(heat > 1, jnp.inf, jnp.sum(jnp.abs(g), axis=-1))
        return b, cooler, rest, size, is_far, i + 1

    def add_target(j, total):
        s = _problem.weights(problem, j, mass)[:, None]
        return total + jnp.sum(s * _problem.targets(problem, j, q), axis=-1)

    target = _problem.over_blocks(problem, add_target, jnp.zeros((1, q), logits.dtype))
    shares = problem.weights[:, :, None] / mass[None, :, None, None]
    warm = logits / hot[None, :, None, None]
    terms = jax.nn.log_softmax(warm, axis=2) + jnp.log(shares)
    reached = jax.nn.logsumexp(terms, axis=(0, 3))
    scaling = jnp.log(jnp.where(target > 0, target, 1)) - reached
    scaling = jnp.where((target > 0) & jnp.isfinite(reached), scaling, 0)
    unknown = jnp.full(k, jnp.inf, logits.dtype)
    start = (hot[:, None] * scaling, hot, unknown, unknown, jnp.ones(k, bool), 0)
    return jax.lax.while_loop(go_on, newton, start)[0]
