"""Results of the solvers, and their reports while they work."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.sparse

from softmax_jax._annotations import Float, Integer, NDArray, OverGrid
from softmax_jax.model import Params
from softmax_jax.solvers.certificate import Certificate
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.jobs import Job, Verdict
from softmax_jax.solvers.plan import Plan
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
    objective: OverGrid
    """F in nats, in float64, of `centered`; that of `params` is larger by rounding, up to `gap`."""
    gap: OverGrid
    """Gap in nats: no minimum is below ``objective - gap``. `objective` where nothing is known."""
    relative_gap: OverGrid
    """``gap / max(objective, m)``, with a millionth m of the loss without features."""
    slope: OverGrid
    """Largest entry of the gradient of F, in features of size 1; NaN where a gap is known."""
    status: Status | NDArray
    """`Status`: ``certified``, ``not certified`` or ``infimum at infinity``."""
    reason: str | NDArray
    """Reason why it is not certified; empty if it is."""
    passes: OverGrid
    """Passes over all rows that have weight: forward and back."""
    history: History | NDArray
    """`History` of the problem."""
    loss: OverGrid
    """Mean loss in nats: the objective without its penalty."""
    deviance_explained: OverGrid
    r"""Share of the deviance that features explain: :math:`(l_0 - l) / (l_0 - l_y)`.

    With the loss :math:`l`, that without features and offsets :math:`l_0`, and that of the targets
    themselves :math:`l_y`, which is 0 for class ids. 0 where there is nothing to explain.
    """
    l2: OverGrid | None = None
    """Strength of the squared penalty."""
    l1: OverGrid | None = None
    """Strength of the absolute penalty."""
    plan: Plan | NDArray | None = None
    """`Plan` of what was chosen for the problem, and why."""

    @property
    def nonzeros(self) -> Integer[NDArray, "*grid q"]:
        """Number of weights of each class that are not zero.

        For l2 = 0 it is an unbiased estimate of the degrees of freedom (Zou, Hastie and Tibshirani
        2007, for squared errors).
        """
        return np.count_nonzero(self.params.w, axis=-2)

    def sparse_weights(self) -> scipy.sparse.csr_array | NDArray:
        """Returns the weights as SciPy CSR ``[d, q]``: one, or an array of objects over the grid.

        Example:
          >>> from softmax_jax.solvers import fit
          >>> x, y = np.array([[0.0, 1], [1, 0], [2, 0], [3, 1]]), np.array([0, 0, 1, 1])
          >>> w = fit(x, y, l2=0.0, l1=0.05).sparse_weights()
          >>> w.shape, w.nnz
          ((2, 2), 2)
        """
        w, shape = self.params.w, self.params.w.shape[:-2]
        found = np.empty(shape, object)
        for at in np.ndindex(shape):
            found[at] = scipy.sparse.csr_array(w[at])
        return found[()]


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
        centered=job.l1 == 0 and inputs.problem.penalty.is_same_for_classes,
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
        loss=float(certificate.loss[0]),
        deviance_explained=_deviance_explained(inputs, job.weighting, float(certificate.loss[0])),
        gap=gap,
        relative_gap=gap / largest,
        slope=float(certificate.slope[0]),
        status=ended.status,
        reason=ended.reason,
        passes=job.passes,
        history=History(*columns),
    )


def _deviance_explained(inputs: Inputs, weighting: int, loss: float) -> float:
    has_intercept = bool(np.asarray(inputs.problem.intercept) > 0)
    null = float(inputs.baseline[weighting]) if has_intercept else math.log(inputs.num_classes)
    return deviance_explained(loss, null, float(inputs.entropy[weighting]))


def deviance_explained(loss: float, null: float, of_targets: float) -> float:
    """Returns the share; see `Solution`."""
    return (null - loss) / (null - of_targets) if null > of_targets else 0.0


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
                "loss",
                "deviance_explained",
                "gap",
                "relative_gap",
                "slope",
                "status",
                "reason",
                "passes",
            )
        },
    )
