"""Peers of the league, and the cells that each is for."""

from collections.abc import Mapping

from solver_comparison.peers import PEERS as ALL
from solver_comparison.peers import Peer

from .cells import Problem

PEERS = {
    **{
        f"scikit-learn {solver}": ALL[f"scikit-learn {solver}"]
        for solver in ("newton-cholesky", "newton-cg", "lbfgs")
    },
    "cyanure, float32": ALL["cyanure, float32"],
    "cyanure, float64": ALL["cyanure, float64"],
    "snapml": Peer("snapml", "auto", 80),
    # Its own default is 14. Where classes are separated, less effort gets nowhere.
    "glmnet": Peer("glmnet", "auto", 14, 1.3, dtype="float64"),
}
"""Peers, those first that tend to be fast: it limits how long others are waited for."""
CHOLESKY = 4000
"""Parameters up to which newton-cholesky is tried, as its Hessian has the square of them."""
GLMNET = 20_000
"""Rows below which glmnet is tried."""


def applicable(peers: Mapping[str, Peer], problem: Problem) -> dict[str, Peer]:
    """Returns the peers that a problem is for."""
    (n, d), classes = problem.x.shape, int(problem.y.max()) + 1
    for_it = {
        "scikit-learn newton-cholesky": (d + 1) * (classes if classes > 2 else 1) <= CHOLESKY,
        "snapml": classes == 2,
        "glmnet": n < GLMNET,
    }
    return {name: peer for name, peer in peers.items() if for_it.get(name, True)}
