r"""The orthant of the present signs: where the objective is smooth, and its slope there.

Limits of the weights make it a box; zero is a limit like any other.

Groups are as smooth away from zero: with the unit vector :math:`\sigma = W_j / \|W_j\|` of a
feature in the place of its signs, :math:`\tau \|W_j\|` has the gradient :math:`\tau \sigma` and
the second derivative :math:`\tau (1 - \sigma \sigma^\top) / \|W_j\|`. Their orthant is the half
space of :math:`\sigma`. Those that leave zero do so along :math:`-G_j`, and may turn in the next
step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from softmax_jax._annotations import Array, Bool, Float
from softmax_jax.solvers.methods.common import common_set_apart, common_within_limits
from softmax_jax.solvers.passes import per_problem
from softmax_jax.solvers.problem import Problem, counts


class Groups(NamedTuple):
    """Penalties on the norms of features."""

    are_penalised: Bool[Array, "k 1 columns"]
    """Columns whose norm is penalised."""
    curvature: Float[Array, "k 1 columns"]
    """Second derivatives across the unit vectors; 0 at zero."""
    enter: Bool[Array, "k 1 columns"]
    """Groups that leave zero, along their unit vectors only."""

    def are_inside(
        self, unit: Float[Array, "k q columns"], theta: Float[Array, "k q columns"]
    ) -> Bool[Array, "k 1 columns"]:
        """Returns which parameters are on the side of the unit vectors."""
        return ~self.are_penalised | (_over_classes(unit * theta) > 0)


def _over_classes(a: Float[Array, "k q columns"]) -> Float[Array, "k 1 columns"]:
    return jnp.sum(a, axis=1, keepdims=True)


class Corner(NamedTuple):
    """The orthant that ``k`` problems are in, and the slope of the objective there."""

    theta: Float[Array, "k q columns"]
    sign: Float[Array, "k q columns"]
    """Signs, or the unit vectors of groups; 0 for what is not penalised by its size."""
    moves: Bool[Array, "k q columns"]
    """Parameters that are in it: those that are not zero, or would not stay so."""
    low: Float[Array, "k q columns"]
    """Least parameters in it: 0 or a limit, or -inf."""
    high: Float[Array, "k q columns"]
    """Largest ones, likewise."""
    slope: Float[Array, "k q columns"]
    """Gradient of the objective for these signs."""
    ridge: Float[Array, "k q_or_1 columns"]
    groups: Groups | None

    def reached(self, d: Float[Array, "k q columns"]) -> Float[Array, "k q columns"]:
        """Returns the displacement to where ``d`` leads, or to the nearest point of the orthant."""
        there = self.theta + d
        if self.groups is not None:
            return jnp.where(self.groups.are_inside(self.sign, there), d, -self.theta)
        d = jnp.where(there > self.low, d, self.low - self.theta)
        return jnp.where(there < self.high, d, self.high - self.theta)

    def is_inside(self, d: Float[Array, "k q columns"]) -> Bool[Array, "k q columns"]:
        """Returns which parameters ``d`` leaves off the sides of the orthant."""
        there = self.theta + d
        if self.groups is not None:
            return jnp.broadcast_to(self.groups.are_inside(self.sign, there), d.shape)
        return (there > self.low) & (there < self.high)

    def projected(
        self, v: Float[Array, "k q columns"], moves: Bool[Array, "k q columns"]
    ) -> Float[Array, "k q columns"]:
        """Returns the part of ``v`` that is in directions in which parameters may go."""
        if self.groups is not None:
            v = jnp.where(self.groups.enter, self.sign * _over_classes(self.sign * v), v)
        return jnp.where(moves, v, 0)

    def hessian_product(self, v: Float[Array, "k q columns"]) -> Float[Array, "k q columns"]:
        """Returns the Hessian of the penalty times ``v``."""
        product = jnp.broadcast_to(self.ridge, v.shape) * v
        if self.groups is None:
            return product
        aside = v - self.sign * _over_classes(self.sign * v)
        return product + jnp.broadcast_to(self.groups.curvature, v.shape) * aside

    def divided(
        self,
        groups: Groups,
        r: Float[Array, "k q columns"],
        of_loss: Float[Array, "k q columns"],
    ) -> Float[Array, "k q columns"]:
        r"""Returns ``r`` over the Hessian, where that of the loss is the diagonal ``of_loss``.

        With the sum A of that diagonal, :math:`\rho` and :math:`\beta = \tau / \|W_j\|` it is
        :math:`(A - \beta \sigma \sigma^\top)^{-1}`, by the formula of Sherman and Morrison.
        """
        curvature = jnp.broadcast_to(groups.curvature, r.shape)
        a = of_loss + jnp.broadcast_to(self.ridge, r.shape) + curvature
        along = self.sign / a
        rest = 1 - groups.curvature * _over_classes(self.sign * along)
        share = groups.curvature * _over_classes(along * r) / jnp.where(rest > 0, rest, 1)
        return r / a + along * share

    @property
    def diagonal(self) -> Float[Array, "k q columns"]:
        """Diagonal of the Hessian of the penalty."""
        ridge = jnp.broadcast_to(self.ridge, self.theta.shape)
        if self.groups is None:
            return ridge
        return ridge + jnp.broadcast_to(self.groups.curvature, ridge.shape) * (1 - self.sign**2)


def of_columns(
    problem: Problem, of_weights: Float[Array, "k q_or_1 _"], of_bias: float = 0.0
) -> Float[Array, "k q_or_1 columns"]:
    """Returns numbers for all columns of the parameters, given those of the weights."""
    k, classes, _ = of_weights.shape
    of_weights = jnp.broadcast_to(of_weights, (k, classes, problem.d))
    bias = jnp.full((k, classes, 1), of_bias, of_weights.dtype)
    return jnp.concatenate([bias, of_weights], axis=2)


def without_common_part(
    problem: Problem, theta: Float[Array, "k q columns"]
) -> Float[Array, "k q columns"]:
    """Returns parameters with the best number added to the weights of each feature."""
    penalty = problem.penalty
    has_weight = jnp.broadcast_to(counts(theta[..., :1]), theta.shape)
    if penalty.grouped:
        number = jnp.sum(has_weight, axis=1, keepdims=True)
        common = _over_classes(jnp.where(has_weight, theta, 0)) / jnp.maximum(number, 1)
        return jnp.where(has_weight, theta - common, theta)
    ridge, threshold = (of_columns(problem, a) for a in (penalty.ridge, penalty.threshold))
    if penalty.is_same_for_classes:
        return jax.vmap(common_set_apart)(theta, has_weight, threshold[:, 0], ridge[:, 0])
    threshold, ridge = (jnp.broadcast_to(a, theta.shape) for a in (threshold, ridge))
    lower, upper = _limits(problem, theta)
    moved = jax.vmap(common_within_limits)(theta, has_weight, threshold, ridge, lower, upper)
    return jnp.where(has_weight, moved, theta)


def corner_of(
    problem: Problem,
    theta: Float[Array, "k q columns"],
    gradient: Float[Array, "k q columns"],
    share: Float[Array, " k"],
) -> Corner:
    r"""Returns the orthant at ``theta``, where the mean loss has this gradient.

    Weights leave zero if :math:`|G| - \tau` is more than a ``share`` of the largest such excess:
    others would often come back once these have moved.
    """
    penalty = problem.penalty
    if penalty.grouped:
        return _corner_of_groups(problem, theta, gradient, share)
    ridge = of_columns(problem, penalty.ridge)
    threshold = jnp.broadcast_to(of_columns(problem, penalty.threshold), theta.shape)
    lower, upper = _limits(problem, theta)
    g = gradient + jnp.broadcast_to(ridge, theta.shape) * theta
    is_free = threshold == 0
    may_enter = (theta == 0) & ~is_free & jnp.where(g > 0, lower < 0, upper > 0)
    excess = jnp.where(may_enter, jnp.abs(g) - (1 + _roundings(theta)) * threshold, 0)
    enters = (excess > 0) & (
        excess > per_problem(share) * jnp.max(excess, axis=(1, 2), keepdims=True)
    )
    sign = jnp.where(is_free, 0, jnp.where(enters, -jnp.sign(g), jnp.sign(theta)))
    slope = g + threshold * sign
    low = jnp.where(sign > 0, jnp.maximum(lower, 0), lower)
    high = jnp.where(sign < 0, jnp.minimum(upper, 0), upper)
    is_held = ((theta <= low) & (slope > 0)) | ((theta >= high) & (slope < 0))
    # The bias of a class of no weight stays where it is, and one that is held at zero does.
    moves = ((theta != 0) | enters | is_free) & ~is_held & counts(theta)
    moves = moves.at[..., 0].set(moves[..., 0] & (problem.intercept > 0))
    return Corner(theta, sign, moves, low, high, slope, ridge, None)


def _corner_of_groups(
    problem: Problem,
    theta: Float[Array, "k q columns"],
    gradient: Float[Array, "k q columns"],
    share: Float[Array, " k"],
) -> Corner:
    ridge = of_columns(problem, problem.penalty.ridge)
    threshold = of_columns(problem, problem.penalty.threshold)
    has_weight = jnp.broadcast_to(counts(theta[..., :1]), theta.shape)
    g = jnp.where(has_weight, gradient + jnp.broadcast_to(ridge, theta.shape) * theta, 0)
    are_penalised = threshold > 0
    w = jnp.where(are_penalised, theta, 0)
    size, steepness = (jnp.sqrt(_over_classes(a * a)) for a in (w, g))
    excess = steepness - (1 + _roundings(theta)) * threshold
    excess = jnp.where(are_penalised & (size == 0), excess, 0)
    enter = (excess > 0) & (
        excess > per_problem(share) * jnp.max(excess, axis=(1, 2), keepdims=True)
    )
    away = w / jnp.where(size > 0, size, 1)
    unit = jnp.where(enter, -g / jnp.where(enter, steepness, 1), away)
    moves = jnp.broadcast_to((size > 0) | enter | ~are_penalised, theta.shape) & has_weight
    moves = moves.at[..., 0].set(moves[..., 0] & (problem.intercept > 0))
    curvature = jnp.where(size > 0, threshold / jnp.where(size > 0, size, 1), 0)
    slope = g + jnp.broadcast_to(threshold, theta.shape) * unit
    none = jnp.full_like(theta, jnp.inf)
    groups = Groups(are_penalised, curvature, enter)
    return Corner(theta, unit, moves, -none, none, slope, ridge, groups)


def _roundings(theta: Float[Array, "k q columns"]) -> float:
    """Returns the share of a threshold by which gradients may exceed it by rounding alone."""
    return 64 * float(jnp.finfo(theta.dtype).eps)


def _limits(
    problem: Problem, theta: Float[Array, "k q columns"]
) -> tuple[Float[Array, "k q columns"], Float[Array, "k q columns"]]:
    """Returns the limits of all parameters, infinite where there are none."""

    def of(limit, none):
        if limit is None:
            return jnp.full_like(theta, none)
        of_weights = jnp.broadcast_to(limit, (len(theta), *limit.shape))
        return jnp.broadcast_to(of_columns(problem, of_weights, none), theta.shape)

    return of(problem.penalty.lower, -jnp.inf), of(problem.penalty.upper, jnp.inf)
