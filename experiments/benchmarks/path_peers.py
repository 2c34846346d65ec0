"""Packages that solve paths of l1 strengths, for `sparse_path`.

A peer takes rows, strengths from strong to weak, whether weights are penalised in groups, and the
seconds that it may take; it runs at its own defaults. It returns a `Path` of as many strengths as
it reached, or None if it is not installed or not for such problems.
"""

import importlib.util
import pathlib
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from softmax_jax import conventions

_GLMNET = """
suppressMessages(library(glmnet))
x <- matrix(readBin("x", "double", n = {n} * {d}), {n}, {d})
y <- factor(readBin("y", "integer", n = {n}))
seconds <- system.time(path <- suppressWarnings(glmnet(
  x, y, family = "multinomial", standardize = FALSE, type.multinomial = "{kind}")))[["elapsed"]]
writeBin(c(seconds, path$lambda), "lambda")
writeBin(c(path$a0), "bias")
for (c in seq_along(path$beta)) writeBin(c(as.matrix(path$beta[[c]])), paste0("w", c - 1))
"""


class Path(NamedTuple):
    """Path of a peer."""

    seconds: float
    strengths: np.ndarray
    """Those that it reached."""
    w: np.ndarray
    """``[strengths, d, q]``."""
    b: np.ndarray
    """``[strengths, q]``."""


def glmnet(x: np.ndarray, y: np.ndarray, *, grouped: bool, budget: float) -> Path | None:
    """Returns the path of R's glmnet, of its own strengths, in a process of its own."""
    if shutil.which("Rscript") is None:
        return None
    (n, d), q = x.shape, int(y.max()) + 1
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "x").write_bytes(x.astype(np.float64).tobytes(order="F"))
        (folder / "y").write_bytes(y.astype(np.int32).tobytes())
        code = _GLMNET.format(n=n, d=d, kind="grouped" if grouped else "ungrouped")
        command = ["Rscript", "-e", code]
        try:
            ran = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=budget + 20
            )
        except subprocess.TimeoutExpired:
            return None
        if ran.returncode != 0:
            print(f"glmnet is left out: {ran.stderr.strip()}")
            return None
        seconds, *strengths = np.fromfile(folder / "lambda")
        bias = np.fromfile(folder / "bias").reshape(-1, q)
        shape = len(strengths), d
        w = np.stack([np.fromfile(folder / f"w{c}").reshape(shape) for c in range(q)], axis=2)
    return Path(seconds, np.array(strengths), w, bias)


def adelie(
    x: np.ndarray, y: np.ndarray, l1: np.ndarray, *, grouped: bool, budget: float
) -> Path | None:
    """Returns the path of adelie, whose groups are over the classes."""
    if not grouped or importlib.util.find_spec("adelie") is None:
        return None
    import adelie as package

    q = int(y.max()) + 1
    scale = conventions.to_adelie(0.0, 1.0, num_classes=q)["lmda"]
    x, classes = np.asfortranarray(x), np.eye(q)[y]
    began = time.perf_counter()
    found = package.grpnet(
        x,
        package.glm.multinomial(classes),
        lmda_path=scale * l1,
        early_exit=False,
        progress_bar=False,
        n_threads=2,
    )
    seconds = time.perf_counter() - began
    w = found.betas.toarray().reshape(-1, x.shape[1], q)
    return Path(seconds, l1[: len(w)], w, found.intercepts)


def saga(
    x: np.ndarray, y: np.ndarray, l1: np.ndarray, *, grouped: bool, budget: float
) -> Path | None:
    """Returns fits of scikit-learn's saga, each from the one before."""
    if grouped:
        return None
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="saga", l1_ratio=1.0, warm_start=True, random_state=0)

    def fit(strength):
        model.set_params(**conventions.to_sklearn(0.0, strength, total_weight=len(y))).fit(x, y)
        return model.coef_.T, model.intercept_

    return _one_by_one(fit, l1, budget)


def cyanure(
    x: np.ndarray, y: np.ndarray, l1: np.ndarray, *, grouped: bool, budget: float
) -> Path | None:
    """Returns fits of cyanure, each from the one before."""
    if grouped or importlib.util.find_spec("cyanure") is None:
        return None
    import cyanure.estimators

    model = cyanure.estimators.Classifier(
        loss="multiclass-logistic", verbose=False, warm_start=True, fit_intercept=True
    )

    def fit(strength):
        model.set_params(**conventions.to_cyanure(0.0, strength)).fit(x, y)
        return np.array(model.coef_).reshape(x.shape[1], -1), np.ravel(model.intercept_)

    return _one_by_one(fit, l1, budget)


def _one_by_one(fit: Callable[[float], tuple[Any, Any]], l1: np.ndarray, budget: float) -> Path:
    """Fits strength after strength, as long as the budget lasts."""
    began, found = time.perf_counter(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits that end at their number of iterations
        for strength in l1:
            w, b = fit(float(strength))
            found.append((np.array(w), np.array(b)))
            if time.perf_counter() - began > budget:
                break
    seconds = time.perf_counter() - began
    return Path(seconds, l1[: len(found)], *(np.stack(a) for a in zip(*found, strict=True)))


PEERS: dict[str, Callable[..., Path | None]] = {
    "adelie": adelie,
    "scikit-learn saga": saga,
    "cyanure": cyanure,
}
"""Peers that are given the strengths."""
