"""Work of the processes: the fits that are timed.

A worker imports the one package that it is about and nothing else that is heavy, so that it takes
the time and the memory that a user's process takes.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from .estimators import new_model
from .measures import objective, read_data, timed
from .peers import OURS

NEVER = 1e-14
"""A tolerance that no solver meets before its limit of iterations."""


def work_ours(task: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Fits one strength or a path with each of ``tols``, one after the other."""
    from softmax_jax import solvers

    x, y, divisor = read_data(task)
    l2 = task["l2"]
    options: dict[str, Any] = {"scale": None if divisor == 1 else 1 / divisor}
    options |= task.get("options", {})
    emit(ready=True)
    for tol in task["tols"]:
        solution, result = timed(
            partial(solvers.fit_path, x, y, l2=np.array(l2), tol=tol, **options)
        )
        w, b = solution.params
        w, b = w.reshape(-1, *w.shape[-2:]), b.reshape(-1, b.shape[-1])
        values = [objective(x, y, *at, divisor) for at in zip(w, b, np.atleast_1d(l2), strict=True)]
        emit(
            **result,
            effort=tol,
            objective=values if np.ndim(l2) else values[0],
            lower=(np.asarray(solution.objective) - np.asarray(solution.gap)).tolist(),
            status=np.asarray(solution.status).tolist(),
            passes=np.asarray(solution.passes).tolist(),
        )


def quiet() -> None:
    """Ignores warnings, as that a limit of iterations was met."""
    import warnings

    warnings.simplefilter("ignore")


def work_peer(task: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Fits once, with a limit of iterations."""
    quiet()
    x, y, divisor = read_data(task)
    features = np.divide(x, divisor, dtype=task["dtype"])
    options = {**task["strengths"], "solver": task["solver"], "max_iter": task["max_iter"]}
    model = new_model(task["package"], **options, tol=NEVER)
    emit(ready=True)
    _, result = timed(lambda: model.fit(features, y))
    w = model.coef_.T if task["package"] == "scikit-learn" else model.coef_
    emit(
        **result,
        iterations=int(np.max(model.n_iter_)),
        objective=objective(x, y, w, model.intercept_, task["l2"], divisor),
    )


def work_path(task: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Fits a path with scikit-learn, at each strength with ``tols`` until ``slack`` is met."""
    quiet()
    x, y, divisor = read_data(task)
    features = np.divide(x, divisor, dtype=np.float32)
    continues = task["solver"] == "newton-cg"
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver=task["solver"], max_iter=100_000, warm_start=True)
    emit(ready=True)
    for l2, strengths, ours in zip(task["l2"], task["strengths"], task["objectives"], strict=True):
        model.set_params(**strengths)
        start = {k: v.copy() for k, v in vars(model).items() if k in ("coef_", "intercept_")}
        spent = 0.0
        for tol in task["tols"]:
            if start and not continues:
                for key, value in start.items():
                    setattr(model, key, value.copy())
            elif not continues and hasattr(model, "coef_"):
                del model.coef_
            model.set_params(tol=tol)
            _, result = timed(lambda: model.fit(features, y))
            if not continues:
                spent = result["seconds"]
            elif np.max(model.n_iter_) > 0:
                spent += result["seconds"]
            value = objective(x, y, model.coef_.T, model.intercept_, l2, divisor)
            emit(l2=l2, tol=tol, seconds=spent, excess=value / ours - 1)
            if value <= ours * (1 + task["slack"]):
                break


def work_iris(task: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Fits a small problem some times."""
    quiet()
    x, y, divisor = read_data(task)
    l2, tol = task["l2"], task["tol"]
    fit: Callable[[], tuple[np.ndarray, np.ndarray]]
    if task["package"] == OURS:
        from softmax_jax import solvers

        def fit():
            return solvers.fit(x, y, l2=l2, tol=tol).params
    else:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(**task["strengths"], tol=tol, max_iter=10_000)

        def fit():
            model.fit(x, y)
            return model.coef_.T, model.intercept_

    emit(ready=True)
    seconds = []
    for _ in range(task["fits"]):
        (w, b), result = timed(fit)
        seconds.append(result["seconds"])
    emit(seconds=seconds, objective=objective(x, y, w, b, l2, divisor))


WORKERS = {"ours": work_ours, "peer": work_peer, "path": work_path, "iris": work_iris}


def work(workers: Mapping[str, Callable[..., None]] = WORKERS) -> None:
    """Does the task on standard input with the worker that it names; answers are lines of JSON."""
    task = json.loads(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some solvers print

    def emit(**answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    workers[task["do"]](task, emit)
