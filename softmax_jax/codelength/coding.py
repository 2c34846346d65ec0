r"""Labels as a file whose size is the loss: compressed by a model, and decoded exactly.

An entropy coder spends ``-log2 P(y)`` bits on a label of probability ``P(y)``, so the file has the
size of the negative log-likelihood in bits (Shannon 1948), here through the range coder of
constriction (Bamler 2022). Who decodes must have the very same probabilities, and floating point
does not give them: a product summed in another order, on another device or for a batch of another
size, differs in its last bits, and what is decoded after that is noise. So all is done in integers:

* `quantized` rounds features and weights such that their product is exact, in whatever order it is
  summed.
* `integer_softmax` makes frequencies of the logits, which sum to 2^24, from tables of integers.

The frequencies are the probabilities of the model to about 1e-4, and a floor of 2^-24 for each
class: no label costs more than 24 bits, and of q classes that do not occur the others pay for
q / 2^24 of the probability, which is little up to some ten thousand. The file begins with a header,
which has a digest of all of it, so that damage is detected, and one of the labels, so that a model
or features other than those that it was made with are, too.
"""

import hashlib
import math
import struct
from typing import NamedTuple

import constriction
import numpy as np

from softmax_jax._annotations import AnyArray
from softmax_jax.checks import as_array, dense_rows
from softmax_jax.codelength.integer_softmax import FRACTION, PRECISION
from softmax_jax.codelength.integer_softmax import frequencies as frequencies
from softmax_jax.codelength.quantized import FEATURE_BITS, Quantized
from softmax_jax.codelength.quantized import MOST_CLASSES as MOST_CLASSES
from softmax_jax.data.host_targets import checked_labels
from softmax_jax.model import Params

MAGIC = b"SMXL"
VERSION = 1
# Magic, version, the recipe (precision, fraction, bits of features, power of two of the product),
# d, q, n; then the digests of the labels, and of all else.
_HEADER = struct.Struct("<4sBBBBhIIQ")
_DIGEST = 8
HEADER_BYTES = _HEADER.size + 2 * _DIGEST


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
    model, x = Quantized.of(params, x, scale, shift)
    labels = _checked_labels(labels, x.shape[0], model.num_classes)
    encoder = constriction.stream.queue.RangeEncoder()
    for rows in model.blocks(x.shape[0], block_size):
        _encode(encoder, labels[rows], model.frequencies(dense_rows(x, rows)))
    payload = encoder.get_compressed().astype("<u4").tobytes()
    return _File(model.power, model.w.shape, len(labels), _digest_of(labels), payload).pack()


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
    file = _File.unpack(bytes(content))
    n = x.shape[0] if hasattr(x, "shape") else len(x)
    if np.shape(params.w) != file.shape or n != file.n:
        raise ValueError(
            f"the file has {file.n:,} labels, coded by w of shape {file.shape}; got {n:,} rows "
            f"and w of shape {np.shape(params.w)}"
        )
    model, x = Quantized.of(params, x, scale, shift, file.power)
    words = np.frombuffer(file.payload, "<u4").astype("u4")
    decoder = constriction.stream.queue.RangeDecoder(words)
    labels = np.zeros(file.n, np.int32)
    try:
        for rows in model.blocks(file.n, block_size):
            labels[rows] = _decode(decoder, model.frequencies(dense_rows(x, rows)))
    except AssertionError:  # what is left is no code at all; the digest will say so
        pass
    if _digest_of(labels) != file.labels_digest:
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
    model, x = Quantized.of(params, x, scale, shift)
    labels = _checked_labels(labels, x.shape[0], model.num_classes)
    bits = [PRECISION * float(len(labels))]
    for rows in model.blocks(x.shape[0], block_size):
        table = model.frequencies(dense_rows(x, rows))
        bits.append(-np.log2(table[np.arange(len(table)), labels[rows]]).sum())
    return math.fsum(bits)


def _checked_labels(labels: AnyArray, rows: int, num_classes: int) -> np.ndarray:
    labels = np.asarray(as_array(labels, "labels"))
    if rows == 0 and labels.shape == (0,):
        return labels.astype(np.int32)
    return checked_labels(labels, rows, num_classes)


# constriction makes frequencies of probabilities, one for each class and then their share of the
# rest. Given integers that sum to the rest, the share is one and every step of that is exact.
_FAMILY = constriction.stream.model.Categorical(perfect=False)


def _encode(
    encoder: constriction.stream.queue.RangeEncoder, labels: np.ndarray, table: np.ndarray
) -> None:
    if table.shape[1] > 1:
        encoder.encode(labels, _FAMILY, (table - 1).astype(np.float64))


def _decode(decoder: constriction.stream.queue.RangeDecoder, table: np.ndarray) -> np.ndarray:
    if table.shape[1] == 1:
        return np.zeros(len(table), np.int32)
    return decoder.decode(_FAMILY, (table - 1).astype(np.float64))


class _File(NamedTuple):
    """Content of a file of labels: what its header has, and what the coder wrote."""

    power: int
    """Power of two of the product; see `Quantized`."""
    shape: tuple[int, ...]
    """``(d, q)``"""
    n: int
    """Number of labels."""
    labels_digest: bytes
    payload: bytes

    def pack(self) -> bytes:
        """Returns the bytes of the file."""
        recipe = (PRECISION, FRACTION, FEATURE_BITS)
        head = _HEADER.pack(MAGIC, VERSION, *recipe, self.power, *self.shape, self.n)
        content = head + self.labels_digest
        return content + _digest(content + self.payload) + self.payload

    @classmethod
    def unpack(cls, content: bytes) -> "_File":
        """Returns what `pack` was given.

        Raises:
          ValueError: if the content is damaged, no file of labels, or of another version.
        """
        if len(content) < HEADER_BYTES or content[: len(MAGIC)] != MAGIC:
            raise ValueError(
                f"{len(content)} bytes that are no file of labels: they begin with "
                f"{content[:4]!r}, not with {MAGIC!r} and a header of {HEADER_BYTES} bytes"
            )
        _, version, *recipe, power, d, q, n = _HEADER.unpack_from(content)
        head, labels_digest = content[: _HEADER.size], content[_HEADER.size :][:_DIGEST]
        digest, payload = content[HEADER_BYTES - _DIGEST : HEADER_BYTES], content[HEADER_BYTES:]
        if _digest(head + labels_digest + payload) != digest:
            raise ValueError(
                f"the file of labels is damaged: the digest of its {len(content)} bytes is not "
                "that in its header; fetch it again"
            )
        ours = [PRECISION, FRACTION, FEATURE_BITS]
        if version != VERSION or recipe != ours:
            raise ValueError(
                f"the file of labels is of version {version}, with {recipe} bits; this is version "
                f"{VERSION}, with {ours}"
            )
        return cls(power, (d, q), n, labels_digest, payload)


def _digest_of(labels: np.ndarray) -> bytes:
    return _digest(labels.astype("<i4").tobytes())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
