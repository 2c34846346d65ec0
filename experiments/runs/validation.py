"""The validation split: what is held out of the training data, and the step that does best on it.

The test data have no say in it: they are for the model that was chosen.
"""

import re
from typing import NamedTuple

import numpy as np

from softmax_jax import data
from softmax_jax.data import Data
from softmax_jax.model import Params


class Best(NamedTuple):
    """The best step so far of each of ``m`` members, by validation loss; part of checkpoints."""

    params: Params
    """``w: [m, d, q]``, ``b: [m, q]``."""
    loss: np.ndarray
    """``[m]`` in nats; inf before the first evaluation."""
    step: np.ndarray
    """``[m]`` int32; 0 before the first evaluation."""
    waited: np.ndarray
    """``[m]`` int32: evaluations since then."""
    stopped: np.ndarray
    """``[m]`` int32: the step at which patience ran out, or -1."""


def parse(text: str) -> tuple[float, str]:
    """Number and unit, ``%`` or ``rows``.

    Raises:
      ValueError: says what there is to choose.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|rows?|examples?|)\s*", text)
    if match is None:
        raise ValueError(f"{text!r}: give a share like '10%', or a number of rows like '500 rows'")
    return float(match[1]), "%" if match[2] == "%" else "rows"


def hold_out(dataset: data.Dataset, text: str, *, seed: int) -> tuple[data.Dataset, Data]:
    """Splits the training data at random.

    Args:
      dataset: of which the test data stay as they are.
      text: how much to hold out, see `parse`.
      seed: of the choice of rows.

    Returns:
      The data set with fewer training examples, and those held out; both in their old order.

    Raises:
      ValueError: if nothing would be held out, or nothing to tell apart would be left.
    """
    n = len(dataset.train.x)
    number, unit = parse(text)
    rows = round(min(n * number / 100 if unit == "%" else number, n))
    if not 1 <= rows < n:
        raise ValueError(f"config.data.validation={text!r} is {rows:,} of {n:,} training examples")
    held = np.zeros(n, bool)
    held[np.random.default_rng(seed).permutation(n)[:rows]] = True
    x, targets = dataset.train[:2]
    train, split = (
        dataset.train._replace(x=x[mask], targets=targets[mask]) for mask in (~held, held)
    )
    if train.targets.ndim == 1 and np.all(train.targets == train.targets[0]):
        raise ValueError(f"config.data.validation={text!r} leaves a single class to train on")
    return dataset._replace(train=train), split


def begin(params: Params, members: int) -> Best:
    """Before the first evaluation; ``params`` as in a state, of one member or stacked."""
    w, b = _stacked(params, members)
    return Best(
        Params(np.zeros_like(w), np.zeros_like(b)),
        loss=np.full(members, np.inf),
        step=np.zeros(members, np.int32),
        waited=np.zeros(members, np.int32),
        stopped=np.full(members, -1, np.int32),
    )


def update(best: Best, params: Params, loss: np.ndarray, *, step: int, patience: int) -> Best:
    """After an evaluation.

    Args:
      best: before it.
      params: of all members.
      loss: ``[m]`` on the validation data, inf or NaN where there is none; those of members that
        have stopped count no more.
      step: of the evaluation.
      patience: evaluations in a row without a lower loss, after which a member stops; 0: never.
    """
    going = best.stopped < 0
    better = going & (loss < best.loss)
    waited = np.where(better, 0, best.waited + going).astype(np.int32)
    out = going & (waited >= patience) if patience else np.zeros_like(going)
    w, b = (
        np.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
        for new, old in zip(_stacked(params, len(loss)), best.params, strict=True)
    )
    return Best(
        Params(w, b),
        loss=np.where(better, loss, best.loss),
        step=np.where(better, step, best.step).astype(np.int32),
        waited=waited,
        stopped=np.where(out, step, best.stopped).astype(np.int32),
    )


def _stacked(params: Params, members: int) -> tuple[np.ndarray, np.ndarray]:
    w, b = (np.asarray(a) for a in params)
    return w.reshape(members, *w.shape[-2:]), b.reshape(members, b.shape[-1])
