"""Analytic derivatives held to automatic and numerical ones; the errors in ulps."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax import losses, model
from softmax_jax.data import Data, features
from softmax_jax.model import Params

# Both sides round each of about ten operations.
ULPS = 8.0
# A central difference of step h errs by about h² |l'''| / 6 and eps |l| / h.
RELATIVE = 1e-8
STEP = 1e-5

DTYPES = ("float32", "bfloat16", "float64")
SIZES = {"moderate": 1.0, "large": 50.0, "huge": 1e30, "impossible class": 1.0}
ROWS, FEATURES, CLASSES = 6, 5, 4
L2 = 0.1


@dataclasses.dataclass(frozen=True)
class Check:
    """The largest error of a comparison, beside what is allowed."""

    error: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        """False for an error of NaN too."""
        return self.error <= self.limit

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"{self.error:.2g} {self.unit} of {self.limit:g} allowed: {verdict}"


class Problem(NamedTuple):
    """The arguments of `losses.objective`."""

    params: Params
    x: jax.Array
    targets: jax.Array
    weights: jax.Array | None
    l2: float
    label_smoothing: float = 0.0


def make_problem(seed: int, dtype: str, size: str, soft: bool, weighted: bool) -> Problem:
    """A random problem whose logits are of the given size."""
    rng = np.random.default_rng(seed)
    w = SIZES[size] * rng.normal(size=(FEATURES, CLASSES))
    b = SIZES[size] * rng.normal(size=CLASSES)
    possible = CLASSES
    if size == "impossible class":
        b[-1] = -np.inf
        possible = CLASSES - 1
    # Float32 for bfloat16 too, in which they would not sum to one.
    soft_targets = np.zeros((ROWS, CLASSES))
    soft_targets[:, :possible] = rng.dirichlet(np.ones(possible), size=ROWS)
    labels = rng.integers(possible, size=ROWS)
    return Problem(
        params=Params(jnp.asarray(w, dtype), jnp.asarray(b, dtype)),
        x=jnp.asarray(rng.normal(size=(ROWS, FEATURES)), dtype),
        targets=jnp.asarray(soft_targets, np.promote_types(jnp.dtype(dtype), np.float32))
        if soft
        else jnp.asarray(labels, jnp.int32),
        weights=jnp.asarray(rng.uniform(0.5, 2, size=ROWS), dtype) if weighted else None,
        # A penalty on weights of 1e30 would drown the data.
        l2=L2 if SIZES[size] == 1.0 else 0.0,
    )


def objective(params: Params, problem: Problem) -> jax.Array:
    """`losses.objective` as a function of its parameters."""
    return losses.objective(**problem._replace(params=params)._asdict())


@jax.jit
def closed_gradient(problem: Problem) -> Params:
    return losses.objective_gradient(**problem._asdict())


@jax.jit
def gradient_by_examples(problem: Problem) -> Params:
    """The gradient of the objective from `jax.grad` of each example's loss, under `jax.vmap`."""
    params, x, targets, weights, l2, label_smoothing = problem

    def loss(params, x, target):
        return losses.cross_entropy(
            model.logits(params, x), target, label_smoothing=label_smoothing
        )

    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, x, targets)
    weights = jnp.ones(len(x), x.dtype) if weights is None else weights
    mean = jax.tree.map(
        lambda g: (
            jnp.tensordot(weights, g.astype(np.promote_types(g.dtype, np.float32)), axes=1)
            / jnp.sum(weights)
        ),
        gradients,
    )
    return mean._replace(w=mean.w + l2 * params.w)


@jax.jit
def terms(problem: Problem) -> Params:
    """``|X|^T |R| + l2 |W|`` and the same for b: how large the terms of the gradient are."""
    params, x, targets, weights, l2, label_smoothing = problem
    error = losses.cross_entropy_gradient(
        model.logits(params, x), targets, label_smoothing=label_smoothing
    )
    error = jnp.abs(error)
    weights = jnp.ones(len(x), error.dtype) if weights is None else weights
    error = error * jnp.broadcast_to((weights / jnp.sum(weights))[:, None], error.shape)
    return Params(jnp.abs(x).T @ error + l2 * jnp.abs(params.w), jnp.sum(error, axis=0))


def in_ulps(actual: jax.Array, expected: jax.Array, size: jax.Array) -> float:
    """The largest difference, in ulps of the narrower of both types at the given size."""
    eps = max(float(jnp.finfo(a.dtype).eps) for a in (actual, expected))
    return relative(actual, expected, size) / eps


def relative(actual: np.typing.ArrayLike, expected: jax.Array, size: jax.Array) -> float:
    difference = np.max(np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64)))
    largest = float(np.max(np.asarray(size, np.float64)))
    return float(difference) / max(largest, float(jnp.finfo(expected.dtype).tiny))


