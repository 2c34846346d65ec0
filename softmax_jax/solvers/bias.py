"""The bias that minimises the loss for given weights."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float, Int, Integer
from softmax_jax.solvers import passes
from softmax_jax.solvers.passes import per_problem
from softmax_jax.solvers.placement import added_up, largest_of_all, summed_over_devices
from softmax_jax.solvers.problem import Problem, block_of, counts, over_blocks


class Root(NamedTuple):
    """``L, a`` such that ``diag(a) L^-T L^-1 diag(a)`` is all but the inverse Hessian in b."""

    lower: Float[Array, "k q q"]
    scale: Float[Array, "k q"]


def no_root(logits: Float[Array, "blocks k q rows"]) -> Root:
    """Returns one of zeros, which stands for none."""
    _, k, q, _ = logits.shape
    return Root(jnp.zeros((k, q, q), logits.dtype), jnp.zeros((k, q), logits.dtype))


def best_bias(problem: Problem, logits: Float[Array, "blocks k q rows"]) -> Float[Array, "k q"]:
    """Returns numbers to add to the bias; see `best_bias_and_root`."""
    return best_bias_and_root(problem, logits, no_root(logits), has_root=False)[0]


def best_bias_and_root(
    problem: Problem,
    logits: Float[Array, "blocks k q rows"],
    root: Root,
    *,
    has_root: Bool[Array, ""] | bool,
) -> tuple[Float[Array, "k q"], Root]:
    """Finds numbers to add to the bias, by damped Newton on the loss in b alone, to rounding.

    Where the mean probability of a class is far from its share of the targets, the first step is
    one of iterative scaling (Darroch and Ratcliff 1972), to b + log(mean y / mean p), which never
    overshoots, and gets there from however far where offsets or weights are large. Where they are
    very large, the loss is all but piecewise linear, which tells Newton's method little; it is then
    minimised for the logits divided by a temperature, which falls to 1.

    The Hessian takes n q² multiplications and q³ for its inverse, where a gradient takes n q. It
    serves for as long as steps with it divide the gradient by ten (the chord method).

    Args:
      problem: the rows.
      logits: with the bias to begin with.
      root: that of a Hessian which may serve, of other logits.
      has_root: whether there is one.

    Returns:
      The numbers, and the root of the last Hessian.
    """
    _, k, q, _ = logits.shape
    unknown = jnp.full(k, jnp.inf, logits.dtype)
    start = _Search(
        b=jnp.zeros((k, q), logits.dtype),
        heat=jnp.ones(k, logits.dtype),
        size=unknown,
        rest=unknown,
        # The Hessian of other logits may be off by a factor.
        away=jnp.full(k, jnp.where(has_root, 1, 0), logits.dtype),
        goes_on=jnp.ones(k, bool),
        is_stale=~jnp.bool_(has_root),
        root=root,
        i=jnp.int32(0),
    )

    def go_on(at):
        return (at.i < 300) & jnp.any((at.rest > 1e-14) & at.goes_on)

    def newton(at):
        g, root = jax.lax.cond(
            at.is_stale,
            lambda: _derivatives(problem, logits, at.b, at.heat),
            lambda: (_gradient(problem, logits, at.b, at.heat), at.root),
        )
        is_far = (at.i == 0) & ~_is_near(problem, g)
        return jax.lax.cond(
            is_far, lambda: _from_afar(problem, logits, at), lambda: _step(at, g, root)
        )

    end = jax.lax.while_loop(go_on, newton, start)
    return end.b, end.root


class _Search(NamedTuple):
    """A search for the bias, and what it knows of its Hessian."""

    b: Float[Array, "k q"]
    heat: Float[Array, " k"]
    """Temperatures."""
    size: Float[Array, " k"]
    """Sum of the gradient's sizes, where it was last known."""
    rest: Float[Array, " k"]
    """Sum that is expected to be left after the last step."""
    away: Float[Array, " k"]
    """Way since the Hessian was formed."""
    goes_on: Bool[Array, " k"]
    """Problems far from the end, or whose gradient falls still."""
    is_stale: Bool[Array, ""]
    """Whether the Hessian has to be formed anew."""
    root: Root
    i: Int[Array, ""]


