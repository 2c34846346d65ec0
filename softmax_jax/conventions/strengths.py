"""Strengths, and the forms that several packages have for them."""

import math
from typing import NamedTuple

from softmax_jax._annotations import Scalar
from softmax_jax.checks import checked_strength


class Strengths(NamedTuple):
    """Strengths of this library's penalty ``l2/2 |W|² + l1 |W|_1``."""

    l2: float
    """Strength of ``|W|²/2``."""
    l1: float
    """Strength of ``|W|_1``."""


def from_inverse(C: Scalar, l1_ratio: Scalar, total: float) -> Strengths:
    """Returns the strengths of ``R_ρ / (C total)``."""
    inverse = float(C)
    if not inverse > 0:
        raise ValueError(
            f"C must be positive, got {inverse}: it divides the penalty, inf is no penalty"
        )
    return elastic_net(1 / inverse / total, checked_ratio("l1_ratio", l1_ratio))


def to_inverse(l2: Scalar, l1: Scalar, total: float) -> dict[str, float]:
    """Returns ``C`` and ``l1_ratio``."""
    strength, ratio = strength_and_ratio(l2, l1)
    product = strength * total
    return {"C": 1 / product if product else math.inf, "l1_ratio": ratio}


def elastic_net(strength: float, ratio: float) -> Strengths:
    """Returns the strengths of ``strength R_ρ``."""
    if math.isinf(strength):
        raise ValueError("the strength of the penalty is beyond the range of floats: weaken it")
    return Strengths(l2=(1 - ratio) * strength, l1=ratio * strength)


def strength_and_ratio(l2: Scalar, l1: Scalar) -> tuple[float, float]:
    """Returns ``l2 + l1`` and the part of ``l1`` in it, 0 where there is no penalty."""
    l2, l1 = checked_strength(l2, "l2"), checked_strength(l1, "l1")
    strength = l2 + l1
    return strength, l1 / strength if strength else 0.0


def checked_ratio(name: str, value: Scalar) -> float:
    """Returns a share as a float; refuses one outside of [0, 1]."""
    value = float(value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}: 0 is all l2 and 1 all l1")
    return value


def checked_total(name: str, value: Scalar) -> float:
    """Returns a sum of weights as a float; refuses one that is not positive and finite."""
    value = float(value)
    if not 0 < value < math.inf:
        raise ValueError(
            f"{name} must be positive and finite, got {value}: with no weights, total_weight and "
            "num_examples are the number of rows and mean_weight is 1"
        )
    return value
