"""Names of what is compared: ours, `optax.lbfgs`, and the solvers of other packages."""

import dataclasses
import functools
import importlib.util
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from .processes import progress

OURS = "ours"
OPTAX = "optax.lbfgs"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A solver with a limit of iterations: where its ladder begins, and by what it grows.

    Limits are multiples of ``step``.
    """

    package: str
    solver: str
    first: int
    factor: float = 2.0
    step: int = 1
    dtype: str = "float32"


PEERS = {
    "scikit-learn lbfgs": Peer("scikit-learn", "lbfgs", 50),
    "scikit-learn newton-cg": Peer("scikit-learn", "newton-cg", 4, 1.5),
    "scikit-learn newton-cholesky": Peer("scikit-learn", "newton-cholesky", 3, 1.5),
    "scikit-learn sag": Peer("scikit-learn", "sag", 10),
    "scikit-learn saga": Peer("scikit-learn", "saga", 10),
    # It looks at where it is every five iterations.
    "cyanure, float32": Peer("cyanure", "auto", 10, step=5),
    "cyanure, float64": Peer("cyanure", "auto", 10, step=5, dtype="float64"),
}
MODULES = {"scikit-learn": "sklearn", "cyanure": "cyanure", "snapml": "snapml"}


@functools.cache
def is_installed(package: str) -> bool:
    """Returns whether a package is there; glmnet is one of R's."""
    if package != "glmnet":
        return importlib.util.find_spec(MODULES[package]) is not None
    if shutil.which("Rscript") is None:
        return False
    words = ["Rscript", "--vanilla", "-e", "library(glmnet)"]
    return subprocess.run(words, capture_output=True).returncode == 0


def chosen_peers(words: Sequence[str], peers: Mapping[str, Peer] = PEERS) -> dict[str, Peer]:
    """Returns the installed peers with one of the words in their names; without words, all."""
    chosen = {}
    for name, peer in peers.items():
        if words and not any(word in name for word in words):
            continue
        if not is_installed(peer.package):
            progress(f"{name}: skipped, as {peer.package} is not installed")
            continue
        chosen[name] = peer
    return chosen


def strengths_for(package: str, l2: float, n: int, classes: int = 3) -> dict[str, Any]:
    """Returns the strength of a penalty in the words of a package, for ``n`` rows.

    Two classes are a sigmoid for all packages.
    """
    from softmax_jax import conventions

    if classes == 2:
        l2 = conventions.to_sigmoid(l2).l2
    if package == "scikit-learn":
        return dict(conventions.to_sklearn(l2, total_weight=n))
    if package == "snapml":
        return {"regularizer": 1 / conventions.to_sklearn(l2, total_weight=n)["C"]}
    if package == "glmnet":
        return {"lambda_": l2}
    sigmoid = {"loss": "logistic"} if classes == 2 else {}
    return {**conventions.to_cyanure(l2), **sigmoid}
