r"""The bound from below by a mean of the distributions met on the way.

The dual objective is concave, and successive gradients point in different directions, so that their
mean is shorter than any of them, and its gap smaller. Each new distribution is mixed in by the
share that raises the bound the most, a Frank-Wolfe step with exact line search in the dual:

.. math:: d(P) = \sum_i s_i [H(p_i) + (p_i - y_i) \cdot a_i] - \frac{1}{2} \|X^\top S (P - Y)\|_*^2,
    \qquad \|G\|_*^2 = \sum \frac{G^2}{\rho}, \qquad
    \gamma = \frac{H' - H - \langle G, G' - G \rangle_*}{\|G' - G\|_*^2}.
"""

from typing import NamedTuple

import jax.numpy as jnp

from softmax_jax._annotations import Array, Float
from softmax_jax.solvers.passes import dot, per_problem
from softmax_jax.solvers.problem import Problem, with_blocks


class Dual(NamedTuple):
    """A mean of distributions met on the way, and its terms of the bound."""

    probabilities: Float[Array, "blocks k q rows"]
    gradient: Float[Array, "k q columns"]
    """Gradient [R 1, R X] for its residuals R."""
    entropy: Float[Array, " k"]
    """Number that is at most the mean of H(p_i) + (p_i - y_i) . offset_i."""
    plain: Float[Array, " k"]
    """Gap by the distributions at the parameters alone, with no other ones mixed in."""


def gap_of_sharp(
    problem: Problem,
    w: Float[Array, "k q d"],
    g: Float[Array, "k q d"],
    loss: Float[Array, " k"],
) -> Float[Array, " k"]:
    """Returns the gap of Fenchel and Young where l1 > 0, as if the bias were at its minimum.

    With l2 = 0 residuals are shrunk until they fit; see the module `proximal`. What is left of the
    gradient in weights that are not penalised is added.

    Args:
      problem: with strengths.
      w: weights.
      g: gradient of the mean loss in them.
      loss: mean loss.
    """
    free, rest = problem.penalty.is_free(w, g), jnp.zeros_like(loss)
    if free is not None:
        rest = jnp.sum(jnp.abs(jnp.where(free, g, 0)), axis=(1, 2))
        g = jnp.where(free, 0, g)
    c = 1 / jnp.maximum(problem.penalty.dual_norm(-g), 1)
    fitting = per_problem(jnp.where(problem.l2 > 0, 1, (1 - 16 * jnp.finfo(g.dtype).eps) * c)) * g
    gap = problem.penalty.fenchel_young(w, fitting) + rest
    return jnp.where(problem.l2 > 0, gap, gap + (1 - c) * loss)


def penalised(
    problem: Problem,
    theta: Float[Array, "k q columns"],
    loss: Float[Array, " k"],
    gradient: Float[Array, "k q columns"],
) -> tuple[Float[Array, " k"], Float[Array, "k q columns"]]:
    """Returns the objective and its gradient, from those of the mean loss."""
    w, penalty = theta[..., 1:], problem.penalty
    return loss + penalty.smooth_value(w), gradient.at[..., 1:].add(penalty.gradient(w))


def bound(
    problem: Problem,
    theta: Float[Array, "k q columns"],
    loss: Float[Array, " k"],
    here: Dual,
    dual: Dual,
    decrement: Float[Array, " k"],
) -> tuple[Float[Array, " k"], Dual]:
    """Returns the gap, and the dual with the distributions at ``theta`` mixed in.

    With the gradients G of the mean loss, the bound is ``entropy - |G_W|^2 / (2 ridge)``, and a
    mixture has at least the mixed entropy. Where l2 = 0 there is no bound, and the gap is what the
    last step promised.

    Args:
      problem: with strengths ``l2``.
      theta: where the primal stands.
      loss: mean loss there.
      here: probabilities and gradient there; its entropy follows from the loss.
      dual: the mixture so far; entropy -inf if there is none.
      decrement: what the last step promised.
    """
    bounded = problem.l2 > 0
    here = here._replace(entropy=loss - dot(here.gradient, theta))

    is_first = jnp.isneginf(dual.entropy)
    rise = jnp.where(is_first, 0, here.entropy - dual.entropy)
    turn = here.gradient - dual.gradient
    dual_inner, turn_w = problem.penalty.dual_inner, turn[..., 1:]
    size = dual_inner(turn_w, turn_w)
    ahead = rise - dual_inner(dual.gradient[..., 1:], turn_w)
    share = ahead / jnp.where(size > 0, size, 1)
    share = jnp.where(is_first | ~bounded, 1, jnp.clip(share, 0, 1))

    def distance(gradient):
        g = penalised(problem, theta, loss, gradient)[1][..., 1:]
        return dual_inner(g, g) / 2

    plain = distance(here.gradient)

    def mixed(share):
        return Dual(
            probabilities=with_blocks(
                problem,
                lambda old, new: old + per_problem(share) * (new - old),
                dual.probabilities,
                here.probabilities,
            ),
            gradient=dual.gradient + per_problem(share) * (here.gradient - dual.gradient),
            entropy=jnp.where(share == 1, here.entropy, dual.entropy + share * rise),
            plain=plain,
        )

    # As a sum of terms that are not negative. The first of them is a difference all the same, and
    # known to rounding only: very near the minimum the distributions at theta alone do better.
    mixture = mixed(share)
    divergence = jnp.maximum(loss - mixture.entropy - dot(mixture.gradient, theta), 0)
    noise = 8 * jnp.finfo(loss.dtype).eps * loss
    averaged = divergence + noise + distance(mixture.gradient)
    is_plain = plain <= averaged
    gap = jnp.where(bounded, jnp.minimum(plain, averaged), decrement)
    return gap, mixed(jnp.where(is_plain, 1, share))
