"""Folds of cross-validation: which rows are trained on, and which are held out."""

import warnings
from collections.abc import Iterable

import numpy as np

from softmax_jax._annotations import AnyArray, NDArray
from softmax_jax.data.host_targets import (
    are_ids,
    expected,
    mass_of_classes,
    most_probable,
    refuse_single_class,
)


def splits(
    folds: int | np.integer | NDArray | Iterable[tuple[AnyArray, AnyArray]],
    y: np.ndarray,
    weights: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``[folds, n]`` weights of the rows in training, and in scores.

    Args:
      folds: see `cross_validate`.
      y: class ids ``[n]`` or probabilities ``[n, q]``.
      weights: ``[n]``.
      seed: of the shuffle, where ``folds`` is a number.

    Raises:
      ValueError: if there are fewer than two folds, or one trains on, or holds out, no weight.
    """
    if isinstance(folds, int | np.integer):
        folds = dealt_out(int(folds), y, weights, seed)
    if hasattr(folds, "dtype"):
        ids = np.asarray(folds)
        if ids.shape != weights.shape or ids.dtype.kind not in "iu":
            raise ValueError(
                f"folds: array of shape {ids.shape} and type {ids.dtype}; expected integers of "
                f"shape {weights.shape}, the fold of each row"
            )
        test = ids == np.unique(ids[ids >= 0])[:, None]
        train = ~test
    else:
        train, test = _counts(folds, len(y))
    if len(test) < 2:
        raise ValueError(
            f"folds: {len(test)}; expected 2 or more, as a standard error needs as many"
        )
    train, test = train * weights, test * weights
    for what, part in (("to train on", train), ("held out", test)):
        empty = np.flatnonzero(part.sum(axis=1) == 0)
        if empty.size:
            raise ValueError(f"folds: no row of positive weight is {what} in fold {empty[0]}")
    return train, test


def dealt_out(folds: int, y: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """Deals rows out to folds, each class as evenly as it goes.

    Returns:
      ``[n]``: the fold of each row, and -1 for those that are never held out.
    """
    rows = np.flatnonzero(weights > 0)
    if not 2 <= folds <= len(rows):
        raise ValueError(
            f"folds: {folds} for {len(rows)} rows of positive weight; expected at least 2, and no "
            "more than rows"
        )
    rows = np.random.default_rng(seed).permutation(rows)
    strata = most_probable(y)[rows]
    ids = np.full(len(y), -1)
    ids[rows[np.argsort(strata, kind="stable")]] = np.arange(len(rows)) % folds
    if are_ids(y):
        ids[rows[np.bincount(strata)[strata] == 1]] = -1
    return ids


def _counts(pairs: Iterable[tuple[AnyArray, AnyArray]], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts how often each pair of index arrays (or masks) names a row, on each side."""

    def count(rows: AnyArray) -> np.ndarray:
        rows = np.asarray(rows)
        return np.bincount(np.arange(n)[rows if rows.size else []], minlength=n)

    try:
        counts = [[count(train), count(test)] for train, test in pairs]
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"folds: expected a number, an integer array [{n}], or pairs of indices of the {n} "
            f"rows, (training, held out): {error}"
        ) from error
    train, test = np.reshape(np.array(counts, np.int64), (-1, 2, n)).swapaxes(0, 1)
    both = np.argwhere((train > 0) & (test > 0))
    if both.size:
        raise ValueError(
            f"folds: fold {both[0, 0]} both trains on row {both[0, 1]} and holds it out"
        )
    return train, test


def refuse_a_single_class(train: np.ndarray, y: np.ndarray, q: int) -> None:
    """Raises a ValueError if a fold trains on rows of one class alone."""
    for fold, weights in enumerate(train):
        refuse_single_class(
            mass_of_classes(y, weights, q),
            f"folds: where fold {fold} trains",
            "give fewer folds, or others",
        )


def drop_what_cannot_be_scored(train: np.ndarray, test: np.ndarray, y: np.ndarray, q: int) -> None:
    """Sets to zero, in ``test``, the weight of rows whose class has none in ``train``."""
    absent = np.stack([mass_of_classes(y, weights, q) == 0 for weights in train])
    if not absent.any():
        return
    hopeless = expected(absent, y) > 0
    hopeless &= test > 0
    if not hopeless.any():
        return
    fold, row = np.argwhere(hopeless)[0]
    own = np.argmax(absent[fold] & (mass_of_classes(y[[row]], None, q) > 0))
    warnings.warn(
        f"folds: {hopeless.sum()} held-out rows are of a class of which their fold has none to "
        f"train on (the first: row {row} of class {own}, fold {fold}); their loss is infinite "
        "whatever the strength, and they take no part in the scores",
        stacklevel=3,
    )
    test[hopeless] = 0
    empty = np.flatnonzero(test.sum(axis=1) == 0)
    if empty.size:
        raise ValueError(
            f"folds: all rows that fold {empty[0]} holds out are of classes that it has no rows to "
            "train on, which leaves nothing to score"
        )
