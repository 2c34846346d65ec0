"""Full-batch solvers beside each other: ours, scikit-learn's, cyanure's and plain `optax.lbfgs`.

    python experiments/benchmarks/solvers.py --folder=FOLDER_OF_FASHION_MNIST
    python experiments/benchmarks/solvers.py --parts small
    python experiments/benchmarks/solvers.py --rows=3000 --budget=20 --repeats=1   # a trial

All minimise the same F(W, b) = mean loss + l2/2 |W|², with a free bias, by the translations of
`softmax_jax.conventions`. Three parts:

* ``single``: the training images of Fashion-MNIST at l2 = 1e-4, seconds until F is within 1e-2,
  1e-3, 3e-4, 1e-4 and 1e-6 of its minimum, relatively.
* ``path``: the same at 16 strengths from 1e-6 to 1e-1: `fit_path` to a certified gap of 1e-3, and
  scikit-learn with warm starts from strong to weak until its objectives are as good.
* ``small``: iris, where a call costs more than its arithmetic.

How it is measured:

* **Processes.** Every fit of a peer has a process of its own, so do first calls of ours, and only
  the call of ``fit`` is timed. Ours and `optax.lbfgs` are shown both for the first call of a
  process, which compiles, and for later calls of it, which do not. No compilation is cached on
  disk.
* **Objectives** are computed from the parameters that come back, in float64, by one NumPy function
  for all. The minimum they are compared with is the lower bound that our certificate gives at
  ``tol=1e-8``, so that an excess is overstated by 1e-8 at most.
* **Just met.** Each solver runs from scratch with growing limits of iterations (its own tolerance
  out of the way), or falling tolerances where it has no such limit; then limits in between are
  tried where the excess would just be as wanted. The shortest time of all runs that are within a
  target counts for it. So nobody pays for more than was asked, as if the right limit were known.
  ``ours, certified`` is what one gets without that knowledge: ``tol`` is the target.
* **Medians** of ``--repeats`` runs for ours, and for the best of each package at each target.
* **`optax.lbfgs`** is ``fit(method="lbfgs")``, so it has our passes over uint8, our centered
  features and our start from samples of the rows: what is compared is the method.
* **Data.** uint8 with a scale for ours; for scikit-learn and cyanure x / 255 as float32, for one
  row of cyanure's float64.
* **Memory**: resident memory at its peak during the fit, and how much of it came with the fit
  (with the compiler, for ours). Measured where there is ``/proc``.
* **Path.** At each strength scikit-learn's tolerance falls by steps of √10 until the objective is
  at most ours times 1.001 (both are then certified alike) or times 1 + 1e-6. newton-cg continues
  from one step to the next, by which it loses nothing, and calls that find nothing to do are not
  counted. lbfgs would forget its memory, so only the call that first meets the target is counted,
  begun at the solution of the strength before. The next strength starts from the better of the two
  solutions, for which the row of 1.001 does not pay. All three favour the peer.

cyanure's intercept is not penalised: its optimum has the same F and bias as the others'.

On two cores all of it takes one and a half to two hours, most of it for what is slow: with
``--solvers newton-cg cyanure`` it is less than one. ``small`` takes a minute.
"""

import argparse
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from solver_comparison.measures import write_data
from solver_comparison.path import path
from solver_comparison.record import machine, plain
from solver_comparison.single import single
from solver_comparison.small import small
from solver_comparison.workers import work

PARTS = {"single": single, "path": path, "small": small}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the flags; wrong ones end the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        default="",
        help="with the IDX files of Fashion-MNIST; by default the one in $SOFTMAX_JAX_DATA",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument(
        "--solvers", nargs="+", default=[], metavar="WORD", help="only peers with one in the name"
    )
    parser.add_argument("--rows", type=int, default=0, help="only the first ones, for a trial")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is taken")
    parser.add_argument(
        "--budget",
        type=float,
        default=200,
        metavar="SECONDS",
        help="the longest fit of a peer that is waited for",
    )
    parser.add_argument("--json", default="", metavar="FILE", help="where to put all numbers")
    parser.add_argument("--figure", default="", metavar="FILE", help="where to put the PNG")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.repeats < 1 or args.budget <= 0 or args.rows < 0:
        parser.error("--repeats and --budget must be positive, --rows not negative")
    return args


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    if args.worker:
        work()
        return
    print(machine())
    report: dict[str, Any] = {"machine": machine(), "flags": vars(args)}
    with tempfile.TemporaryDirectory() as scratch:
        images, flowers = f"{scratch}/images.npz", f"{scratch}/flowers.npz"
        if {"single", "path"} & set(args.parts):
            from softmax_jax import data

            split = data.load("fashion_mnist", folder=args.folder).train
            x, y = split.x[: args.rows or None], split.targets[: args.rows or None]
            write_data(images, x, y, 255.0)
            print(f"Fashion-MNIST, training images: {x.shape[0]:,} x {x.shape[1]}, 10 classes")
        if "small" in args.parts:
            from sklearn.datasets import load_iris

            x, y = load_iris(return_X_y=True)
            write_data(flowers, x, y)
        for name, part in PARTS.items():
            if name in args.parts:
                report[name] = part(args, flowers if name == "small" else images)
                if args.json:
                    text = json.dumps(plain(report), indent=1, allow_nan=False)
                    pathlib.Path(args.json).write_text(text + "\n")
    if args.json:
        print(f"all numbers are in {args.json}")


if __name__ == "__main__":
    main(sys.argv[1:])
