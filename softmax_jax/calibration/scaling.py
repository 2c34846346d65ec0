r"""Calibration after training: logits rescaled so that held-out labels are most likely (Guo 2017).

One temperature for all logits, or a factor and an offset for each class. Both are convex, and
solved to their optimum in float64, whatever ``jax_enable_x64`` says and in whatever unit the logits
are, never to a loss above that of the logits as they are. Where the optimum is at infinity they say
so.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import checks, losses
from softmax_jax._annotations import AnyArray, Float, NDArray
from softmax_jax.data import blocks
from softmax_jax.data.targets import Dense, Ids, SparseTargets, checked, checked_targets, raw
from softmax_jax.normalizer import softmax
from softmax_jax.status import Status

MOST_CLASSES = 4096
"""Largest q of vector scaling, whose Hessian of ``(2 q)²`` numbers takes 512 MiB then."""
MAX_ITERATIONS = 200


class Temperature(NamedTuple):
    """Result of `fit_temperature`."""

    temperature: float
    """Divide logits by it; inf where no finite one is best."""
    inverse: float
    """Or multiply them with this, which is finite always."""
    nats_before: float
    """Mean loss of the calibration data with the logits as they are."""
    nats: float
    """Mean loss of the calibration data at this temperature."""
    gradient: float
    """Slope of the mean loss in the log of the inverse temperature, free of the unit of the logits;
    at infinite temperature 0."""
    status: Status
    """``optimal``, or which limit the loss falls to."""
    reason: str
    """Explanation of the status; empty if optimal."""


class Scaling(NamedTuple):
    """Result of `fit_vector_scaling`: calibrated logits are ``logits * factor + offset``."""

    factor: Float[NDArray, " q"]
    """``[q]``"""
    offset: Float[NDArray, " q"]
    """``[q]``, summing to zero."""
    nats_before: float
    """Mean loss of the calibration data with the logits as they are."""
    nats: float
    """Mean loss of the calibration data with the calibrated logits."""
    gradient: float
    """The largest entry, for logits of mean 0 and standard deviation 1 in each class."""
    status: Status
    """``optimal``, or why it is not."""
    reason: str
    """Explanation of the status; empty if optimal."""


@jax.transfer_guard("allow")
def fit_temperature(
    logits: AnyArray,
    targets: AnyArray,
    weights: AnyArray | None = None,
    *,
    tol: float = 1e-9,
    block_size: int | None = None,
) -> Temperature:
    r"""Returns the temperature T that minimises the loss of held-out examples.

    .. math:: f(\beta) = \frac{1}{\sum_i s_i} \sum_i s_i\, l(y_i, \beta\, o_i), \quad
        \beta = 1 / T, \qquad
        f' = \langle \mathrm{E}_p\, o - y^\top o \rangle, \quad
        f'' = \langle \mathrm{Var}_p\, o \rangle \ge 0

    It is convex in the inverse temperature. Newton steps are kept in a bracket of the root of f',
    so they cannot fail.

    Args:
      logits: ``[n, q]``, finite or ``-inf``.
      targets: class ids ``[n]`` or probabilities ``[n, q]``.
      weights: ``[n]``, None for 1; rows of weight zero take no part.
      tol: largest :math:`|\beta f'|` to stop at.
      block_size: rows at a time, of influence by rounding only; by default such that there are
        `data.blocks.NUMBERS` logits.

    Returns:
      A `Temperature`. Of special cases: if no logits differ within a row, every temperature is the
      same and 1 is returned. If f' >= 0 at 0, a uniform guess is better than any other temperature:
      T is infinite, its inverse 0. If every label has the largest logit, the loss falls as T falls
      to 0, and one is returned at which the gradient is within 1e-6 of its limit 0.

    Raises:
      ValueError: on NaN or +inf, gaps beyond 1e±290, shapes that do not fit, a label of a logit
        ``-inf``, weights that are negative or all zero, or a ``tol`` that is not positive.

    Example:
      >>> logits = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
      >>> round(fit_temperature(logits, [0, 1, 1]).temperature, 6)
      2.88539
    """
    problem = _Problem.of(logits, targets, weights, tol, block_size)
    unit, misses = problem.largest_gap()
    if unit != 0 and not 1e-290 < unit < 1e290:
        raise ValueError(f"logits: the largest gap is {unit}; expected 1e-290 to 1e290, or 0")

    def evaluate(beta: float) -> _Along:
        """Returns value and derivatives in units in which the largest gap of logits is one."""
        return _Along(*map(float, problem.mean(_along, beta, unit or 1.0)))

    before = evaluate(unit)

    def result(beta, status=Status.OPTIMAL, reason=""):
        at = evaluate(beta)
        if not at.loss <= before.loss:  # by rounding
            beta, at = unit, before
        inverse = beta / unit
        temperature = unit / beta if beta > 0 else math.inf
        return Temperature(
            temperature, inverse, before.loss, at.loss, beta * at.first, status, reason
        )

    if unit == 0:
        reason = "in every row all logits are equal: they predict nothing"
        return Temperature(1.0, 1.0, before.loss, before.loss, 0.0, Status.ALL_THE_SAME, reason)
    if evaluate(0.0).first >= 0:
        reason = "these logits are worse than a uniform guess: do labels and classes match?"
        return result(0.0, Status.NO_INFORMATION, reason)
    low, high, beta = 0.0, math.inf, 1.0
    at = evaluate(beta)
    if not misses:
        while beta * at.first < -1e-6 or at.loss > before.loss:
            beta *= 2
            at = evaluate(beta)
        reason = "every label has the largest logit: calibrate on data that was not trained on"
        return result(beta, Status.SEPARABLE, reason)
    for _ in range(MAX_ITERATIONS):
        low, high = (low, beta) if at.first > 0 else (beta, high)
        if abs(beta * at.first) <= tol or high - low <= 1e-15 * high < math.inf:
            return result(beta)
        if high == math.inf or low == 0:
            outside = 10 * beta if high == math.inf else beta / 10
        else:
            outside = math.sqrt(low * high)
        step = beta - at.first / at.second if at.second > 0 else math.inf
        beta = step if low < step < min(high, 10 * beta) else outside
        at = evaluate(beta)
    reason = f"after {MAX_ITERATIONS} steps the gradient is {beta * at.first:.1e}"
    return result(beta, Status.NOT_CONVERGED, reason)


@jax.transfer_guard("allow")
def fit_vector_scaling(
    logits: AnyArray,
    targets: AnyArray,
    weights: AnyArray | None = None,
    *,
    tol: float = 1e-8,
    block_size: int | None = None,
) -> Scaling:
    r"""Returns factors and offsets of the classes that minimise the loss of held-out examples.

    .. math:: f(a, c) = \frac{1}{\sum_i s_i} \sum_i s_i\, l(y_i, a \odot o_i + c)

    Convex in both; damped Newton steps (Levenberg 1944) from the best temperature, each of n q²
    work. Made part of the model it is ``Params(w * factor, b * factor + offset)``.

    Args:
      logits: ``[n, q]``, finite or ``-inf``.
      targets: class ids ``[n]`` or probabilities ``[n, q]``.
      weights: ``[n]``, None for 1; rows of weight zero take no part.
      tol: largest entry of the gradient to stop at, for logits of mean 0 and standard deviation 1.
      block_size: see `fit_temperature`.

    Returns:
      A `Scaling`. Where the gradient is that small but a Newton step would still move a logit by
      half a nat, the loss falls on and on towards infinity: a class occurs never, or hardly, or
      factors could tell some classes apart without error. It is then at most about ``tol`` above
      its limit, and the status says so.

    Raises:
      ValueError: as `fit_temperature`, or for more than `MOST_CLASSES` classes.

    Example:
      >>> scaling = fit_vector_scaling(np.zeros((4, 2)), [0, 1, 1, 1])
      >>> f"{np.exp(scaling.offset[1] - scaling.offset[0]):.4f}"  # the odds are three to one
      '3.0000'
    """
    problem = _Problem.of(logits, targets, weights, tol, block_size)
    q = problem.logits.shape[1]
    if q > MOST_CLASSES:
        raise ValueError(f"{q:,} classes; vector scaling takes up to {MOST_CLASSES:,}")
    one = fit_temperature(
        problem.logits, raw(problem.targets), problem.weights, block_size=block_size
    )
    center, unit = problem.columns()

    def evaluate(theta: np.ndarray) -> tuple[np.ndarray, ...]:
        return problem.mean(_along_both, theta[:q], theta[q:], center, unit)

    # In the centred columns a temperature is a factor and an offset for each class, too.
    offset = one.inverse * center
    theta = np.concatenate([one.inverse * unit, offset - offset.mean()])
    value, gradient, hessian = evaluate(theta)
    damping, status = 1e-3, Status.NOT_CONVERGED
    reason = f"after {MAX_ITERATIONS} steps the gradient is above {tol:g}"
    for _ in range(MAX_ITERATIONS):
        if np.max(np.abs(gradient)) <= tol:
            status, reason = Status.OPTIMAL, ""
            break
        scale = np.trace(hessian) / len(theta)
        step = np.linalg.solve(hessian + damping * scale * np.eye(len(theta)), -gradient)
        new = evaluate(theta + step)
        if new[0] <= value:
            theta, damping = theta + step, max(damping / 10, 1e-10)
            value, gradient, hessian = new
        elif damping > 1e12:
            break
        else:
            damping *= 10
    if status == Status.OPTIMAL:
        step = np.linalg.lstsq(hessian, -gradient, rcond=1e-13)[0]
        if problem.largest_move(step[:q], step[q:], center, unit) > 0.5:
            status = Status.AT_INFINITY
            reason = "a class occurs never, or hardly, or some are told apart by factors alone"
    factor = theta[:q] / unit
    offset = theta[q:] - factor * center
    nats = float(value)
    if not nats <= one.nats_before:  # by rounding
        factor, offset, nats = np.ones(q), np.zeros(q), one.nats_before
    return Scaling(
        factor=factor,
        offset=offset - offset.mean(),
        nats_before=one.nats_before,
        nats=nats,
        gradient=float(np.max(np.abs(gradient))),
        status=status,
        reason=reason,
    )


class _Along(NamedTuple):
    """Means over the rows."""

    loss: float
    first: float
    second: float


@jax.jit
def _along(
    o: jax.Array, y: jax.Array, s: jax.Array, beta: jax.Array, unit: jax.Array
) -> tuple[jax.Array, ...]:
    """Loss, first and second derivative in the inverse temperature, over a block of rows."""
    top = jnp.broadcast_to(jnp.max(o, axis=-1, keepdims=True), o.shape)
    # Of what does not depend on what all logits of a row have in common, no digits are lost.
    finite = jnp.where(jnp.isfinite(o), o - top, 0) / unit
    z = jnp.where(jnp.isfinite(o), beta * finite, -jnp.inf)
    p = softmax(z, axis=-1)
    mean = jnp.sum(p * finite, axis=-1, keepdims=True)
    deviation = finite - jnp.broadcast_to(mean, o.shape)
    loss = losses.cross_entropy(z, y)
    first = -jnp.sum(y * deviation, axis=-1)
    second = jnp.sum(p * deviation**2, axis=-1)
    return jnp.sum(s * loss), jnp.sum(s * first), jnp.sum(s * second)


@jax.jit
def _along_both(
    o: jax.Array,
    y: jax.Array,
    s: jax.Array,
    a: jax.Array,
    c: jax.Array,
    center: jax.Array,
    unit: jax.Array,
) -> tuple[jax.Array, ...]:
    """Loss, gradient ``[2 q]`` and Hessian in ``a`` and ``c``, over a block of rows."""
    finite = jnp.where(jnp.isfinite(o), (o - center[None]) / unit[None], 0)
    z = jnp.where(jnp.isfinite(o), finite * a[None] + c[None], -jnp.inf)
    p = softmax(z, axis=-1)
    weighted = s[:, None] * p
    error = weighted - s[:, None] * y
    gradient = jnp.concatenate([jnp.sum(error * finite, axis=0), jnp.sum(error, axis=0)])
    # Per row and in the logits it is diag(p) - p pᵀ.
    both = jnp.concatenate([p * finite, p], axis=1)
    diagonals = [[weighted * finite**2, weighted * finite], [weighted * finite, weighted]]
    hessian = jnp.block([[jnp.diag(jnp.sum(d, axis=0)) for d in row] for row in diagonals])
    hessian -= (both * s[:, None]).T @ both
    return jnp.sum(s * losses.cross_entropy(z, y)), gradient, hessian


class _Problem(NamedTuple):
    """Checked input: the rows that have weight."""

    logits: np.ndarray
    targets: Ids | Dense
    """Parsed targets of NumPy arrays; probabilities sum to one."""
    weights: np.ndarray
    """Their sum is one."""
    block_size: int
    """Rows at a time."""

    @classmethod
    def of(
        cls, logits: Any, targets: Any, weights: Any, tol: float, block_size: int | None
    ) -> "_Problem":
        if not 0 < tol < math.inf:
            raise ValueError(f"tol: {tol}; expected a positive number")
        logits = np.asarray(checks.as_array(logits, "logits"))
        targets = np.asarray(checks.as_array(targets, "targets"))
        if logits.ndim != 2 or 0 in logits.shape or not checks.is_real(logits):
            raise ValueError(
                f"logits of shape {logits.shape} and type {logits.dtype}; expected numbers [n, q]"
            )
        if targets.shape[:1] != logits.shape[:1]:
            raise ValueError(f"targets of shape {targets.shape} for {len(logits)} rows of logits")
        weights = checks.checked_weights(weights, len(logits))
        checks.refuse_no_weight(weights)
        # Rows without weight take no part, whatever they hold.
        logits, targets, weights = (a[weights > 0] for a in (logits, targets, weights))
        targets = checked_targets(targets, len(logits), "targets", np.float64)
        parsed = checked(targets, logits.shape)
        assert not isinstance(parsed, SparseTargets)
        if isinstance(parsed, Dense):
            y: Any = targets / targets.sum(axis=1, keepdims=True)
            parsed = Dense(y)
        impossible = np.isneginf(logits)
        if not (np.isfinite(logits) | impossible).all() or impossible.all(axis=1).any():
            raise ValueError(
                "logits: NaN, +inf, or a row of -inf only, of which there is no softmax"
            )
        if block_size is None:
            block_size = blocks.rows_within(logits.shape[1])
        problem = cls(logits, parsed, weights / weights.sum(), block_size)
        if any((np.isneginf(o) & (y > 0)).any() for o, y, _ in problem.blocks()):
            raise ValueError(
                "targets: there are examples of a class whose logit is -inf, which no scaling "
                "makes possible"
            )
        return problem

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Logits, probabilities and weights of some rows."""
        q = self.logits.shape[1]
        for at in blocks.slices(len(self.logits), self.block_size):
            if isinstance(self.targets, Ids):
                ids = np.asarray(self.targets.ids[at])
                y = (ids[:, None] == np.arange(q)).astype(np.float64)
            else:
                y = np.asarray(self.targets.probabilities[at])
            yield self.logits[at].astype(np.float64), y, self.weights[at]

    def mean(self, function: Callable[..., tuple[jax.Array, ...]], *args: Any) -> Any:
        """Returns the means over the rows, of what a function sums for a block."""
        with jax.enable_x64(True):
            sums = [function(*block, *args) for block in self.blocks()]
            return tuple(np.sum(part, axis=0) for part in zip(*sums, strict=True))

    def largest_gap(self) -> tuple[float, bool]:
        """Returns the largest gap of logits in a row, and whether a label is not the largest."""
        largest, misses = 0.0, False
        for o, y, _ in self.blocks():
            with np.errstate(over="ignore"):  # an infinite gap is refused
                below = np.where(np.isfinite(o), o.max(axis=1, keepdims=True) - o, 0)
            largest = max(largest, float(below.max()))
            misses = misses or bool((below[y > 0] > 0).any())
        return largest, misses

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each class, of what is finite: ``[q]`` each."""
        logits = self.logits.astype(np.float64)
        finite = np.isfinite(logits)
        number = np.maximum(finite.sum(axis=0), 1)
        center = np.where(finite, logits, 0).sum(axis=0) / number
        deviation = np.where(finite, logits - center, 0)
        largest = np.abs(deviation).max(axis=0)
        largest = np.where(largest > 0, largest, 1)
        # Squares of what is at most one, lest they overflow.
        unit = largest * np.sqrt(((deviation / largest) ** 2).sum(axis=0) / number)
        return center, np.where(unit > 0, unit, 1)

    def largest_move(
        self, a: np.ndarray, c: np.ndarray, center: np.ndarray, unit: np.ndarray
    ) -> float:
        """Returns by how much logits of a row move against each other if factors and offsets do."""
        largest = 0.0
        for o, _, _ in self.blocks():
            finite = np.isfinite(o)
            moves = np.where(finite, (o - center) / unit, 0) * a + c
            high, low = np.where(finite, moves, -np.inf), np.where(finite, moves, np.inf)
            largest = max(largest, float(np.max(high.max(axis=1) - low.min(axis=1))))
        return largest
