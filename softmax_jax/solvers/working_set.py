r"""Features that a part of a path is solved on: those that have weights, or may soon have some.

A feature whose weights are zero stays so while :math:`|G_j| \le \tau_j`. As a path goes on, those
with the largest :math:`|G_j| / \tau_j` are the next to leave zero. So the problem is solved on as
many of them as there are features with weights already, and the certificate, which is one for all
features, tells from which strength on that was not enough.
"""

import math

import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import Array, Float, Integer, NDArray
from softmax_jax.solvers import passes
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.methods.method import Setup
from softmax_jax.solvers.problem import Problem, Strengths, with_strengths
from softmax_jax.solvers.sparse import SparseRows
from softmax_jax.solvers.streamed import StreamedRows

_FEWEST = 64


def chosen(
    setup: Setup, strength: Strengths, theta: Float[NDArray, "k q columns"], least: int
) -> Integer[NDArray, " c"] | None:
    """Returns the features to solve on, or None where these would be more than half of all.

    Args:
      setup: the problem.
      strength: the strength that comes next.
      theta: solutions so far.
      least: number of features at least.
    """
    d = setup.working.d
    has_columns = not isinstance(setup.working.x, SparseRows | StreamedRows)
    if not has_columns or 2 * max(_FEWEST, least) > d:
        return None
    has_weight = np.any(np.asarray(theta)[..., 1:] != 0, axis=(0, 1))
    number = max(_FEWEST, least, 2 * int(has_weight.sum()))
    # Powers of four, as programs are compiled for each.
    number = 4 ** math.ceil(math.log(number, 4))
    if 2 * number > d:
        return None
    problem = with_strengths(setup.working, [strength] * len(theta), setup.working.dtype)
    urgency = np.array(_urgency(problem, theta))
    urgency[has_weight] = np.inf
    return np.sort(np.argpartition(-urgency, number)[:number])


@compiled
def _urgency(problem: Problem, theta: Float[Array, "k q columns"]) -> Float[Array, " d"]:
    """Returns the largest ``|G| / threshold`` of each feature: a pass."""
    _, probabilities = passes.loss_and_probabilities(problem, passes.logits(problem, theta))
    g = passes.gradient(problem, probabilities)[..., 1:]
    sizes = problem.penalty.sizes(g)
    threshold = jnp.broadcast_to(problem.penalty.threshold, sizes.shape)
    # What is not penalised is always wanted.
    ratio = jnp.where(threshold > 0, sizes / jnp.where(threshold > 0, threshold, 1), jnp.inf)
    return jnp.max(ratio, axis=(0, 1))


@compiled
def restricted(problem: Problem, features: Integer[Array | NDArray, " c"]) -> Problem:
    """Returns the problem with these features alone."""
    assert not isinstance(problem.x, SparseRows | StreamedRows)
    return problem._replace(
        x=jnp.take(problem.x, features, axis=-1),
        center=jnp.asarray(problem.center)[features],
        scale=jnp.asarray(problem.scale)[features],
        penalty=problem.penalty.of_features(features),
    )
