"""Results of the solvers, and their reports while they work."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from softmax_jax._annotations import Float, NDArray
from softmax_jax.model import Params
from softmax_jax.solvers.certificate import Certificate
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.jobs import Job, Verdict
from softmax_jax.solvers.units import Units, to_users
from softmax_jax.status import FAR_FROM_ZERO, Status

# Objectives below this share of the loss without features count as zero: a gap has to be small
# against that share, as none is small against nothing.
NEGLIGIBLE = 1e-6


class History(NamedTuple):
    """Progress of a problem to its solution: a row each time that the host looked at it."""

    seconds: Float[NDArray, " looks"]
    """Seconds since the call, compilation included."""
    passes: Float[NDArray, " looks"]
    """Passes over all rows."""
    objective: Float[NDArray, " looks"]
    """Objective in working precision; where ``rows`` is less than all, of those rows."""
    gap: Float[NDArray, " looks"]
    """Estimate of the duality gap in working precision, absolute."""
    rows: Float[NDArray, " looks"]
    """Share of the rows that was worked on."""


class Progress(NamedTuple):
    """Report to a callback."""

    seconds: float
    """Seconds since the call, compilation included."""
    solved: int
    """Number of problems that are solved."""
    problems: int
    """Number of problems in all."""
    passes: float
    """Passes over all rows, of the problem whose objective this is."""
    objective: float
    """Objective of the problem furthest from its solution, among those that are worked on."""
    relative_gap: float
    """Estimate of its duality gap, as a share of the objective."""


class Solution(NamedTuple):
    """Solution of one problem; from `fit_path`, arrays with the axes of the grid in front."""

    params: Params
    """``w: [d, q]``, ``b: [q]``: NumPy float64, which is what the certificate is about."""
    centered: Params
    """Parameters for ``x - mean``, for float32 to evaluate however far features are from zero."""
    mean: Float[NDArray, "*grid d"]
    """Means of the features."""
    objective: Any
    """F in nats, in float64, of `centered`; that of `params` is larger by rounding, up to `gap`."""
    gap: Any
    """Gap in nats: no minimum is below ``objective - gap``. `objective` where nothing is known."""
    relative_gap: Any
    """``gap / max(objective, m)``, with a millionth m of the loss without features."""
    slope: Any
    """Largest entry of the gradient of F, in features of size 1; NaN where a gap is known."""
    status: Any
    """`Status`: ``certified``, ``not certified`` or ``infimum at infinity``."""
    reason: Any
    """Reason why it is not certified; empty if it is."""
    passes: Any
    """Passes over all rows that have weight: forward and back."""
    history: Any
    """`History` of the problem."""
    l2: Any = None
    """Strength of the squared penalty."""
    l1: Any = None
    """Strength of the absolute penalty."""
    plan: Any = None
    """`Plan` of what was chosen for the problem, and why."""


def negligible(inputs: Inputs, weighting: int) -> float:
    """Returns the objective below which others count as zero."""
    return NEGLIGIBLE * float(inputs.baseline[weighting])


def solution_of(
    inputs: Inputs,
    units: Units,
    certificate: Certificate,
    job: Job,
    ended: Verdict,
    *,
    tol: float,
) -> Solution:
    """Returns the solution of a job, for the features and biases as users have them.

    Args:
      inputs: the rows.
      units: those of the certified parameters.
      certificate: of this job alone.
      job: the account of its progress.
      ended: how it ended.
      tol: relative gap up to which it is certified, with the rounding of the bias.
    """
    params, centered, error = to_users(
        units,
        np.asarray(certificate.theta[0], np.float64),
        ~inputs.absent[job.weighting],
        fit_intercept=bool(np.asarray(inputs.problem.intercept) > 0),
        centered=job.l1 == 0,
    )
    # The bias is at its optimum, where the loss is flat: what float64 cannot hold of it costs half
    # its square at most, as the second derivative is a variance under the predictions.
    value, gap = float(certificate.value[0]), float(certificate.gap[0])
    # Where nothing is known, the gap stays the objective.
    gap = gap + float(error) ** 2 / 2 if gap < value else value
    largest = max(value, negligible(inputs, job.weighting))
    if ended.status == Status.CERTIFIED and gap > tol * largest:
        ended = Verdict(Status.NOT_CERTIFIED, FAR_FROM_ZERO)
    columns = np.array(job.history, np.float64).reshape(-1, len(History._fields)).T
    return Solution(
        params=params,
        centered=centered,
        mean=units.mean,
        objective=value,
        gap=gap,
        relative_gap=gap / largest,
        slope=float(certificate.slope[0]),
        status=ended.status,
        reason=ended.reason,
        passes=job.passes,
        history=History(*columns),
    )


def stacked(solved: Mapping[tuple[int, ...], Solution], shape: tuple[int, ...]) -> Solution:
    """Stacks solutions into one of arrays with ``shape`` in front, or of objects."""
    if shape == ():
        return solved[()]
    order = [solved[at] for at in np.ndindex(shape)]

    def stack(values):
        values = np.array(values)
        return values.reshape(*shape, *values.shape[1:])

    def objects(name):
        values = np.empty(shape, object)
        for at in np.ndindex(shape):
            values[at] = getattr(solved[at], name)
        return values

    def params(values):
        values = list(values)
        return Params(w=stack([p.w for p in values]), b=stack([p.b for p in values]))

    return Solution(
        params=params(solution.params for solution in order),
        centered=params(solution.centered for solution in order),
        history=objects("history"),
        plan=objects("plan"),
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
