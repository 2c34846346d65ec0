"""The bias that minimises the loss for given weights."""

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Float, Integer
from softmax_jax.solvers import passes
from softmax_jax.solvers.passes import per_problem
from softmax_jax.solvers.problem import Problem, block_of, counts, over_blocks


def best_bias(problem: Problem, logits: Float[Array, "blocks k q rows"]) -> Float[Array, "k q"]:
    """Returns numbers to add to the bias, by damped Newton on the loss in b alone, to rounding.

    The first step is one of iterative scaling (Darroch and Ratcliff 1972), to b + log(mean y / mean
    p), which never overshoots, and gets there from however far where offsets or weights are large.
    Where they are very large, the loss is all but piecewise linear, which tells Newton's method
    little; it is then minimised for the logits divided by a temperature, which falls to 1.

    The Hessian takes n q² multiplications and q³ for its inverse, where a gradient takes n q. It
    serves for as long as steps with it divide the gradient by ten (the chord method).
    """
    _, k, q, _ = logits.shape
    lowest = jnp.min(logits, axis=2, where=counts(logits), initial=jnp.inf)
    reach = jnp.max(logits, axis=2) - lowest
    size = jnp.max(reach, axis=(0, 2))
    hot = jnp.where(size > 1000, size / 100, 1)

    def go_on(carry):
        _, _, size, last, far, i, _ = carry
        falls = far | (size < 0.5 * last) | jnp.isinf(last)
        return (i < 300) & jnp.any((size > 1e-14) & falls)

    def newton(carry):
        b, heat, size, _, far, i, inverse = carry
        g = _gradient(problem, logits, b, heat)
        falls = jnp.isfinite(size) & (jnp.sum(jnp.abs(g), axis=-1) < 0.1 * size)
        vectors, values = inverse = jax.lax.cond(
            jnp.all(~far & falls),
            lambda: inverse,
            lambda: _inverse_hessian(problem, logits, b, heat),
        )
        turned = jnp.einsum("kab,ka->kb", vectors, g)
        step = -jnp.einsum("kab,kb->ka", vectors, values * turned)
        # Within a change of the logits by one the loss stays close to its quadratic model.
        length = jnp.max(jnp.abs(step), axis=-1, keepdims=True)
        step = step / jnp.maximum(1, length)
        b = b + heat[:, None] * step
        is_far = length[:, 0] > 0.1
        cooler = jnp.where(is_far, heat, jnp.maximum(heat / 3, 1))
        rest = jnp.where(heat > 1, jnp.inf, jnp.sum(jnp.abs(g), axis=-1))
        return b, cooler, rest, size, is_far, i + 1, inverse

    scaling = _iterative_scaling(problem, logits / hot[None, :, None, None])
    unknown = jnp.full(k, jnp.inf, logits.dtype)
    nothing = jnp.zeros((k, q, q), logits.dtype), jnp.zeros((k, q), logits.dtype)
    start = (hot[:, None] * scaling, hot, unknown, unknown, jnp.ones(k, bool), 0, nothing)
    return jax.lax.while_loop(go_on, newton, start)[0]


def _at(
    problem: Problem,
    logits: Float[Array, "blocks k q rows"],
    b: Float[Array, "k q"],
    heat: Float[Array, " k"],
    j: Integer[Array, ""],
) -> tuple[Float[Array, "k q rows"], Float[Array, "m 1 rows"]]:
    """Returns probabilities and weights of block ``j``."""
    p, _, _ = passes.softmax((block_of(logits, j) + b[:, :, None]) / per_problem(heat))
    return p, passes.weights(problem, j, passes.mass(problem))[:, None]


def _gradient(
    problem: Problem,
    logits: Float[Array, "blocks k q rows"],
    b: Float[Array, "k q"],
    heat: Float[Array, " k"],
) -> Float[Array, "k q"]:
    """Returns the gradient of the mean loss in b, times the temperature."""

    def add(j, g):
        p, s = _at(problem, logits, b, heat, j)
        return g + jnp.sum(s * (p - passes.targets(problem, j, b.shape[1])), axis=-1)

    return over_blocks(problem, add, jnp.zeros_like(b))


def _inverse_hessian(
    problem: Problem,
    logits: Float[Array, "blocks k q rows"],
    b: Float[Array, "k q"],
    heat: Float[Array, " k"],
) -> tuple[Float[Array, "k q q"], Float[Array, "k q"]]:
    """Returns ``V, a`` such that ``V diag(a) V^T`` is the inverse of the Hessian in b."""
    k, q = b.shape
    eye = jnp.eye(q, dtype=b.dtype)

    def add(j, h):
        p, s = _at(problem, logits, b, heat, j)
        diagonal = jnp.sum(s * p, axis=-1)[:, :, None] * eye[None]
        return h + diagonal - jnp.einsum("kar,kbr->kab", s * p, p)

    h = over_blocks(problem, add, jnp.zeros((k, q, q), b.dtype))
    # Scaled to a unit diagonal, as classes may differ in weight by many orders. It is flat along
    # adding one number to all classes, or to some that are never confused with others.
    diagonal = jnp.einsum("kaa->ka", h)
    scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)
    values, vectors = jnp.linalg.eigh(scale[:, :, None] * h * scale[:, None, :])
    inverse = jnp.where(values > 1e-14, 1 / jnp.where(values > 1e-14, values, 1), 0)
    return scale[:, :, None] * vectors, inverse


def _iterative_scaling(
    problem: Problem, logits: Float[Array, "blocks k q rows"]
) -> Float[Array, "k q"]:
    """Returns log(mean y / mean p), a step that never overshoots."""
    q, mass = logits.shape[2], passes.mass(problem)

    def add_target(j, total):
        s = passes.weights(problem, j, mass)[:, None]
        return total + jnp.sum(s * passes.targets(problem, j, q), axis=-1)

    target = over_blocks(problem, add_target, jnp.zeros((1, q), logits.dtype))
    shares = problem.weights[:, :, None] / mass[None, :, None, None]
    terms = jax.nn.log_softmax(logits, axis=2) + jnp.log(shares)
    reached = jax.nn.logsumexp(terms, axis=(0, 3))
    scaling = jnp.log(jnp.where(target > 0, target, 1)) - reached
    return jnp.where((target > 0) & jnp.isfinite(reached), scaling, 0)
