"""Names of what is compared: ours, `optax.lbfgs`, and the solvers of other packages."""

import dataclasses
import importlib.util
from collections.abc import Sequence
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
MODULES = {"scikit-learn": "sklearn", "cyanure": "cyanure"}


def chosen_peers(words: Sequence[str]) -> dict[str, Peer]:
    """Returns the installed peers with one of the words in their names; without words, all."""
    chosen = {}
    for name, peer in PEERS.items():
        if words and not any(word in name for word in words):
            continue
        if importlib.util.find_spec(MODULES[peer.package]) is None:
            progress(f"{name}: skipped, as {peer.package} is not installed")
            continue
        chosen[name] = peer
    return chosen


def strengths_for(package: str, l2: float, n: int) -> dict[str, Any]:
    """Returns the strength of a penalty in the words of a package, for ``n`` rows."""
    from softmax_jax import conventions

    if package == "scikit-learn":
        return dict(conventions.to_sklearn(l2, total_weight=n))
    return dict(conventions.to_cyanure(l2))
