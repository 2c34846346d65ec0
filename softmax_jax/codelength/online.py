r"""Online codelength: how many bits labels take if the model is learned while they are sent.

Sender and receiver have the features. The labels go in blocks: the first at log2 q bits each, and
each later one by the model that both have learned from the labels before it (Rissanen 1984, Dawid
1984). What is sent is the labels and nothing else, so the codelength pays for the model, too: it is
the minimum description length of Voita and Titov (2020), by which features that need much data or
a complex model are worse than those that need little, at one and the same accuracy in the end.

Two ways to learn: `refit` fits a model to its certified optimum before each block, and `stream`
takes a single pass of minibatches, each coded before it is learned from.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from softmax_jax import solvers, training
from softmax_jax._annotations import AnyArray, Array, Float, Integer, NDArray
from softmax_jax.checks import (
    as_array,
    as_real,
    checked_count,
    checked_features,
    dense_rows,
    exceeds_jax,
    per_feature,
)
from softmax_jax.data import Data, blocks
from softmax_jax.data.dataset import stored_features
from softmax_jax.data.host_targets import checked_labels
from softmax_jax.data.types import for_stored
from softmax_jax.information import NATS_PER_BIT
from softmax_jax.model import Params
from softmax_jax.normalizer import log_softmax

# What the doors take by default.
TOL = 1e-2
PRECISION = 1.0
BATCH_SIZE = 32
# Of Voita and Titov (2020), in percent of the examples.
PERCENT = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25, 50, 100)


class Codelength(NamedTuple):
    """Bits to send the labels of the first examples, for growing numbers of them."""

    seen: Integer[NDArray, " blocks"]
    """``[points]``: the number of examples; the last one is all."""
    bits: Float[NDArray, " blocks"]
    """``[points]``, of all labels so far."""
    uniform: float
    """``n log2 q`` in bits, for all labels without a model."""

    @property
    def total(self) -> float:
        """Bits for all labels."""
        return float(self.bits[-1])

    @property
    def compression(self) -> float:
        """Ratio of the uniform code to this one."""
        return self.uniform / self.total if self.total else math.inf


def block_ends(n: int, percent: Sequence[float] | NDArray = PERCENT) -> list[int]:
    """Returns the number of examples sent after each block: rising, the last one n.

    Args:
      n: the number of examples.
      percent: of n, rising to 100; those that round to no further example are left out.

    Raises:
      ValueError: if they do not rise to 100, or there are no examples.

    Example:
      >>> block_ends(1000)
      [1, 2, 4, 8, 16, 32, 63, 125, 250, 500, 1000]
      >>> block_ends(50, percent=[10, 50, 100])
      [5, 25, 50]
    """
    percent, n = tuple(percent), checked_count(n, "n", at_least=0)
    rising = all(a < b for a, b in itertools.pairwise((0, *percent)))
    if n < 1 or not percent or percent[-1] != 100 or not rising:
        raise ValueError(f"percent: {percent} of {n} examples; expected to rise to 100")
    return sorted({max(math.ceil(n * p / 100 - 1e-9), 1) for p in percent})


def refit(
    x: AnyArray,
    labels: AnyArray,
    *,
    num_classes: int,
    ends: Sequence[int] | None = None,
    precision: float = PRECISION,
    scale: AnyArray | None = None,
    shift: AnyArray | None = None,
    tol: float = TOL,
    callback: Callable[[int], None] | None = None,
) -> Codelength:
    r"""Returns the codelength with a model fitted to its certified optimum before each block.

    Each is the most probable model under the prior ``W ~ Normal(0, 1 / precision)``: after n labels
    l2 is ``precision / n``. To a label it gives the probability

    .. math:: (1 - \epsilon) P(y) + \epsilon / q, \qquad \epsilon = \frac{q / 2}{n + q / 2},

    half a label of each class seen beforehand, as in the estimator of Krichevsky and Trofimov
    (1981): a class that was not met yet costs some bits and not infinitely many.

    Args:
      x: ``[n, d]`` features, dense or SciPy sparse, in the order in which their labels are sent;
        shuffle them first.
      labels: class ids ``[n]``.
      num_classes: q.
      ends: of the blocks; by default `block_ends`.
      precision: of the prior on the weights, for features ``x * scale + shift``.
      scale: the model sees ``x * scale + shift``; scalar or ``[d]``.
      shift: scalar or ``[d]``.
      tol: relative gap to the optimum, see `solvers.fit`.
      callback: called after each block with the number of labels sent.

    Raises:
      ValueError: on shapes that do not fit, class ids out of range, ``ends`` that do not rise to n,
        or as `solvers.fit`.
      RuntimeError: if an optimum could not be certified, as where labels are told apart by
        features of 1e10, for which a precision of 1 is next to none.

    Example:
      >>> x, labels = np.arange(40.0)[::-1, None] % 8, np.arange(40)[::-1] % 8 // 4
      >>> code = refit(x, labels, num_classes=2, ends=[10, 20, 40])
      >>> code.uniform, code.total < code.uniform
      (40.0, True)
    """
    x, num_classes = checked_features(x), checked_count(num_classes, "num_classes")
    n = x.shape[0]
    labels = checked_labels(labels, n, num_classes)
    ends = block_ends(n) if ends is None else _checked_ends(ends, n)
    if not 0 < precision < math.inf:
        raise ValueError(f"precision: {precision}; expected a positive number")
    bits = [ends[0] * math.log2(num_classes)]
    for seen, end in itertools.pairwise(ends):
        params = _fitted(x, labels, seen, num_classes, precision, scale, shift, tol)
        stored = for_stored(params, scale, shift)
        bits.append(_bits(stored, x[seen:end], labels[seen:end], seen))
        if callback is not None:
            callback(end)
    return Codelength(np.array(ends), np.cumsum(bits), n * math.log2(num_classes))


def _checked_ends(ends: Sequence[int], n: int) -> list[int]:
    ends = [checked_count(end, "ends", 0) for end in ends]
    if not ends or ends[0] < 1 or ends[-1] != n or (np.diff(ends) < 1).any():
        raise ValueError(f"ends: {ends} of blocks of {n} examples; expected to rise to {n}")
    return ends


def _fitted(
    x: AnyArray,
    labels: np.ndarray,
    seen: int,
    num_classes: int,
    precision: float,
    scale: AnyArray,
    shift: AnyArray,
    tol: float,
) -> Params:
    if (labels[:seen] == labels[0]).all():
        # There is nothing to tell apart, and this class is all that the model knows.
        b = np.where(np.arange(num_classes) == labels[0], 0, -np.inf)
        return Params(np.zeros((x.shape[1], num_classes)), b)
    # Labels without weight are not looked at, and fits to all parts share one compiled program.
    solution = solvers.fit(
        x,
        labels,
        l2=precision / seen,
        sample_weight=(np.arange(len(labels)) < seen).astype(np.float64),
        num_classes=num_classes,
        scale=scale,
        shift=shift,
        tol=tol,
    )
    if solution.status != solvers.Status.CERTIFIED:
        raise RuntimeError(
            f"the model of the first {seen:,} labels is not certified to be within {tol:g} of its "
            f"optimum: {solution.reason}; where features are large, a precision of "
            f"{precision:g} is next to none: give a scale that brings them to about 1, or a larger "
            "precision"
        )
    return solution.params


def _bits(params: Params, x: AnyArray, labels: np.ndarray, seen: int) -> float:
    """Returns the bits of labels by a model of those ``seen``, mixed with a uniform guess."""
    q = params.b.size
    unknown = q / 2 / (seen + q / 2)
    mixed = (1 - unknown) * _likelihoods(params, x, labels) + unknown / q
    return -float(np.sum(np.log2(mixed)))


def _likelihoods(params: Params, x: AnyArray, labels: np.ndarray) -> np.ndarray:
    """Returns ``P(y_i)`` of each row in float64, for features as they are stored: ``[n]``."""
    found = []
    for at in blocks.slices(len(labels), blocks.rows_within(max(params.w.shape))):
        block = dense_rows(x, at).astype(np.float64)
        log_p = log_softmax(block @ params.w + params.b)
        found.append(np.exp(np.take_along_axis(log_p, labels[at, None], axis=1)[:, 0]))
    return np.concatenate(found)


@jax.transfer_guard("allow")
def stream(
    x: AnyArray,
    labels: AnyArray,
    *,
    num_classes: int,
    optimizer: optax.GradientTransformation,
    batch_size: int = BATCH_SIZE,
    key: jax.Array | None = None,
    scale: AnyArray | None = None,
    shift: AnyArray | None = None,
    learning_rate: float = 1.0,
    l2: float = 0.0,
) -> Codelength:
    """Returns the codelength of one epoch of `training.make_epoch`, from parameters of zero.

    Each minibatch is coded by the parameters before its step, so the first one takes log2 q bits a
    label. The epoch is one program: it costs no more than training does.

    Args:
      x: ``[n, d]`` features; not sparse.
      labels: class ids ``[n]``.
      num_classes: q.
      optimizer: see `training.init`, as are ``learning_rate`` and ``l2``.
      batch_size: labels that are sent between two steps.
      key: of the order in which they are; by default ``jax.random.key(0)``.
      scale: the model sees ``x * scale + shift``; scalar or ``[d]``.
      shift: scalar or ``[d]``.
      learning_rate: a factor on the updates.
      l2: on the mean loss of a minibatch.

    Raises:
      ValueError: on shapes that do not fit, class ids out of range, or a feature of which float32,
        in which training works, loses digits; see `data.from_arrays`.
      FloatingPointError: if training diverges.

    Example:
      >>> x, labels = np.arange(64.0)[:, None] % 2, np.arange(64) % 2
      >>> code = stream(
      ...     x, labels, num_classes=2, optimizer=optax.sgd(0.5), batch_size=16, shift=-0.5
      ... )
      >>> code.seen.tolist(), code.total < code.uniform
      ([16, 32, 48, 64], True)
    """
    x = checked_features(as_array(x, "x"))
    if exceeds_jax(x.dtype):
        x = stored_features(x, "x")
    num_classes = checked_count(num_classes, "num_classes")
    labels = checked_labels(labels, len(x), num_classes)
    if scale is not None:
        scale = per_feature(scale, 1.0, x.shape[1], "scale")
    if shift is not None:
        shift = per_feature(shift, 0.0, x.shape[1], "shift")
    zero = Params(jnp.zeros((x.shape[1], num_classes)), jnp.zeros(num_classes))
    state = training.init(zero, optimizer, key=key, learning_rate=learning_rate, l2=l2)
    epoch = training.make_epoch(optimizer, batch_size=batch_size)
    data = Data(as_real(x, "x"), as_real(labels, "labels"), scale=scale, shift=shift)
    state, steps = epoch(state, data)
    if (step := int(state.diverged)) >= 0:
        raise FloatingPointError(
            f"training diverged at step {step}: try a third of the learning rate {learning_rate:g}"
        )
    loss, weight = (np.asarray(a, np.float64) for a in (steps.loss, steps.weight))
    return Codelength(
        seen=np.cumsum(weight).astype(int),
        bits=np.cumsum(loss * weight) / NATS_PER_BIT,
        uniform=len(x) * math.log2(num_classes),
    )


@jax.transfer_guard("allow")
def control_labels(key: Array, labels: AnyArray) -> Integer[NDArray, " n"]:
    """Returns the same labels in another order, which features tell nothing about: ``[n]``.

    The control task of Hewitt and Liang (2019), for inputs that do not repeat. By how much its
    codelength is above that of the labels themselves is their selectivity: what the features tell,
    less what the model is able to learn by heart.

    Example:
      >>> control = control_labels(jax.random.key(0), [0, 0, 1, 1, 2])
      >>> sorted(control.tolist())  # each label as often as before
      [0, 0, 1, 1, 2]
    """
    labels = np.asarray(as_array(labels, "labels"))
    return labels[np.asarray(jax.random.permutation(key, len(labels)))]
