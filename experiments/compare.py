"""Compares runs of `experiments/train.py`: one table, and one picture of their curves.

    python experiments/compare.py runs/first runs/second
    python experiments/compare.py runs/* --figure=comparison.png

The table has the settings in which the runs differ, and their scores on test data; of a sweep,
those of its best member, and where data were held out those of its best step. Runs that are not
finished count as far as they went. Those whose files were changed are left out. The figure replaces
no file but an earlier comparison.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from runs import comparison, datasets, files, output, row_plots
from softmax_jax import figures

TITLE = "softmax_jax comparison of runs"
"""Title in the metadata of the picture, by which it is known as a comparison."""


def refuse_other_files(path: pathlib.Path) -> None:
    """Raises FileExistsError if there is a file that is no picture of this script."""
    if path.exists() and TITLE.encode() not in path.read_bytes()[:4096]:
        raise FileExistsError(
            f"--figure={path}: there is another file of that name, which is not to be overwritten"
        )


def main(argv: Sequence[str]) -> None:
    output.outlast_readers()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", nargs="+", type=pathlib.Path, help="folder of a run")
    parser.add_argument(
        "--figure", type=pathlib.Path, default="compare.png", help="the PNG; by default %(default)s"
    )
    args = parser.parse_args(argv)
    try:
        runs = []
        for workdir in args.workdir:
            try:
                runs.append(comparison.read(workdir))
            except (ValueError, OSError, AttributeError) as e:
                print(f"left out: {e}", file=sys.stderr)
        if not runs:
            raise ValueError("there is no run to show")
        print(comparison.text(runs))
        path = args.figure
        if path.suffix != ".png":
            raise ValueError(f"--figure={path}: give the name of a PNG")
        refuse_other_files(path)
        figure = row_plots.compared_curves({datasets.printable(run.name): run.rows for run in runs})
        files.write_atomically(path, figures.to_png(figure, title=TITLE))
    except (ValueError, OSError) as e:
        sys.exit(f"error: {e}")
    print(f"\nthe curves are in {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
