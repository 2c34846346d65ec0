"""Work of the processes: fits of all problems of a cell, one after the other."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from solver_comparison.estimators import new_model
from solver_comparison.measures import objective, read_data, timed
from solver_comparison.workers import NEVER, quiet

ENOUGH = 2.0
"""Seconds of fits after which no further one is made to have a typical time."""
MOST = 4
"""Fits of which a typical time is taken, at most."""
Stored = tuple[Any, np.ndarray, float]
"""Features as they are stored, labels, and what to divide the features by."""


def fit_all(problems: Sequence[Stored], l2: Sequence[float], tol: float):
    """Fits all problems in one call of `fit_many`, or each by `fit`; returns the solutions."""
    import jax

    from softmax_jax import solvers

    widths, divisors = zip(*((x.shape[1], divisor) for x, _, divisor in problems), strict=True)
    if len(problems) > 1 and len(set(widths)) == 1 and set(divisors) == {1}:
        many = solvers.fit_many(
            [x for x, _, _ in problems], [y for _, y, _ in problems], l2=l2, tol=tol
        )
        return [jax.tree.map(lambda a, i=i: a[i], many) for i in range(len(problems))]
    return [
        solvers.fit(x, y, l2=at, tol=tol, scale=None if divisor == 1 else 1 / divisor)
        for (x, y, divisor), at in zip(problems, l2, strict=True)
    ]


def objectives(
    problems: Sequence[Stored], l2: Sequence[float], params: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[float]:
    """Returns F of each problem in float64."""
    return [
        objective(x, y, w, b, strength, divisor)
        for (x, y, divisor), strength, (w, b) in zip(problems, l2, params, strict=True)
    ]


def work_ours(task: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Fits with each of ``tols``, one after the other."""
    import softmax_jax.solvers  # noqa: F401

    problems = [read_data({"data": path}) for path in task["data"]]
    l2 = task["l2"]
    emit(ready=True)
    for tol in task["tols"]:
        solutions, result = timed(partial(fit_all, problems, l2, tol))
        emit(
            **result,
            tol=tol,
            objectives=objectives(problems, l2, [s.params for s in solutions]),
            lower=[float(s.objective - s.gap) for s in solutions],
            certified=all(str(s.status) == "certified" for s in solutions),
            reasons=sorted({str(s.reason) for s in solutions} - {""}),
            passes=float(np.sum([s.passes for s in solutions])),
        )


def work_peer(task: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Fits with a limit of iterations, and then with each that standard input says, one a line.

    Few rows are fitted before, as a first fit does what later ones need not do. A fit that takes
    less than two seconds is repeated.
    """
    quiet()
    stored = [read_data({"data": path}) for path in task["data"]]
    problems = [(features(x, divisor, task["dtype"]), y) for x, y, divisor in stored]
    new_model(task["package"], **options(task, 0, 6)).fit(*few_rows(*problems[0]))
    emit(ready=True)
    for limit in limits(task):
        models = [new_model(task["package"], **options(task, i, limit)) for i in range(len(stored))]
        call = partial(fit_models, models, problems)
        runs: list[dict[str, Any]] = []
        while not runs or (len(runs) < MOST and sum(r["seconds"] for r in runs) < ENOUGH):
            _, result = timed(call)
            # Some run in a process of their own, and say themselves how long it took.
            if hasattr(models[0], "seconds_"):
                result["seconds"] = sum(model.seconds_ for model in models)
            runs.append(result)
        later = [run["seconds"] for run in runs[1:]] or [runs[0]["seconds"]]
        emit(
            **{**runs[0], "seconds": float(np.median(later))},
            first=runs[0]["seconds"],
            iterations=max(int(np.max(model.n_iter_)) for model in models),
            objectives=objectives(stored, task["l2"], [params(m, task["package"]) for m in models]),
        )


def few_rows(x: Any, y: np.ndarray) -> tuple[Any, np.ndarray]:
    """Returns five features at most of ten rows of each class."""
    order = np.argsort(y, kind="stable")
    first = np.searchsorted(y[order], np.arange(y.max() + 1))
    rows = np.unique(np.clip(first[:, None] + np.arange(10), 0, len(y) - 1))
    return x[order[rows]][:, :5], y[order[rows]]


def fit_models(models: Sequence[Any], problems: Sequence[tuple[Any, np.ndarray]]) -> None:
    """Fits each estimator to its problem."""
    for model, (x, y) in zip(models, problems, strict=True):
        model.fit(x, y)


def limits(task: Mapping[str, Any]) -> Iterator[int]:
    """Yields the limit of the task, and then those of standard input."""
    yield task["max_iter"]
    for line in sys.stdin:
        yield json.loads(line)


def options(task: Mapping[str, Any], problem: int, limit: int) -> dict[str, Any]:
    """Returns the options of the estimator for one of the problems."""
    chosen = {"tol": task.get("tol", NEVER), "max_iter": limit, "solver": task["solver"]}
    return {**chosen, **task["strengths"][problem], **task.get("options", {})}


def features(x: Any, divisor: float, dtype: str) -> Any:
    """Returns the features as a peer takes them: divided, sparse ones still sparse."""
    if isinstance(x, np.ndarray):
        return np.divide(x, divisor, dtype=dtype) if divisor != 1 else x.astype(dtype, copy=False)
    return x.astype(dtype, copy=False)


def params(model: Any, package: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights and bias of a fitted estimator, those of a sigmoid as of a softmax."""
    w, b = np.asarray(model.coef_, np.float64), np.ravel(model.intercept_)
    if len(b) == 1:
        v = w.reshape(-1, 1) / 2
        return np.hstack([-v, v]), np.array([-b[0] / 2, b[0] / 2])
    # Of a single feature, cyanure's have one axis.
    return w.reshape(-1, len(b)) if package == "cyanure" else w.T, b


WORKERS = {"ours": work_ours, "peer": work_peer}
