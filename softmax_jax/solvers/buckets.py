"""Shapes rounded up, so that problems of nearly one size share compiled programs.

A program takes about a second to compile, which is as much as some thousand steps on a small
problem. So loops over folds, numbers of rows, features or classes, as in learning curves and
recursive elimination, meet few shapes: rows and classes are added that have no weight, and features
that are zero.
"""

from typing import NamedTuple

from softmax_jax.solvers import cost

_FEWEST_ROWS = 64


class Shape(NamedTuple):
    """Sizes of a problem."""

    rows: int
    features: int
    classes: int


def rounded(n: int, d: int, q: int, *, classes_may_grow: bool) -> Shape:
    """Rounds a shape up: to powers of four or two while it stays small, else the rows alone.

    Shapes on which Newton's method is fast come first, before those on which gradients are.

    Example:
      >>> rounded(150, 13, 3, classes_may_grow=True)
      Shape(rows=256, features=16, classes=4)
      >>> rounded(1797, 64, 10, classes_may_grow=True)
      Shape(rows=1920, features=64, classes=10)
    """
    for cost_of in (_newton_step, _gradient_step):
        for base in (4, 2):
            classes = _power(base, q) if classes_may_grow else q
            shape = Shape(max(_power(base, n), _FEWEST_ROWS), _power(base, max(d, 4)), classes)
            if cost_of(shape) <= cost.SMALL_STEP:
                return shape
    return Shape(rounded_up(n), d, q)


def rounded_up(n: int) -> int:
    """Rounds up by an eighth at most.

    Example:
      >>> rounded_up(1797)
      1920
    """
    step = 2 ** max(n.bit_length() - 4, 0)
    return -(-n // step) * step


def _newton_step(shape: Shape) -> float:
    rows, features, classes = shape
    return cost.LOGIT * rows * classes + cost.inverse_hessian(rows, (1 + features) * classes)


def _gradient_step(shape: Shape) -> float:
    rows, features, classes = shape
    return cost.step(rows, rows * features, classes)


def _power(base: int, size: int) -> int:
    """Returns the least power of ``base`` from ``size`` on."""
    power = 1
    while power < size:
        power *= base
    return power