def _step(at: _Search, g: Float[Array, "k q"], root: Root) -> _Search:
    size = jnp.sum(jnp.abs(g), axis=-1)
    scaled = (root.scale * g)[:, :, None]
    step = -root.scale * jax.scipy.linalg.cho_solve((root.lower, True), scaled)[..., 0]
    # Within a change of the logits by one the loss stays close to its quadratic model.
    length = jnp.max(jnp.abs(step), axis=-1)
    step = at.heat[:, None] * step / jnp.maximum(1, length)[:, None]
    serves = at.is_stale | jnp.all((size < 0.1 * at.size) | (size < 1e-14))
    is_far = length > 0.1
    away = jnp.where(at.is_stale, 0, at.away) + length
    # Along a step of this length, the Hessian changes by a factor of exp(2 length) at most.
    rest = jnp.where(is_far | (at.heat > 1) | ~serves, jnp.inf, 2 * away * size)
    return at._replace(
        b=at.b + jnp.where(serves, step, 0),
        heat=jnp.where(is_far, at.heat, jnp.maximum(at.heat / 3, 1)),
        size=jnp.where(serves, size, jnp.inf),
        rest=rest,
        away=away,
        goes_on=is_far | (at.heat > 1) | ~serves | (size < 0.5 * at.size),
        is_stale=jnp.any(is_far | (at.heat > 1)) | ~serves,
        root=root,
        i=at.i + 1,
    )


def _is_near(problem: Problem, g: Float[Array, "k q"]) -> Bool[Array, ""]:
    """Returns whether no class is off its share of the targets by more than a tenth of it."""
    return jnp.all(jnp.abs(g) <= 0.1 * _shares_of_classes(problem, g.shape[1]))


def _from_afar(problem: Problem, logits: Float[Array, "blocks k q rows"], at: _Search) -> _Search:
    size = _reach(problem, logits)
    hot = jnp.where(size > 1000, size / 100, 1)
    scaling = _iterative_scaling(problem, logits, hot)
    return at._replace(b=hot[:, None] * scaling, heat=hot, i=at.i + 1)


def _reach(problem: Problem, logits: Float[Array, "blocks k q rows"]) -> Float[Array, " k"]:
    """Returns the largest difference of two logits of a row."""

    def reach(problem, logits):
        def wider(j, size):
            o = block_of(logits, j)
            lowest = jnp.min(o, axis=1, where=counts(o), initial=jnp.inf)
            return jnp.maximum(size, jnp.max(jnp.max(o, axis=1) - lowest, axis=-1))

        return over_blocks(problem, wider, jnp.zeros(logits.shape[1], logits.dtype))

    return summed_over_devices(reach, problem, logits, combined=largest_of_all)


def _at(
    problem: Problem,
    logits: Float[Array, "blocks k q rows"],
    b: Float[Array, "k q"],
    heat: Float[Array, " k"],
    mass: Float[Array, " m"],
    j: Integer[Array, ""],
) -> tuple[Float[Array, "k q rows"], Float[Array, "m 1 rows"]]:
    """Returns probabilities and weights of block ``j``."""
    p, _, _ = passes.softmax((block_of(logits, j) + b[:, :, None]) / per_problem(heat))
    return p, passes.weights(problem, j, mass)[:, None]


def _gradient(
    problem: Problem,
    logits: Float[Array, "blocks k q rows"],
    b: Float[Array, "k q"],
    heat: Float[Array, " k"],
) -> Float[Array, "k q"]:
    """Returns the gradient of the mean loss in b, times the temperature."""

    def sums(problem, logits, b, heat, mass):
        def add(j, g):
            p, s = _at(problem, logits, b, heat, mass, j)
            return g + jnp.sum(s * (p - passes.targets(problem, j, b.shape[1])), axis=-1)

        return over_blocks(problem, add, jnp.zeros_like(b))

    return summed_over_devices(sums, problem, logits, b, heat, passes.mass(problem))


