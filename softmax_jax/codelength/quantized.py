"""Models whose logits are exact: features and weights rounded to multiples of powers of two.

The powers, of each feature its own, are such that no sum in the product reaches 2^53. A product of
integers in float64 is then exact, in whatever order it is summed.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from softmax_jax._annotations import AnyArray
from softmax_jax.checks import as_array, checked_features, is_sparse
from softmax_jax.codelength.integer_softmax import FRACTION, frequencies
from softmax_jax.data.blocks import rows_within, slices
from softmax_jax.data.types import for_stored
from softmax_jax.model import Params

LOG2_E = 1.4426950408889634
"""Bits in a nat."""
MOST_CLASSES = 2**22
"""Largest q, a quarter of what frequencies sum to."""
FEATURE_BITS = 22
"""Bits of the largest number of a feature, where features are not integers."""
INTEGER_BITS = 31
"""Bits of integer features, which are exact below 2 to this power."""
# Of a label, by which rounded features may change its length.
_MOST_BITS_LOST = 2.0**-6


class Quantized(NamedTuple):
    """A model whose logits are exact: ``x 2^a`` and ``w 2^(power - a)`` are integers.

    The power ``a`` of each feature is known from its largest number, to whoever has the features.
    """

    w: np.ndarray
    """``[d, q]`` float64 that are integers."""
    b: np.ndarray
    """``[q]`` int64."""
    impossible: np.ndarray
    """``[q]``: whether the bias is -inf."""
    powers: np.ndarray
    """``[d]``: a."""
    power: int
    """Power of two that logits in bits are multiplied by."""

    @property
    def num_classes(self) -> int:
        """Number of classes, q."""
        return self.w.shape[1]

    @classmethod
    def of(
        cls, params: Params, x: AnyArray, scale: AnyArray, shift: AnyArray, power: int | None = None
    ) -> "tuple[Quantized, AnyArray]":
        """Returns the model with that power, or the largest possible one, and the checked features.

        Raises:
          ValueError: on shapes that do not fit, NaN and infinities, logits beyond 2^30, floats so
            far from zero that their rounding moves logits by 1/64 bit, or more than `MOST_CLASSES`
            classes.
        """
        x = checked_features(x)
        w, b = (np.asarray(as_array(a, "params")).astype(np.float64) for a in params)
        if w.ndim != 2 or x.shape[1] != w.shape[0] or b.shape != w.shape[1:]:
            raise ValueError(
                f"x of shape {x.shape}, w of shape {w.shape} and b of shape {b.shape}; expected "
                "[n, d], [d, q] and [q]"
            )
        if not 1 <= w.shape[1] <= MOST_CLASSES:
            raise ValueError(f"{w.shape[1]:,} classes; expected 1 to {MOST_CLASSES:,}")
        impossible = np.isneginf(b)
        given = Params(w, np.where(impossible, 0, b))
        # Each of these is one rounded operation, the same everywhere.
        w, b = (np.asarray(a) * LOG2_E for a in for_stored(given, scale, shift))
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            raise ValueError("w or b has NaN or infinities, where only b may have -inf")
        largest = _largest(x)
        exponents = np.frexp(largest)[1]
        powers = np.minimum(INTEGER_BITS - exponents, 0)
        reach = largest @ np.max(np.abs(w), axis=1, initial=0)
        if x.dtype.kind not in "bui":
            powers = FEATURE_BITS - exponents
        bound = reach + np.max(np.abs(b))
        if power is None:
            power = min(50 - math.frexp(float(bound))[1], 50)
        if not np.ldexp(bound, power) < 2.0**51 or not FRACTION <= power <= 50:
            raise ValueError("the logits reach beyond 2^30: is a scale of the features missing?")
        lost = reach * 2.0**-FEATURE_BITS
        if x.dtype.kind not in "bui" and lost > _MOST_BITS_LOST:
            raise ValueError(
                f"x: features as large as {largest.max():.3g} lose so many digits here that logits "
                f"move by {lost:.2g} bits: subtract the means of the features, as the solvers' "
                "`centered` parameters take them"
            )
        w = np.rint(np.ldexp(w, power - powers[:, None]))
        b = np.rint(np.ldexp(b, power)).astype(np.int64)
        return cls(w, b, impossible, powers, power), x

    def blocks(self, n: int, rows: int | None) -> Iterator[slice]:
        """Yields slices of n rows."""
        return slices(n, rows_within(max(self.w.shape)) if rows is None else rows)

    def frequencies(self, x: np.ndarray) -> np.ndarray:
        """Returns the integer frequencies of a block of rows."""
        whole = np.rint(np.ldexp(x.astype(np.float64), self.powers))
        exact = (whole @ self.w).astype(np.int64) + self.b[None]
        shift = self.power - FRACTION
        logits = (exact + (1 << shift >> 1)) >> shift
        logits[:, self.impossible] = logits.min(axis=1, keepdims=True) - (64 << FRACTION)
        return frequencies(logits)


def _largest(x: AnyArray) -> np.ndarray:
    """Returns the largest number of each feature in size: ``[d]`` float64."""
    if is_sparse(x):
        largest = np.zeros(x.shape[1])
        np.maximum.at(largest, x.indices, np.abs(x.data.astype(np.float64)))
        return largest
    # Not the largest of np.abs, which of the int8 -128 is -128.
    low, high = (end(x, axis=0, initial=0).astype(np.float64) for end in (np.min, np.max))
    return np.maximum(-low, high)
