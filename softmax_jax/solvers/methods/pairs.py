r"""The pairs of moves and changes of the gradient of L-BFGS, and what they make of a gradient.

The two-loop recursion (Nocedal and Wright, Numerical Optimization, algorithm 7.4), for several
problems at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, ArrayLike, Bool, Float
from softmax_jax.solvers.passes import dot, per_problem


class Pairs(NamedTuple):
    """The last pairs of ``k`` problems, latest first."""

    moves: Float[Array, "memory k q columns"]
    changes: Float[Array, "memory k q columns"]
    """Changes of the gradient that the moves made."""
    inverse_product: Float[Array, "memory k"]
    """1 / (move . change), the rho of the algorithm, and 0 where there is no pair."""


def no_pairs(memory: int, theta: Float[Array, "k q columns"]) -> Pairs:
    """Returns room for ``memory`` pairs."""
    history = jnp.zeros((memory, *theta.shape), theta.dtype)
    return Pairs(history, history, jnp.zeros((memory, len(theta)), theta.dtype))


def without_slot(pairs: Pairs, slot: ArrayLike) -> Pairs:
    """Forgets the pairs of one problem."""
    return Pairs(*(array.at[:, slot].set(0) for array in pairs))


def with_pair(
    pairs: Pairs,
    move: Float[Array, "k q columns"],
    change: Float[Array, "k q columns"],
    along: Float[Array, " k"],
    kept: Bool[Array, " k"],
) -> Pairs:
    """Takes in the latest pairs, but for problems whose pairs are ``kept`` as they are.

    Args:
      pairs: the earlier ones.
      move: the last steps.
      change: those of the gradient.
      along: their inner products; where they are not positive, the pair counts as none.
      kept: problems that made no step.
    """
    usable = along > 0
    inverse_product = jnp.where(usable, 1 / jnp.where(usable, along, 1), 0)

    def pushed(new, memory):
        stays = jnp.reshape(kept, (1, -1) + (1,) * (memory.ndim - 2))
        return jnp.where(stays, memory, jnp.concatenate([new[None], memory[:-1]]))

    return Pairs(*map(pushed, (move, change, inverse_product), pairs))


def two_loops(
    pairs: Pairs,
    gradient: Float[Array, "k q columns"],
    precondition: Callable[[Float[Array, "k q columns"]], Float[Array, "k q columns"]],
) -> Float[Array, "k q columns"]:
    """Returns the gradient times the approximate inverse Hessian that the pairs make of another."""

    def back(v, pair):
        move, change, inverse_product = pair
        a = inverse_product * dot(move, v)
        return v - per_problem(a) * change, a

    def forth(v, pair_and_a):
        (move, change, inverse_product), a = pair_and_a
        return v + per_problem(a - inverse_product * dot(change, v)) * move, None

    v, a = jax.lax.scan(back, gradient, pairs)
    v, _ = jax.lax.scan(forth, precondition(v), (pairs, a), reverse=True)
    return v
