"""Features that stay in files beside features in memory: time, passes and peak memory of one fit.

    python experiments/benchmarks/out_of_core.py                # 1,000,000 x 1,024 x 10: 4 GB
    python experiments/benchmarks/out_of_core.py --rows 100000  # a trial

Shards of float32 are written to a temporary folder: normal features around means of the classes,
their scales falling as those of frozen features do. Then `fit` solves them to a certified 1e-3 from
the files, with little memory for features, and from an array. Each fit has a process of its own,
whose peak of resident memory is told, with Python, JAX and the compiler in it. Seconds are those of
the second call, in which nothing is compiled; those of the first are told apart. What the file
system has in its cache is read from there, so that this measures the library and not a disk: one
that is slower takes as long as it takes to read the files twice a pass.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from solver_comparison.measures import Memory

_MIB = 2**20
_SHARDS = 8


def write_shards(folder: pathlib.Path, n: int, d: int, q: int) -> None:
    """Writes features and class ids."""
    rng = np.random.default_rng(0)
    means = 0.06 * rng.standard_normal((q, d)).astype(np.float32)
    scale = (5 * np.arange(1, d + 1) ** -0.5).astype(np.float32)
    ids = rng.integers(q, size=n)
    np.save(folder / "ids.npy", ids)
    for i, own in enumerate(np.array_split(ids, _SHARDS)):
        x = rng.standard_normal((len(own), d), dtype=np.float32)
        x += means[own]
        x *= scale
        np.save(folder / f"features-{i}.npy", x)


def solve(folder: pathlib.Path, max_bytes: int | None) -> dict[str, float | str]:
    """Fits twice, in memory if there is no limit, and returns what was measured."""
    from softmax_jax import fit
    from softmax_jax.data import open_rows

    ids, x = np.load(folder / "ids.npy"), open_rows(folder / "features-*.npy")
    rows = x[:] if max_bytes is None else x
    seconds = []
    peaks = []
    for _ in range(2):
        begun = time.perf_counter()
        with Memory() as memory:
            solution = fit(rows, ids, l2=1 / len(ids), tol=1e-3, max_bytes=max_bytes or 1)
        seconds.append(time.perf_counter() - begun)
        peaks.append(memory.peak)
    return {
        "first": seconds[0],
        "seconds": seconds[1],
        "passes": float(solution.passes),
        "objective": float(solution.objective),
        "gap": float(solution.gap / solution.objective),
        "status": str(solution.status),
        "peak": peaks[0],
    }


def main(arguments: argparse.Namespace) -> None:
    """Writes shards, and solves them in processes of their own."""
    n, d, q = arguments.rows, arguments.features, arguments.classes
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = pathlib.Path(name)
        write_shards(folder, n, d, q)
        print(f"{n:,} x {d:,} x {q}: {4 * n * d / 1e9:.2f} GB in {_SHARDS} files; certified 1e-3")
        found = {}
        for kind, limit in (("in files", arguments.mebibytes * _MIB), ("in memory", None)):
            command = [sys.executable, __file__, "--solve", name, "--limit", str(limit or 0)]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            found[kind] = one = json.loads(ran.stdout)
            print(
                f"{kind:10} {one['status']}, gap {one['gap']:.1e}, objective "
                f"{one['objective']:.6f}: {one['passes']:.1f} passes, {one['seconds']:.1f} s "
                f"(first call {one['first']:.1f} s), peak {one['peak']:,.0f} MiB",
                flush=True,
            )
    files, memory = found["in files"], found["in memory"]
    share = (files["seconds"] / files["passes"]) / (memory["seconds"] / memory["passes"])
    print(
        f"in files it takes {files['seconds'] / memory['seconds']:.2f} times as long, "
        f"{share:.2f} times a pass, with {files['peak'] / memory['peak']:.2f} of the memory"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=1_024)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument(
        "--mebibytes", type=int, default=16, help="memory for features (default: 16)"
    )
    parser.add_argument("--folder", help="where to write the shards (default: the system's)")
    parser.add_argument("--solve", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.solve:
        print(json.dumps(solve(given.solve, given.limit or None)))
    else:
        main(given)