def check_model(
    params: Params, data: Data, *, l2: float, label_smoothing: float, rows: int = 1024
) -> Check:
    """`jax.grad` against the closed form at trained parameters, on the first ``rows`` of data."""
    data = data._replace(x=data.x[:rows], targets=data.targets[:rows])
    problem = Problem(params, features(data), data.targets, None, l2, label_smoothing)
    return Check(max(parameter_errors(problem, eager=False).values()), ULPS, "ulp")


def parameter_errors(problem: Problem, *, eager: bool = True) -> dict[str, float]:
    """Returns errors of ``dF/dW`` and ``dF/db`` by autodiff, in ulps: the largest of all ways.

    Without jit, too, which compiles every operation by itself, if ``eager``.
    """
    closed, size = closed_gradient(problem), terms(problem)
    ways = [jitted_gradient(problem.params, problem), gradient_by_examples(problem)]
    if eager:
        ways.append(jax.grad(objective)(problem.params, problem))
    return {
        name: max(
            in_ulps(getattr(w, part), getattr(closed, part), getattr(size, part)) for w in ways
        )
        for name, part in (("dF/dW", "w"), ("dF/db", "b"))
    }


def total_loss(scores: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.sum(losses.cross_entropy(scores, targets))


def total_textbook_loss(scores: jax.Array, targets: jax.Array) -> jax.Array:
    """``-Σ y log softmax(o)`` as the textbook writes it, differentiated by jax's own rules."""
    y = targets if targets.ndim == scores.ndim else jax.nn.one_hot(targets, scores.shape[-1])
    log_p = jax.nn.log_softmax(scores)
    return -jnp.sum(jnp.where(y == 0, 0, y * log_p))


# Jitted once, here, so that problems of one shape share the compiled functions.
jitted_objective = jax.jit(objective)
jitted_gradient = jax.jit(jax.grad(objective))
jitted_hessian = jax.jit(jax.vmap(jax.hessian(losses.cross_entropy)))
LOGIT_GRADIENTS = (
    jax.jit(losses.cross_entropy_gradient),
    jax.grad(total_loss),
    jax.jit(jax.grad(total_loss)),
    jax.jit(jax.vmap(jax.grad(losses.cross_entropy))),
    jax.jit(jax.grad(total_textbook_loss)),
)


def logit_errors(problem: Problem) -> dict[str, float]:
    """Returns the largest errors of ``dl/do`` and ``d²l/do²`` by autodiff, in ulps."""
    scores, targets = model.logits(problem.params, problem.x), problem.targets
    scores = scores.astype(problem.x.dtype)  # they are float32 for bfloat16 features
    closed = losses.cross_entropy_gradient(scores, targets)
    one = jnp.ones(())
    return {
        "dl/do": max(in_ulps(way(scores, targets), closed, one) for way in LOGIT_GRADIENTS),
        "d²l/do²": in_ulps(
            jitted_hessian(scores, targets), losses.cross_entropy_hessian(scores), one
        ),
    }


def finite_difference_error(problem: Problem, size: str) -> float:
    """Returns the relative error of the closed gradient of the objective, in float64."""
    closed, scale = closed_gradient(problem), terms(problem)
    # Logits of 1e30 do not see a step of 1e-5; there the loss is linear and any step will do.
    step = STEP * SIZES[size] if SIZES[size] > 1e6 else STEP
    worst = 0.0
    for part in ("w", "b"):
        array = np.asarray(getattr(problem.params, part))
        slopes = np.empty_like(array)
        for i in np.ndindex(array.shape):
            moved = []
            for sign in (1, -1):
                shifted = array.copy()
                shifted[i] += sign * step
                params = problem.params._replace(**{part: jnp.asarray(shifted)})
                moved.append(float(jitted_objective(params, problem)))
            slopes[i] = (moved[0] - moved[1]) / (2 * step)
        worst = max(worst, relative(slopes, getattr(closed, part), getattr(scale, part)))
    return worst


def check(dtype: str, size: str, soft: bool) -> dict[str, Check]:
    """Makes all comparisons on problems of one kind, with weights and without."""
    worst: dict[str, Check] = {}
    with jax.enable_x64(dtype == "float64"):
        for weighted in (False, True):
            problem = make_problem(0, dtype, size, soft, weighted)
            found = {
                name: Check(error, ULPS, "ulp")
                for name, error in {**logit_errors(problem), **parameter_errors(problem)}.items()
            }
            if dtype == "float64":
                error = finite_difference_error(problem, size)
                found["finite"] = Check(error, RELATIVE, "relative")
            for name, result in found.items():
                if name not in worst or not result.error <= worst[name].error:
                    worst[name] = result
    return worst
