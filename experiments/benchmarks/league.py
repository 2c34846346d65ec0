"""A league table of solvers of softmax regression, over problems of many shapes.

    python experiments/benchmarks/league.py --quick          # about three minutes on two cores
    python experiments/benchmarks/league.py --cells text tall
    python experiments/benchmarks/league.py                  # all cells, which takes hours

All solvers minimise the same F(W, b) = mean loss + l2/2 |W|², with a free bias, by the translations
of `softmax_jax.conventions`; l2 is one over the number of rows, but for the cells that say 1e-4.
The table has a line a cell: seconds until F is within 1e-3 and 1e-5 of its minimum, relatively, for
the best peer and for ours, and the ratio of the two. The figure shows the ratios. Cells are

* data sets: ``iris``, ``digits``, ``fashion-mnist`` (where its IDX files are);
* ``frozen-ROWSxFEATURESxCLASSES``, which imitate features of a frozen network;
* ``text`` and ``hashed-text``, which are sparse;
* ``binary``, ``tall``, ``wide``, and ``badly-scaled`` with a date and near copies of columns;
* ``elimination``, from 25 columns to one, a fit for each width;
* ``many-frozen`` and ``many-small``, 20 and 1,000 problems, for peers one after the other.

How it is measured:

* **Ours** is `softmax_jax.solvers.fit`, or `fit_many`, with ``tol`` as the target: what comes back
  is certified, and counts only then. The time is that of the whole call, NumPy to NumPy.
  The table has later calls of a process; the first call of one, to the smaller target; and the
  first call of one with a folder of compiled programs that an earlier process filled.
* **Peers** are scikit-learn's newton-cholesky (up to 4,000 parameters), newton-cg and lbfgs;
  cyanure; snapml (two classes); R's glmnet (below 20,000 rows). Those that are not installed are
  left out. Each runs with growing limits of iterations, its own tolerance out of the way, until it
  just meets the target; the lowest limit that does counts, as if it were known. Each process fits a
  few rows before, and repeats fits of less than two seconds, of which the first is left out. A peer
  is not waited for longer than one and a half times what another took to the smaller target, as the
  best is wanted.
* **scikit-learn as it is** is `LogisticRegression` with ``C`` and nothing else: its time, and by
  how much its objective is above the minimum.
* **Objectives** are computed in float64 by one NumPy function for all. The minimum is the lower
  bound of ours at ``tol=1e-8``, and where that is no proof to 1e-6 the best objective of ours
  and scikit-learn's.
* **Several problems** count as one: the seconds of all, and the worst excess of any.
* **Medians** of ``--repeats`` fresh processes, for ours and for the best peer; fewer where they
  take longer than four times the budget in all.
* **Not met**: a fit longer than ``--budget`` seconds. It counts as the budget in the ratio, which
  is then a bound (">" or "<").
* **Memory** is what is resident at the peak of a fit, features and libraries included.

It takes a machine that has nothing else to do: threads that wait for one another take several times
as long, by different factors for different solvers. The record has all runs, to see the spread.

Results go into the file of ``--json`` cell by cell, and cells that are there already are kept (if
with as many repeats and as long a budget), so that it can be stopped and continued. The table and
the figure have all cells of the file.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from league_table import record
from league_table.cells import table
from league_table.measure import measure
from league_table.peers import PEERS
from league_table.table import markdown
from league_table.workers import WORKERS
from solver_comparison.peers import chosen_peers
from solver_comparison.processes import progress
from solver_comparison.record import machine
from solver_comparison.workers import work


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the flags; wrong ones end the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", nargs="+", metavar="NAME", help="by default all")
    parser.add_argument("--quick", action="store_true", help="few cells, repeats and seconds")
    parser.add_argument("--again", action="store_true", help="measure cells that are there already")
    parser.add_argument(
        "--folder",
        default="",
        help="with the IDX files of Fashion-MNIST; by default the one in $SOFTMAX_JAX_DATA",
    )
    parser.add_argument(
        "--solvers", nargs="+", default=[], metavar="WORD", help="only peers with one in the name"
    )
    parser.add_argument("--repeats", type=int, help="of which the median is taken: 5, quick 3")
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="of the longest fit: 300, quick 5"
    )
    parser.add_argument("--json", default="league.json", metavar="FILE", help="for all numbers")
    parser.add_argument("--figure", default="league.png", metavar="FILE", help="for the PNG")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.repeats = (3 if args.quick else 5) if args.repeats is None else args.repeats
    args.budget = (5.0 if args.quick else 300.0) if args.budget is None else args.budget
    if args.repeats < 1 or args.budget <= 0:
        parser.error("--repeats and --budget must be positive")
    return args


def main(argv: Sequence[str]) -> None:
    args = parse(argv)
    if args.worker:
        work(WORKERS)
        return
    if os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
        progress("the machine has other work, which times and ratios depend on")
    cells = table(args.folder)
    if "fashion-mnist" not in cells:
        progress("fashion-mnist: left out, as its IDX files are not here; --folder can name them")
    chosen = args.cells or [name for name, cell in cells.items() if cell.quick or not args.quick]
    if unknown := set(chosen) - set(cells):
        sys.exit(f"no cells {', '.join(sorted(unknown))}; there are {', '.join(cells)}")
    peers = chosen_peers(args.solvers, PEERS)
    found = record.read(args.json)
    for name in chosen:
        if not args.again and record.is_kept(found, name, budget=args.budget, repeats=args.repeats):
            progress(f"{name}: kept from {args.json}")
            continue
        try:
            result = measure(name, cells[name], peers, budget=args.budget, repeats=args.repeats)
        except RuntimeError as e:
            progress(f"{name}: left out: {e}")
            continue
        found = record.merged(found, name, result, machine())
        record.write(args.json, found)
    report(args, {name: found["cells"][name] for name in cells if name in found["cells"]})


def report(args: argparse.Namespace, results) -> None:
    """Prints the table, and draws the figure."""
    from league_table.picture import draw
    from softmax_jax import figures

    print(machine(), markdown(results), sep="\n\n")
    pathlib.Path(args.figure).write_bytes(figures.to_png(draw(results), title="League of solvers"))
    print(f"\nall numbers are in {args.json}, the figure is in {args.figure}")


if __name__ == "__main__":
    main(sys.argv[1:])
