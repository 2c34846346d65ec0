"""Penalties and limits of single weights, as users give them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from softmax_jax._annotations import AnyArray


class Single(NamedTuple):
    """Arrays over weights; None where nothing was given.

    As users give them, numbers, ``[d]`` or ``[d, q]``. Once `checked`, ``[1, d]`` or ``[q, d]`` in
    float64.
    """

    penalty_factor: AnyArray = None
    """Factors on the strengths, 0 or more; inf leaves a weight out."""
    lower: AnyArray = None
    """Least weights, 0 or less."""
    upper: AnyArray = None
    """Largest weights, 0 or more."""

    @property
    def is_given(self) -> bool:
        """True if there is any."""
        return any(a is not None for a in self)

    @property
    def has_limits(self) -> bool:
        """True if there are limits."""
        return not (self.lower is None and self.upper is None)

    @property
    def has_zeros(self) -> bool:
        """True if some weights are not penalised."""
        return self.penalty_factor is not None and bool(
            (np.asarray(self.penalty_factor) == 0).any()
        )

    def refuse_groups(self, grouped: bool) -> None:
        """Refuses what makes no sense where weights are penalised in groups.

        Raises:
          ValueError: if there are limits then, or factors for each class.
        """
        if grouped and self.has_limits:
            raise ValueError("lower, upper: groups have no limits; give grouped=False")
        if grouped and np.ndim(self.penalty_factor) == 2:
            raise ValueError("penalty_factor: of groups, a number a feature is expected, [d]")

    def checked(self, d: int, q: int) -> "Single":
        """Checks the arrays, and turns factors of inf into limits.

        Raises:
          ValueError: if shapes or signs are not what they should be, or all weights are left out.
        """
        factor = _checked(self.penalty_factor, "penalty_factor", d, q, 0, np.inf)
        lower = _checked(self.lower, "lower", d, q, -np.inf, 0)
        upper = _checked(self.upper, "upper", d, q, 0, np.inf)
        if factor is None or not np.isinf(factor).any():
            return Single(factor, lower, upper)
        left_out = np.isinf(factor)
        if left_out.all():
            raise ValueError("penalty_factor: all are inf, which leaves no weight")
        if factor.shape[0] > 1 or lower is not None or upper is not None:
            # Features that are left out altogether go for good, others by their limits.
            lower = np.where(left_out, 0, -np.inf if lower is None else lower)
            upper = np.where(left_out, 0, np.inf if upper is None else upper)
        return Single(factor, lower, upper)

    def left_out(self, d: int) -> np.ndarray:
        """Returns ``[d]``: which features have no weight at all."""
        if self.penalty_factor is None:
            return np.zeros(d, bool)
        return np.isinf(self.penalty_factor).all(axis=0)

    def finite(self) -> "Single":
        """Returns it with factors of 1 for what limits leave out, or none if all are 1."""
        factor = self.penalty_factor
        if factor is not None:
            factor = np.where(np.isinf(factor), 1, factor)
            factor = None if (factor == 1).all() else factor
        return self._replace(penalty_factor=factor)

    def of_classes(self, classes: np.ndarray) -> "Single":
        """Returns those of these classes."""
        return self._of_each(lambda a, _: a if len(a) == 1 else a[classes])

    def of_features(self, features: np.ndarray) -> "Single":
        """Returns those of these features."""
        return self._of_each(lambda a, _: a[:, features])

    def with_padding(self, *, features: int, classes: int) -> "Single":
        """Returns them with more features and classes, which are penalised, and have no limits."""

        def padded(a, by_default):
            more = ((0, classes if len(a) > 1 else 0), (0, features))
            return np.pad(a, more, constant_values=by_default)

        return self._of_each(padded)

    def _of_each(self, changed: Callable[[np.ndarray, float], np.ndarray]) -> "Single":
        defaults = (1.0, -np.inf, np.inf)
        return Single(
            *(None if a is None else changed(a, b) for a, b in zip(self, defaults, strict=True))
        )


def _checked(
    given: AnyArray, name: str, d: int, q: int, least: float, most: float
) -> np.ndarray | None:
    if given is None:
        return None
    a: AnyArray = np.asarray(given, np.float64)
    if a.shape not in ((), (d,), (d, 1), (d, q)):
        raise ValueError(
            f"{name}: shape {a.shape}; expected [{d}], a number a feature, or [{d}, {q}], one for "
            "each class, too"
        )
    wrong = ~((a >= least) & (a <= most))
    if wrong.any():
        at = tuple(map(int, np.argwhere(wrong)[0]))
        word = "more" if least == 0 else "less"
        raise ValueError(f"{name}: {a[at]} at {list(at)}; expected numbers, 0 or {word}")
    classes = a.shape[1] if a.ndim == 2 else 1
    rows = np.array(np.broadcast_to(a.reshape(-1, classes), (d, classes)).T)
    return None if name != "penalty_factor" and np.isinf(rows).all() else rows
