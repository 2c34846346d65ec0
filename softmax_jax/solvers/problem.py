r"""Many softmax regressions on the same rows, and what one pass over those rows is made of.

The ``k`` problems differ in their strengths and, at choice, in their example weights. Their
parameters are stacked, with the bias as a column in front of the weights: ``theta: [k, q, 1 + d]``.
One product :math:`X [W_1 \dots W_k]` then serves them all; it is bound by arithmetic where that of
a single problem is bound by memory.

Rows lie in blocks, as they are stored (uint8, bfloat16, floats), and become features in the type
that the work is done in one block at a time, in units of their own: see `units`. Sparse rows stay
sparse: a product with features is one with their entries, see `sparse`. Rows are shuffled, so that
the first blocks are a fair sample of all: `Problem.active` says how many count. Logits are
``[blocks, k, q, rows]``, rows last: a product of row-major :math:`W^\top` and X yields them so,
backwards it takes them so, and a vector unit finds many rows where there are few classes.

A loop over these blocks fills and reads arrays of all problems, of as many blocks as count in this
call; `softmax_jax.data.blocks` cuts rows of one problem into blocks, all of which count.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from softmax_jax._annotations import Array, Bool, Float, Integer, NDArray, Num, Shaped
from softmax_jax.penalty import Penalty
from softmax_jax.solvers.sparse import SparseRows
from softmax_jax.solvers.streamed import StreamedRows

NEVER = -1e30
"""Bias of a class of no weight, whose probability is then exactly zero."""


def counts(bias_or_logits: Float[Array | NDArray, "*shape"]) -> Bool[Array | NDArray, "*shape"]:
    """Returns which biases, or logits, are those of classes that have weight.

    Logits of the others are `NEVER`, to which features, steps and rounding add something. Half of
    that number is far from these, and from all other logits.
    """
    return bias_or_logits > NEVER / 2


@runtime_checkable
class Strengths(Protocol):
    """Anything with the strengths of a penalty."""

    @property
    def l2(self) -> float:
        """Strength of the squared part."""

    @property
    def l1(self) -> float:
        """Strength of the absolute part."""


class Problem(NamedTuple):
    """Rows and penalties of ``k`` problems."""

    x: Num[Array, "blocks rows d"] | SparseRows | StreamedRows
    """Numbers as stored; features are ``(x - center) * scale``."""
    center: Float[Array | NDArray, " d"]
    """Stored numbers where features are zero, in float64."""
    scale: Float[Array | NDArray, " d"]
    """Factors, in float64."""
    intercept: Float[Array | NDArray, ""]
    """1, or 0 where the bias is held at zero."""
    targets: Integer[Array, "blocks rows"] | Float[Array, "blocks q rows"]
    """Class ids, or probabilities."""
    weights: Float[Array, "blocks m rows"]
    """Weights of the one weighting that all problems share, or of ``m = k``; padding has zeros."""
    offset: Float[Array, "blocks q rows"] | None
    """Terms added to the logits."""
    penalty: Penalty
    """Strengths ``[k]``, and factors ``[d]`` that turn weights into those of the users' features.

    It is in the type that the work is done in.
    """
    active: Integer[Array | NDArray, ""]
    """Number of blocks that count, from the first."""

    @property
    def dtype(self) -> jnp.dtype:
        """Type that the work is done in."""
        return self.factor.dtype

    @property
    def factor(self) -> Float[Array | NDArray, " d"]:
        """Factors of the penalty."""
        assert self.penalty.factor is not None
        return self.penalty.factor

    @property
    def l2(self) -> Float[Array, " k"]:
        """Strengths of the squared part."""
        return jnp.asarray(self.penalty.l2)

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return self.targets.shape[-1]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return self.targets.shape[0]

    @property
    def d(self) -> int:
        """Number of features."""
        return self.factor.shape[0]


def cast(problem: Problem, dtype: DTypeLike) -> Problem:
    """Converts a problem for work in another type; the rows stay as they are stored."""
    soft = jnp.issubdtype(problem.targets.dtype, jnp.floating)
    return problem._replace(
        intercept=problem.intercept.astype(dtype),
        targets=problem.targets.astype(dtype) if soft else problem.targets,
        weights=problem.weights.astype(dtype),
        offset=None if problem.offset is None else problem.offset.astype(dtype),
        penalty=jax.tree.map(lambda a: a.astype(dtype), problem.penalty),
    )


def with_strengths(
    problem: Problem, jobs: Sequence[Strengths], dtype: jax.typing.DTypeLike
) -> Problem:
    """Returns the problem with the strengths of ``jobs``, one for each slot."""
    l2, l1 = (np.array([getattr(job, name) for job in jobs], dtype) for name in ("l2", "l1"))
    return problem._replace(penalty=dataclasses.replace(problem.penalty, l2=l2, l1=l1))


def within_limits(
    problem: Problem, theta: Float[Array, "k q columns"]
) -> Float[Array, "k q columns"]:
    """Returns parameters whose weights are within the limits of the penalty."""
    if not problem.penalty.has_limits:
        return theta
    return theta.at[..., 1:].set(problem.penalty.clipped(theta[..., 1:]))


Carry = TypeVar("Carry")


def over_blocks(
    problem: Problem, step: Callable[[Integer[Array, ""], Carry], Carry], start: Carry
) -> Carry:
    """Returns the carry after ``step(j, carry)`` for each active block ``j``."""
    return jax.lax.fori_loop(0, problem.active, step, start)


def with_blocks(
    problem: Problem,
    function: Callable[..., Shaped[Array, "..."]],
    array: Shaped[Array, "blocks ..."],
    *others: Shaped[Array, "blocks ..."],
) -> Shaped[Array, "blocks ..."]:
    """Returns ``array`` with each active block replaced by ``function`` of it and those of others.

    So that a sample of the rows takes no longer for the arrays of all of them.
    """

    def replace(j, array):
        return put(array, function(*(block_of(a, j) for a in (array, *others))), j)

    return over_blocks(problem, replace, array)


def block_of(array: Shaped[Array, "blocks ..."], j: Integer[Array, ""]) -> Shaped[Array, "..."]:
    """Returns ``array[j]``."""
    return jax.lax.dynamic_index_in_dim(array, j, keepdims=False)


def put(
    array: Shaped[Array, "blocks ..."], block: Shaped[Array, "..."], j: Integer[Array, ""]
) -> Shaped[Array, "blocks ..."]:
    """Returns ``array`` with ``array[j]`` replaced."""
    return jax.lax.dynamic_update_index_in_dim(array, block, j, 0)
