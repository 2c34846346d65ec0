"""Times paths of l1 strengths beside R's glmnet, on glmnet's own grid.

    python experiments/benchmarks/sparse_path.py
    python experiments/benchmarks/sparse_path.py --cells digits --tol 1e-4

Both minimise the mean loss + l1 |W|₁, with a free bias, on features of variance one; the cells with
"grouped" in their names have the norms of features in the place of |W|₁. glmnet runs as it is
(`thresh` 1e-7, its own strengths and its own end), in a process of its own that times itself. Ours
is certified to ``--tol`` at each of these strengths; the first call, with compilation, apart. All
take turns: the table has medians of ``--repeats``. The excess of glmnet is that over what our bound
leaves, as a share of the objective, in float64. Where ``Rscript`` or its package glmnet is not
there, the strengths are ours: a hundred, down to 1e-4 of the largest, or 1e-2 where there are fewer
rows than features.

With ``--proximal``, proximal gradients alone run once, too, to compare the passes.
"""

import argparse
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import sklearn.datasets

from softmax_jax import solvers

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


class Peer(NamedTuple):
    """Path of glmnet."""

    seconds: float
    strengths: np.ndarray
    w: np.ndarray
    """``[strengths, d, q]``."""
    b: np.ndarray
    """``[strengths, q]``."""


def wide(n: int = 200, d: int = 5000, q: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Returns normal features, twenty of which tell the classes."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(n, d)), np.zeros((d, q))
    w[:20] = rng.normal(size=(20, q))
    return x, np.argmax(x @ w + rng.gumbel(size=(n, q)), axis=1)


CELLS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "iris": lambda: sklearn.datasets.load_iris(return_X_y=True),
    "digits": lambda: sklearn.datasets.load_digits(return_X_y=True),
    "wide": wide,
}
CELLS |= {f"{name}-grouped": cell for name, cell in CELLS.items()}


def standardized(x: np.ndarray) -> np.ndarray:
    """Returns features of mean zero and variance one."""
    deviation = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


def glmnet(x: np.ndarray, y: np.ndarray, *, grouped: bool) -> Peer | None:
    """Returns the path of glmnet, or None where it is not there."""
    if shutil.which("Rscript") is None:
        return None
    (n, d), q = x.shape, int(y.max()) + 1
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "x").write_bytes(x.astype(np.float64).tobytes(order="F"))
        (folder / "y").write_bytes(y.astype(np.int32).tobytes())
        code = _GLMNET.format(n=n, d=d, kind="grouped" if grouped else "ungrouped")
        ran = subprocess.run(["Rscript", "-e", code], cwd=folder, capture_output=True, text=True)
        if ran.returncode != 0:
            print(f"glmnet is left out: {ran.stderr.strip()}")
            return None
        seconds, *strengths = np.fromfile(folder / "lambda")
        bias = np.fromfile(folder / "bias").reshape(-1, q)
        shape = len(strengths), d
        w = np.stack([np.fromfile(folder / f"w{c}").reshape(shape) for c in range(q)], axis=2)
    return Peer(seconds, np.array(strengths), w, bias)


def sizes(w: np.ndarray, *, grouped: bool) -> np.ndarray:
    """Returns what l1 penalises of ``[..., d, q]`` weights."""
    return np.linalg.norm(w, axis=-1) if grouped else np.abs(w)


def own_strengths(x: np.ndarray, y: np.ndarray, *, grouped: bool) -> np.ndarray:
    """Returns a hundred strengths, the strongest of which leaves no weights."""
    share = np.bincount(y) / len(y)
    g = x.T @ (share - np.eye(len(share))[y]) / len(y)
    weakest = 1e-2 if len(x) < x.shape[1] else 1e-4
    return sizes(g, grouped=grouped).max() * np.geomspace(1, weakest, 100)


def timed(
    x: np.ndarray, y: np.ndarray, l1: np.ndarray, **options: Any
) -> tuple[float, solvers.Solution]:
    """Returns the seconds of a path, and its solutions."""
    began = time.perf_counter()
    solution = solvers.fit_path(x, y, l2=0.0, l1=l1, **options)
    return time.perf_counter() - began, solution


def excess(
    peer: Peer, x: np.ndarray, y: np.ndarray, least: np.ndarray, *, grouped: bool
) -> np.ndarray:
    """Returns by how much objectives of glmnet are above ``least``, as shares of it."""
    reached = []
    for l1, w, b in zip(peer.strengths, peer.w, peer.b, strict=True):
        o = x @ w + b
        top = o.max(axis=1)
        loss = np.log(np.exp(o - top[:, None]).sum(axis=1)) + top - o[np.arange(len(y)), y]
        reached.append(loss.mean() + l1 * sizes(w, grouped=grouped).sum())
    return np.array(reached) / least - 1


def measured(name: str, args: argparse.Namespace) -> str:
    """Returns a line of the table."""
    x, y = CELLS[name]()
    x, grouped = standardized(x), name.endswith("grouped")
    options = {"tol": args.tol, "grouped": grouped}
    peers = [glmnet(x, y, grouped=grouped) for _ in range(args.repeats)]
    peer = peers[0]
    l1 = own_strengths(x, y, grouped=grouped) if peer is None else peer.strengths
    first, _ = timed(x, y, l1, **options)
    runs = [timed(x, y, l1, **options) for _ in range(args.repeats)]
    seconds, solution = statistics.median(run[0] for run in runs), runs[0][1]
    certified = int(np.sum(solution.status == solvers.Status.CERTIFIED))
    line = [name, "x".join(map(str, x.shape)), str(len(l1)), f"{seconds:.3f}", f"{first:.1f}"]
    line += [f"{certified}", f"{np.sum(solution.passes):.0f}"]
    if args.proximal:
        method = solvers.Proximal(newton=None)
        slow, gradients = timed(x, y, l1, l1_method=method, **options)
        line += [f"{slow:.1f}, {np.sum(gradients.passes):.0f}"]
    if peer is not None:
        theirs = statistics.median(run.seconds for run in peers if run is not None)
        above = excess(peer, x, y, np.subtract(solution.objective, solution.gap), grouped=grouped)
        line += [f"{theirs:.3f}", f"{theirs / seconds:.2f}"]
        line += [f"{np.max(above):.0e}", f"{np.median(above):.0e}"]
    return " | ".join(line)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="NAME")
    parser.add_argument("--tol", type=float, default=1e-3, help="certified relative gap")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--proximal", action="store_true", help="proximal gradients, too")
    args = parser.parse_args()
    header = "cell | shape | strengths | seconds | first call | certified | passes"
    header += " | proximal: seconds, passes" if args.proximal else ""
    print(header + " | glmnet: seconds | ratio | worst excess | median excess", flush=True)
    for name in args.cells:
        print(measured(name, args), flush=True)


if __name__ == "__main__":
    main()
