"""What the solvers return, and tell while they work."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from softmax_jax.model import Params


class History(NamedTuple):
    """A problem's way to its solution: a row each time that was looked at it."""

    seconds: np.ndarray
    """Since the call, compilation included."""
    passes: np.ndarray
    objective: np.ndarray
    """In working precision; where ``rows`` is less than all, of those rows."""
    gap: np.ndarray
    """The estimate of the duality gap in working precision, absolute."""
    rows: np.ndarray
    """The share of the rows that was worked on."""


class Progress(NamedTuple):
    """What a callback is told."""

    seconds: float
    solved: int
    problems: int
    passes: float
    objective: float
    """Of the problem furthest from its solution, among those that are worked on."""
    relative_gap: float


class Solution(NamedTuple):
    """Of one problem; from `fit_path`, arrays with the axes of the grid in front."""

    params: Params
    """``w: [d, q]``, ``b: [q]``: NumPy float64, which is what the certificate is about."""
    centered: Params
    """The same for ``x - mean``: what float32 can evaluate however far features are from zero."""
    mean: Any
    """``[d]``: of the features."""
    objective: Any
    """F(w, b) in nats, in float64."""
    gap: Any
    """In nats: the minimum is not below ``objective - gap``; the objective, if nothing is known."""
    relative_gap: Any
    """``gap / max(objective, m)``, with a millionth m of the loss without features."""
    slope: Any
    """The largest entry of the gradient of F, in features of size 1; NaN where a gap is known."""
    status: Any
    """``certified``, ``not certified`` or ``infimum at infinity``."""
    reason: Any
    """Why it is not certified; empty if it is."""
    passes: Any
    """Passes over all rows that have weight: forward and back."""
    history: Any
    l2: Any = None
    """The strengths of the penalty."""
    l1: Any = None


def stacked(solved: Mapping[tuple[int, ...], Solution], shape: tuple[int, ...]) -> Solution:
    """One solution of arrays with ``shape`` in front; histories are an array of objects."""
    if shape == ():
        return solved[()]
    order = [solved[at] for at in np.ndindex(shape)]

    def stack(values):
        values = np.array(values)
        return values.reshape(*shape, *values.shape[1:])

    histories = np.empty(shape, object)
    for at in np.ndindex(shape):
        histories[at] = solved[at].history

    def params(values):
        values = list(values)
        return Params(w=stack([p.w for p in values]), b=stack([p.b for p in values]))

    return Solution(
        params=params(solution.params for solution in order),
        centered=params(solution.centered for solution in order),
        history=histories,
        **{
            name: stack([getattr(solution, name) for solution in order])
            for name in (
                "mean",
                "objective",
                "gap",
                "relative_gap",
                "slope",
                "status",
                "reason",
                "passes",
            )
        },
    )
