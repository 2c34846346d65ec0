"""Softmax in integers: frequencies for an entropy coder that are the same on every machine.

From logits in multiples of 2^-16 bit, ``2^-gap`` is taken from two integer tables, which are made
by integer square roots, and scaled to frequencies of 1 or more that sum to 2^24.
"""

import functools
import math

import numpy as np

from softmax_jax._annotations import Integer, NDArray

PRECISION = 24
"""Frequencies sum to 2 to this power."""
FRACTION = 16
"""Logits are multiples of 2 to minus this power, in bits."""

# Bits of the entries of the tables, and of what they are computed with.
_ENTRY, _WORK = 30, 96


def frequencies(logits: Integer[NDArray, "n q"]) -> Integer[NDArray, "n q"]:
    r"""Returns integer frequencies of softmax, in integer arithmetic only: ``[n, q]``.

    .. math:: f_j = 1 + \left\lfloor \frac{u_j (2^{24} - q)}{\sum_k u_k} \right\rfloor, \qquad
        u_j \approx 2^{30 - (\max_k z_k - z_j) / 2^{16}},

    and what is missing to 2^24 is added to the largest, the first of equal ones.

    Args:
      logits: ``[n, q]`` int64, in multiples of 2^-16 bit: ``log2(e) · 2^16`` for a nat.

    Example:
      >>> frequencies(np.array([[0, 0], [0, -(2**16)]])).tolist()  # the second differ by one bit
      [[8388608, 8388608], [11184811, 5592405]]
    """
    gap = np.max(logits, axis=1, keepdims=True) - logits
    high, low = exp2_table(8), exp2_table(16)
    fraction = gap & (2**FRACTION - 1)
    u = (high[fraction >> 8] * low[fraction & 255]) >> _ENTRY
    u >>= np.minimum(gap >> FRACTION, 63)
    free = 2**PRECISION - logits.shape[1]
    table = 1 + u * free // u.sum(axis=1, keepdims=True)
    rows = np.arange(len(table))
    table[rows, np.argmin(gap, axis=1)] += 2**PRECISION - table.sum(axis=1)
    return table


@functools.cache
def exp2_table(bits: int) -> np.ndarray:
    """Returns ``2^30 · 2^(-i / 2^bits)`` for i from 0 to 255, rounded: ``[256]`` int64.

    It is made of products of the square roots of square roots of one half.

    Example:
      >>> exp2_table(8)[[0, 128]].tolist()  # 1 and the root of one half
      [1073741824, 759250125]
    """
    roots = [1 << (_WORK - 1)]
    for _ in range(bits):
        roots.append(math.isqrt(roots[-1] << _WORK))
    table = []
    for i in range(256):
        value = 1 << _WORK
        for k in range(bits):
            if i >> k & 1:
                value = value * roots[bits - k] >> _WORK
        table.append((value + (1 << (_WORK - _ENTRY - 1))) >> (_WORK - _ENTRY))
    return np.array(table, np.int64)
