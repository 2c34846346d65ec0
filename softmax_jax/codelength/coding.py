r"""Labels as a file whose size is the loss: compressed by a model, and decoded exactly.

An entropy coder spends ``-log2 P(y)`` bits on a label of probability ``P(y)``, so the file has the
size of the negative log-likelihood in bits (Shannon 1948), here through the range coder of
constriction (Bamler 2022). Who decodes must have the very same probabilities, and floating point
does not give them: a product summed in another order, on another device or for a batch of another
size, differs in its last bits, and what is decoded after that is noise. So all is done in integers:

* Features and weights are rounded to multiples of powers of two, of each feature its own, such that
  no sum in the product reaches 2^53. A product of integers in float64 is then exact, in whatever
  order it is summed.
* From logits in multiples of 2^-16 bit, ``2^-gap`` is taken from two integer tables, which are
  made by integer square roots, and scaled to frequencies of 1 or more that sum to 2^24.

The frequencies are the probabilities of the model to about 1e-4, and a floor of 2^-24 for each
class: no label costs more than 24 bits, and of q classes that do not occur the others pay for
q / 2^24 of the probability, which is little up to some ten thousand. The file begins with a header,
which has a digest of all of it, so that damage is detected, and one of the labels, so that a model
or features other than those that it was made with are, too.
"""

import functools
import hashlib
import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import constriction
import numpy as np

from softmax_jax._annotations import AnyArray, Integer, NDArray
from softmax_jax.checks import as_array, checked_features, dense_rows
from softmax_jax.data.blocks import rows_within, slices
from softmax_jax.data.targets import checked_labels
from softmax_jax.data.types import for_stored
from softmax_jax.model import Params

PRECISION = 24
"""Frequencies sum to 2 to this power."""
FRACTION = 16
"""Logits are multiples of 2 to minus this power, in bits."""
LOG2_E = 1.4426950408889634
MOST_CLASSES = 2**22
FEATURE_BITS = 22
"""Bits of the largest number of a feature, where features are not integers."""
INTEGER_BITS = 31
"""Bits of integer features, which are exact below 2 to this power."""

MAGIC = b"SMXL"
VERSION = 1
# Magic, version, the recipe (precision, fraction, bits of features, power of two of the product),
# d, q, count; then the digests of the labels, and of all else.
_HEADER = struct.Struct("<4sBBBBhIIQ")
_DIGEST = 8
HEADER_BYTES = _HEADER.size + 2 * _DIGEST
# Bits of the entries of the tables, and of what they are computed with.
_ENTRY, _WORK = 30, 96


def compress(
    params: Params,
    x: AnyArray,
    labels: AnyArray,
    *,
    scale: AnyArray | None = None,
    shift: AnyArray | None = None,
    block_size: int | None = None,
) -> bytes:
    """Returns the labels as the content of a file.

    Args:
      params: ``w: [d, q]``, ``b: [q]``; a bias of ``-inf`` marks a class that should not occur.
      x: ``[n, d]`` features as they are stored, dense or SciPy sparse; integers below 2^31 are
        taken exactly, larger ones to 2^-31 and floats to 2^-22 of the largest one of their feature.
      labels: class ids ``[n]``.
      scale: the model sees ``x * scale + shift``; a number or ``[d]``; None means 1.
      shift: a number or ``[d]``; None means 0.
      block_size: rows at a time, of no influence on the content; by default such that there are
        `data.blocks.NUMBERS` features or logits.

    Returns:
      `HEADER_BYTES` bytes of header, and about `codelength` / 8 of labels.

    Raises:
      ValueError: on shapes that do not fit, class ids out of range, NaN and infinities, logits
        beyond 2^30, floats so far from zero that their rounding moves logits by 1/64 bit, or more
        than `MOST_CLASSES` classes.

    Example:
      >>> params = Params(np.array([[-1.0, 1.0]]), np.zeros(2))
      >>> x, labels = np.array([[-2.0], [1.0], [3.0]]), [0, 1, 1]
      >>> content = compress(params, x, labels)
      >>> decompress(content, params, x).tolist()
      [0, 1, 1]
    """
    model, x = _Quantized.of(params, x, scale, shift)
    labels = _checked_labels(labels, x.shape[0], model.num_classes)
    encoder = constriction.stream.queue.RangeEncoder()
    for rows in model.blocks(x.shape[0], block_size):
        _encode(encoder, labels[rows], model.frequencies(dense_rows(x, rows)))
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        PRECISION,
        FRACTION,
        FEATURE_BITS,
        model.power,
        *model.w.shape,
        len(labels),
    )
    content = head + _digest(labels.astype("<i4").tobytes())
    payload = encoder.get_compressed().astype("<u4").tobytes()
    return content + _digest(content + payload) + payload