def _derivatives(
    problem: Problem,
    logits: Float[Array, "blocks k q rows"],
    b: Float[Array, "k q"],
    heat: Float[Array, " k"],
) -> tuple[Float[Array, "k q"], Root]:
    """Returns `_gradient`, and the root of the Hessian in b."""
    k, q = b.shape
    eye = jnp.eye(q, dtype=b.dtype)

    def sums(problem, logits, b, heat, mass):
        def add(j, carry):
            g, h = carry
            p, s = _at(problem, logits, b, heat, mass, j)
            g = g + jnp.sum(s * (p - passes.targets(problem, j, q)), axis=-1)
            diagonal = jnp.sum(s * p, axis=-1)[:, :, None] * eye[None]
            return g, h + diagonal - jnp.einsum("kar,kbr->kab", s * p, p)

        return over_blocks(problem, add, (jnp.zeros_like(b), jnp.zeros((k, q, q), b.dtype)))

    g, h = summed_over_devices(sums, problem, logits, b, heat, passes.mass(problem))
    # Scaled to a unit diagonal, as classes may differ in weight by many orders. It is flat along
    # adding one number to all classes, which changes nothing, and so is some curvature put there;
    # and along adding one to classes that are never confused with others, where it gets a little.
    diagonal = jnp.einsum("kaa->ka", h)
    is_met = diagonal > 0
    size = jnp.sqrt(jnp.where(is_met, diagonal, 1))
    scale = jnp.where(is_met, 1 / size, 0)
    flat = jnp.where(is_met, size, 0)
    flat = flat / jnp.sqrt(jnp.sum(flat**2, axis=-1, keepdims=True) + jnp.finfo(h.dtype).tiny)
    scaled = scale[:, :, None] * h * scale[:, None, :] + flat[:, :, None] * flat[:, None, :]
    some = jnp.where(is_met, 4 * q * jnp.finfo(h.dtype).eps, 1)
    lower = _cholesky(scaled + some[:, :, None] * eye[None])
    # The Hessian is the Laplacian of a graph, which is at most twice its diagonal.
    is_definite = jnp.all(jnp.isfinite(lower), axis=(1, 2), keepdims=True)
    return g, Root(jnp.where(is_definite, lower, math.sqrt(2) * eye[None]), scale)


def _cholesky(a: Float[Array, "k q q"]) -> Float[Array, "k q q"]:
    """Returns the lower factors; what is not finite where a matrix is not positive definite."""

    def in_float32(a):
        # XLA for several TPUs has none in float64. One of few digits makes for more steps.
        q = a.shape[-1]
        some = 4 * q * jnp.finfo(jnp.float32).eps * jnp.eye(q, dtype=a.dtype)
        return jnp.linalg.cholesky((a + some[None]).astype(jnp.float32)).astype(a.dtype)

    if a.dtype != jnp.float64:
        return jnp.linalg.cholesky(a)
    return jax.lax.platform_dependent(a, tpu=in_float32, default=jnp.linalg.cholesky)


def _shares_of_classes(problem: Problem, q: int) -> Float[Array, "m q"]:
    """Returns the mean of the targets."""

    def sums(problem, _, mass):
        def add(j, total):
            s = passes.weights(problem, j, mass)[:, None]
            return total + jnp.sum(s * passes.targets(problem, j, q), axis=-1)

        return over_blocks(problem, add, jnp.zeros((len(mass), q), problem.dtype))

    return summed_over_devices(sums, problem, (), passes.mass(problem))


def _iterative_scaling(
    problem: Problem, logits: Float[Array, "blocks k q rows"], heat: Float[Array, " k"]
) -> Float[Array, "k q"]:
    """Returns log(mean y / mean p) for logits divided by ``heat``, a step that never overshoots."""
    _, k, q, _ = logits.shape
    target = _shares_of_classes(problem, q)

    def log_sums(problem, logits, heat, mass):
        def add(j, reached):
            _, below, log_z = passes.softmax(block_of(logits, j) / per_problem(heat))
            log_s = jnp.log(passes.weights(problem, j, mass))
            terms = below + (log_s - log_z)[:, None]
            return jnp.logaddexp(reached, jax.nn.logsumexp(terms, axis=-1))

        return over_blocks(problem, add, jnp.full((k, q), -jnp.inf, logits.dtype))

    def combined(reached):
        # Relative to the largest, so that it is the sum that is sent.
        most = largest_of_all(reached)
        most = jnp.where(jnp.isfinite(most), most, 0)
        return most + jnp.log(added_up(jnp.exp(reached - most)))

    mass = passes.mass(problem)
    reached = summed_over_devices(log_sums, problem, logits, heat, mass, combined=combined)
    scaling = jnp.log(jnp.where(target > 0, target, 1)) - reached
    return jnp.where((target > 0) & jnp.isfinite(reached), scaling, 0)
