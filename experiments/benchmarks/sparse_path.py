"""Times paths of l1 strengths beside other packages, on glmnet's own grid.

    python experiments/benchmarks/sparse_path.py
    python experiments/benchmarks/sparse_path.py --cells digits --tol 1e-4

All minimise the mean loss + l1 |W|₁, with a free bias, on features of variance one; the cells with
"grouped" in their names have the norms of features in the place of |W|₁. R's glmnet runs as it is
(`thresh` 1e-7, its own strengths and its own end), in a process of its own that times itself. The
others get these strengths, and their own defaults, too: adelie (groups), and a fit for each
strength, from the one before, of scikit-learn's saga and of cyanure (no groups). What is not
installed is left out; where ``Rscript`` or its package glmnet is not there, the strengths are ours:
a hundred, down to 1e-4 of the largest, or 1e-2 where there are fewer rows than features.

Ours is certified to ``--tol`` at each strength; the first call, with compilation, apart. The table
has medians of ``--repeats``, a line a solver; a peer that takes more than a tenth of ``--budget``
runs once, and one that is not done in the budget says how many strengths it reached. The excess is
that over what our bound leaves, as a share of the objective, in float64; the ratio, its time over
ours.

With ``--proximal``, proximal gradients alone run once, too, to compare the passes.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import sklearn.datasets

import path_peers
from path_peers import Path
from softmax_jax import solvers


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
    path: Path, x: np.ndarray, y: np.ndarray, least: np.ndarray, *, grouped: bool
) -> np.ndarray:
    """Returns by how much objectives of a peer are above ``least``, as shares of it."""
    reached = []
    for l1, w, b in zip(path.strengths, path.w, path.b, strict=True):
        o = x @ w + b
        top = o.max(axis=1)
        loss = np.log(np.exp(o - top[:, None]).sum(axis=1)) + top - o[np.arange(len(y)), y]
        reached.append(loss.mean() + l1 * sizes(w, grouped=grouped).sum())
    return np.array(reached) / least[: len(reached)] - 1


def repeated(run: Callable[[], Path | None], args: argparse.Namespace) -> list[Path]:
    """Returns the runs of a peer: one, if it takes long or is not there."""
    paths = []
    for _ in range(args.repeats):
        path = run()
        if path is None:
            break
        paths.append(path)
        if path.seconds > args.budget / 10:
            break
    return paths


def measured(name: str, args: argparse.Namespace) -> Iterator[str]:
    """Yields the lines of a cell."""
    x, y = CELLS[name]()
    x, grouped = standardized(x), name.endswith("grouped")
    given = {"grouped": grouped, "budget": args.budget}
    found = {"glmnet": repeated(lambda: path_peers.glmnet(x, y, **given), args)}
    own = own_strengths(x, y, grouped=grouped)
    l1 = found["glmnet"][0].strengths if found["glmnet"] else own
    options = {"tol": args.tol, "grouped": grouped}
    first, _ = timed(x, y, l1, **options)
    runs = [timed(x, y, l1, **options) for _ in range(args.repeats)]
    seconds, solution = statistics.median(run[0] for run in runs), runs[0][1]
    certified = int(np.sum(solution.status == solvers.Status.CERTIFIED))
    cell = f"{name} | {'x'.join(map(str, x.shape))} | {len(l1)}"
    passes = f"{certified} certified, {np.sum(solution.passes):,.0f} passes, first call {first:.1f}"
    yield f"{cell} | ours | {seconds:.3f} | | {np.max(solution.relative_gap):.0e} | {passes}"
    if args.proximal:
        method = solvers.Proximal(newton=None)
        slow, gradients = timed(x, y, l1, l1_method=method, **options)
        yield f"{cell} | gradients | {slow:.1f} | | | {np.sum(gradients.passes):,.0f} passes"
    for peer, solve in path_peers.PEERS.items():
        found[peer] = repeated(partial(solve, x, y, l1, **given), args)
    least = np.subtract(solution.objective, solution.gap)
    for peer, paths in found.items():
        if paths:
            theirs = statistics.median(path.seconds for path in paths)
            above = excess(paths[0], x, y, least, grouped=grouped)
            line = f"{cell} | {peer} | {theirs:.3f} | {theirs / seconds:.2f} | {np.max(above):.0e}"
            reached = "" if len(above) == len(l1) else f", {len(above)} strengths"
            yield f"{line} | median {np.median(above):.0e}{reached}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), metavar="NAME")
    parser.add_argument("--tol", type=float, default=1e-3, help="certified relative gap")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--budget", type=float, default=60, help="seconds for a path of a peer")
    parser.add_argument("--proximal", action="store_true", help="proximal gradients, too")
    args = parser.parse_args()
    print("cell | shape | strengths | solver | seconds | ratio | worst excess or gap |", flush=True)
    for name in args.cells:
        for line in measured(name, args):
            print(line, flush=True)


if __name__ == "__main__":
    main()