def decompress(
    content: bytes,
    params: Params,
    x: AnyArray,
    *,
    scale: AnyArray | None = None,
    shift: AnyArray | None = None,
    block_size: int | None = None,
) -> np.ndarray:
    """Returns the labels that `compress` was given: int32 ``[n]``.

    Args:
      content: of the file.
      params: those that it was made with, to the last bit, as are ``x``, ``scale`` and ``shift``.
      x: ``[n, d]``.
      scale: see `compress`.
      shift: see `compress`.
      block_size: rows at a time, of no influence on the labels.

    Raises:
      ValueError: if the content is damaged or no file of labels, or was made with other
        parameters or features. Labels are never returned that were not put in.

    Example:
      >>> params = Params(np.array([[-1.0, 1.0]]), np.zeros(2))
      >>> x = np.array([[-2.0], [1.0], [3.0]])
      >>> decompress(compress(params, x, [0, 1, 1]), params, x)
      array([0, 1, 1], dtype=int32)
    """
    content = bytes(content)
    if len(content) < HEADER_BYTES or content[: len(MAGIC)] != MAGIC:
        raise ValueError(
            f"{len(content)} bytes that are no file of labels: they begin with "
            f"{content[:4]!r}, not with {MAGIC!r} and a header of {HEADER_BYTES} bytes"
        )
    _, version, *recipe, power, d, q, count = _HEADER.unpack_from(content)
    head, labels_digest = content[: _HEADER.size], content[_HEADER.size :][:_DIGEST]
    digest, payload = content[HEADER_BYTES - _DIGEST : HEADER_BYTES], content[HEADER_BYTES:]
    if _digest(head + labels_digest + payload) != digest:
        raise ValueError(
            f"the file of labels is damaged: the digest of its {len(content)} bytes is not that in "
            "its header; fetch it again"
        )
    ours = [PRECISION, FRACTION, FEATURE_BITS]
    if version != VERSION or recipe != ours:
        raise ValueError(
            f"the file of labels is of version {version}, with {recipe} bits; this is version "
            f"{VERSION}, with {ours}"
        )
    n = x.shape[0] if hasattr(x, "shape") else len(x)
    if np.shape(params.w) != (d, q) or n != count:
        raise ValueError(
            f"the file has {count:,} labels, coded by w of shape {(d, q)}; got {n:,} rows and "
            f"w of shape {np.shape(params.w)}"
        )
    model, x = _Quantized.of(params, x, scale, shift, power)
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(payload, "<u4").astype("u4"))
    labels = np.zeros(count, np.int32)
    try:
        for rows in model.blocks(count, block_size):
            labels[rows] = _decode(decoder, model.frequencies(dense_rows(x, rows)))
    except AssertionError:  # what is left is no code at all; the digest will say so
        pass
    if _digest(labels.astype("<i4").tobytes()) != labels_digest:
        raise ValueError(
            "the labels were coded with other parameters, features or scale than these: what is "
            "decoded is not what was coded"
        )
    return labels


