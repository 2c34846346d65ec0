"""Holds paths to those of R's glmnet, on data sets that come with R and with glmnet.

    python experiments/benchmarks/glmnet_agreement.py

Each line is one call of glmnet, ``family="multinomial"``, with ``thresh=1e-14``, and the same in
the words of `softmax_jax.solvers.fit_path`, certified to 1e-8 on the strengths of glmnet. It has
the largest differences along the path of the coefficients, as shares of the largest one, and of the
deviance explained; at how many strengths other weights are zero; and the difference of the largest
strength, which both find by themselves. It needs ``Rscript`` and its package glmnet.

Of coefficients, up to a number that all classes share, as that is up to convention where l1 = 0.
"""

import argparse
import pathlib
import shutil
import subprocess
import tempfile
from typing import Any, NamedTuple

import numpy as np

from softmax_jax import solvers

DATA = {
    "iris": "x <- as.matrix(iris[, 1:4]); y <- as.integer(iris[, 5])",
    "MultinomialExample": "data(MultinomialExample); x <- MultinomialExample$x\n"
    "y <- MultinomialExample$y",
    "BinomialExample": "data(BinomialExample); x <- BinomialExample$x; y <- BinomialExample$y + 1",
}


class Case(NamedTuple):
    """Arguments of glmnet, and ours."""

    theirs: str
    ours: dict[str, Any]
    alpha: float = 1.0


def cases(d: int) -> dict[str, Case]:
    """Returns the cases for ``d`` features."""
    factor = np.where(np.arange(d) % 3 == 0, 0.5, 1.0)
    factor[1] = 0
    as_r = ", ".join(map(str, factor))
    # glmnet divides factors by their mean.
    mean = {"penalty_factor": factor / factor.mean()}
    return {
        "as it is": Case("", {"standardize": True}),
        "not standardized": Case("standardize = FALSE", {}),
        "elastic net": Case("alpha = 0.5", {"standardize": True}, 0.5),
        "groups": Case('type.multinomial = "grouped"', {"standardize": True, "grouped": True}),
        "no intercept": Case("intercept = FALSE, standardize = FALSE", {"fit_intercept": False}),
        "factors": Case(f"penalty.factor = c({as_r})", {"standardize": True, **mean}),
        "not negative": Case("lower.limits = 0", {"standardize": True, "lower": 0.0}),
    }


CODE = """
suppressMessages(library(glmnet))
{data}
path <- suppressWarnings(glmnet(x, y, family = "multinomial", thresh = 1e-14, maxit = 1e7,
  nlambda = 30{arguments}))
writeBin(c(dim(x), length(unique(y)), length(path$lambda)) + 0.0, "sizes")
writeBin(c(x) + 0.0, "x"); writeBin(as.integer(y), "y")
writeBin(path$lambda, "lambda"); writeBin(path$dev.ratio, "deviance")
for (c in seq_along(path$beta)) writeBin(c(as.matrix(path$beta[[c]])), paste0("w", c - 1))
"""


class Path(NamedTuple):
    """Data, and glmnet's path on them."""

    x: np.ndarray
    y: np.ndarray
    strengths: np.ndarray
    deviance: np.ndarray
    w: np.ndarray
    """``[strengths, d, q]``."""


def glmnet(data: str, arguments: str) -> Path:
    """Returns the path of glmnet."""
    code = CODE.format(data=DATA[data], arguments=arguments and f", {arguments}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subprocess.run(["Rscript", "-e", code], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        n, d, q, number = np.fromfile(folder / "sizes").astype(int)
        w = [np.fromfile(folder / f"w{c}").reshape(number, d) for c in range(q)]
        return Path(
            np.fromfile(folder / "x").reshape(d, n).T,
            np.fromfile(folder / "y", np.int32) - 1,
            np.fromfile(folder / "lambda"),
            np.fromfile(folder / "deviance"),
            np.stack(w, axis=2),
        )


def compared(data: str, name: str, case: Case) -> str:
    """Returns a line of the table."""
    path = glmnet(data, case.theirs)
    alpha, strengths = case.alpha, path.strengths
    ours = solvers.fit_path(
        path.x, path.y, l2=(1 - alpha) * strengths, l1=alpha * strengths, tol=1e-8, **case.ours
    )
    own = solvers.fit_path(path.x, path.y, l2=0.0, l1="auto", strengths=2, **case.ours)
    w = [a - a.mean(axis=-1, keepdims=True) for a in (path.w, ours.params.w)]
    largest = np.abs(path.w).max()
    certified = int(np.sum(ours.status == solvers.Status.CERTIFIED))
    others = np.any((path.w != 0) != (ours.params.w != 0), axis=(1, 2)).sum()
    numbers = (
        f"{np.abs(w[0] - w[1]).max() / largest:.0e}",
        f"{np.abs(path.deviance - ours.deviance_explained).max():.0e}",
        str(others),
        f"{abs(np.max(np.asarray(own.l1)) / (alpha * strengths[0]) - 1):.0e}",
    )
    return " | ".join([data, name, f"{certified} of {len(strengths)}", *numbers])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), metavar="NAME")
    args = parser.parse_args()
    if shutil.which("Rscript") is None:
        raise SystemExit("Rscript is not there; install R and its package glmnet")
    print("data | case | certified | coefficients | deviance | other zeros at | largest strength")
    for data in args.data:
        number = glmnet(data, "").x.shape[1]
        for name, case in cases(number).items():
            print(compared(data, name, case), flush=True)


if __name__ == "__main__":
    main()
