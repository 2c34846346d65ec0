"""Estimators of other packages under one interface: ``fit``, ``coef_``, ``intercept_``."""

import importlib
import os
import pathlib
import subprocess
import tempfile
from typing import Any

import numpy as np


def new_model(package: str, **options: Any) -> Any:
    """Returns an estimator of a package with these options."""
    if package == "scikit-learn":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(**options)
    if package == "snapml":
        return Snap(**options)
    if package == "glmnet":
        return Glmnet(**options)
    loss = {"loss": "multiclass-logistic", "fit_intercept": True, "verbose": False}
    return importlib.import_module("cyanure.estimators").Classifier(**{**loss, **options})


class Snap:
    """snapml's `LogisticRegression` for two classes.

    It penalises the bias, as the weight of a column of tens, which costs little.
    """

    COLUMN = 10.0

    def __init__(self, *, regularizer: float, max_iter: int, tol: float, solver: str):
        self._model = importlib.import_module("snapml").LogisticRegression(
            regularizer=regularizer,
            max_iter=max_iter,
            tol=tol,
            n_jobs=os.cpu_count(),
            fit_intercept=True,
            intercept_scaling=self.COLUMN,
        )

    def fit(self, x: Any, y: np.ndarray) -> "Snap":
        """Fits."""
        self._model.fit(x, y)
        self.coef_ = self._model.coef_
        self.intercept_ = np.multiply(self._model.intercept_, self.COLUMN)
        self.n_iter_ = self._model.n_iter_
        return self


class Glmnet:
    """R's glmnet with alpha = 0, whose effort is a threshold of 10 to the ``-max_iter / 2``.

    The last of ten falling strengths is the one that counts, as its manual recommends. Only the
    call of ``glmnet`` counts as time.
    """

    SCRIPT = """
        suppressMessages(library(glmnet))
        read <- function(name, what, size)
          readBin(name, what, file.info(name)$size / size, size = size)
        at <- scan("options", quiet = TRUE)
        x <- if (file.exists("i")) {
          Matrix::sparseMatrix(i = read("i", "integer", 4), p = read("p", "integer", 4),
                               x = read("x", "double", 8), dims = at[1:2], index1 = FALSE)
        } else matrix(read("x", "double", 8), at[1], at[2])
        y <- factor(read("y", "integer", 4))
        family <- if (nlevels(y) == 2) "binomial" else "multinomial"
        strengths <- exp(seq(log(max(1, 10 * at[3])), log(at[3]), length.out = 10))
        seconds <- system.time(
          fit <- glmnet(x, y, family = family, alpha = 0, lambda = strengths, standardize = FALSE,
                        thresh = at[4], maxit = 1e7))[["elapsed"]]
        k <- length(fit$lambda)
        stopifnot(k == length(strengths))
        beta <- if (family == "binomial") list(fit$beta) else fit$beta
        w <- sapply(beta, function(each) as.numeric(each[, k]))
        b <- if (family == "binomial") fit$a0[k] else fit$a0[, k]
        writeBin(as.numeric(w), "w"); writeBin(as.numeric(b), "b")
        writeBin(seconds, "seconds")
    """

    def __init__(self, *, lambda_: float, max_iter: int, **_: Any):
        self._strength, self._threshold = lambda_, 10 ** (-max_iter / 2)
        self.n_iter_ = max_iter

    def fit(self, x: Any, y: np.ndarray) -> "Glmnet":
        """Fits in a process of R."""
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            if isinstance(x, np.ndarray):
                np.asarray(x, np.float64).ravel("F").tofile(folder / "x")
            else:
                columns = x.tocsc()
                columns.data.astype(np.float64).tofile(folder / "x")
                columns.indices.astype(np.int32).tofile(folder / "i")
                columns.indptr.astype(np.int32).tofile(folder / "p")
            y.astype(np.int32).tofile(folder / "y")
            numbers = (*x.shape, self._strength, self._threshold)
            (folder / "options").write_text(" ".join(f"{number:.17g}" for number in numbers))
            words = ["Rscript", "--vanilla", "-e", self.SCRIPT]
            subprocess.run(words, cwd=folder, check=True, capture_output=True)
            b, w = np.fromfile(folder / "b"), np.fromfile(folder / "w")
            self.seconds_ = float(np.fromfile(folder / "seconds")[0])
        self.coef_, self.intercept_ = w.reshape(len(b), -1), b
        return self