def codelength(
    params: Params,
    x: AnyArray,
    labels: AnyArray,
    *,
    scale: AnyArray | None = None,
    shift: AnyArray | None = None,
    block_size: int | None = None,
) -> float:
    """Returns ``-Σ_i log2 P(y_i)`` in bits, of the frequencies that `compress` codes with.

    Raises:
      ValueError: as `compress`.

    Example:
      >>> params = Params(np.zeros((1, 4)), np.zeros(4))  # takes all four classes for equal
      >>> codelength(params, np.ones((3, 1)), [0, 1, 3])
      6.0
    """
    model, x = _Quantized.of(params, x, scale, shift)
    labels = _checked_labels(labels, x.shape[0], model.num_classes)
    bits = [PRECISION * float(len(labels))]
    for rows in model.blocks(x.shape[0], block_size):
        table = model.frequencies(dense_rows(x, rows))
        bits.append(-np.log2(table[np.arange(len(table)), labels[rows]]).sum())
    return math.fsum(bits)


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
    high, low = _exp2_table(8), _exp2_table(16)
    fraction = gap & (2**FRACTION - 1)
    u = (high[fraction >> 8] * low[fraction & 255]) >> _ENTRY
    u >>= np.minimum(gap >> FRACTION, 63)
    free = 2**PRECISION - logits.shape[1]
    table = 1 + u * free // u.sum(axis=1, keepdims=True)
    rows = np.arange(len(table))
    table[rows, np.argmin(gap, axis=1)] += 2**PRECISION - table.sum(axis=1)
    return table


@functools.cache
def _exp2_table(bits: int) -> np.ndarray:
    """``2^30 · 2^(-i / 2^bits)`` for i from 0 to 255, rounded: ``[256]`` int64.

    By products of the square roots of square roots of one half.
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


# Of a label, by which rounded features may change its length.
_MOST_BITS_LOST = 2.0**-6


class _Quantized(NamedTuple):
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
        return self.w.shape[1]

    @classmethod
    def of(
        cls, params: Params, x: AnyArray, scale: AnyArray, shift: AnyArray, power: int | None = None
    ) -> "tuple[_Quantized, Any]":
        """The model with that power, or the largest possible one; and the features, checked."""
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
        given: Any = (w, np.where(impossible, 0, b))
        # Each of these is one rounded operation, the same everywhere.
        w, b = (np.asarray(a) * LOG2_E for a in for_stored(Params(*given), scale, shift))
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


def _largest(x: Any) -> np.ndarray:
    """Returns the largest number of each feature in size: ``[d]`` float64."""
    if hasattr(x, "tocsr"):
        largest = np.zeros(x.shape[1])
        np.maximum.at(largest, x.indices, np.abs(x.data.astype(np.float64)))
        return largest
    # Not the largest of np.abs, which of the int8 -128 is -128.
    low, high = (end(x, axis=0, initial=0).astype(np.float64) for end in (np.min, np.max))
    return np.maximum(-low, high)


def _checked_labels(labels: AnyArray, rows: int, num_classes: int) -> np.ndarray:
    labels = np.asarray(as_array(labels, "labels"))
    if rows == 0 and labels.shape == (0,):
        return labels.astype(np.int32)
    return checked_labels(labels, rows, num_classes)


# constriction makes frequencies of probabilities, one for each class and then their share of the
# rest. Given integers that sum to the rest, the share is one and every step of that is exact.
_FAMILY = constriction.stream.model.Categorical(perfect=False)


def _encode(encoder: Any, labels: np.ndarray, table: np.ndarray) -> None:
    if table.shape[1] > 1:
        encoder.encode(labels, _FAMILY, (table - 1).astype(np.float64))


def _decode(decoder: Any, table: np.ndarray) -> np.ndarray:
    if table.shape[1] == 1:
        return np.zeros(len(table), np.int32)
    return decoder.decode(_FAMILY, (table - 1).astype(np.float64))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
