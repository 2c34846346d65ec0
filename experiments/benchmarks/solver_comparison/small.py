"""The part ``small``: a problem of which a call costs more than its arithmetic."""

import argparse
import statistics
import time
from typing import Any

from .peers import OURS, strengths_for
from .processes import STARTUP, answers_of, progress
from .tables import print_table


def small(args: argparse.Namespace, data: str) -> dict[str, Any]:
    """Measures milliseconds a fit of iris, and seconds for a process with one, and prints them."""
    l2 = 1 / 150
    results = {}
    table = [["", "ms a later fit", "ms the first", "s a process", "relative excess"]]
    task = {"data": data, "l2": l2, "strengths": strengths_for("scikit-learn", l2, 150)}
    (reference,) = answers_of({**task, "do": "ours", "tols": [1e-12]}, STARTUP)
    for package in (OURS, "scikit-learn lbfgs"):
        for tol in (1e-4, 1e-8):
            task |= {"do": "iris", "package": package, "tol": tol}
            processes = []
            for _ in range(args.repeats):
                start = time.perf_counter()
                (once,) = answers_of({**task, "fits": 1}, STARTUP)
                processes.append((time.perf_counter() - start, 1e3 * once["seconds"][0]))
            (many,) = answers_of({**task, "fits": 201}, STARTUP)
            process, first = (statistics.median(times) for times in zip(*processes, strict=True))
            result = {
                "milliseconds": 1e3 * statistics.median(many["seconds"][1:]),
                "first": first,
                "process": process,
                "excess": many["objective"] / reference["lower"] - 1,
            }
            name = f"{package}, tol={tol:.0e}"
            progress(f"small: {name}: {result['milliseconds']:.2f} ms, {process:.2f} s a process")
            results[name] = result
            formats = (".2f", ".1f", ".2f", ".1e")
            shown = [format(v, f) for v, f in zip(result.values(), formats, strict=True)]
            table.append([name, *shown])
    print(
        f"\nSmall: iris, 150 x 4, 3 classes, l2 = {l2:.3g}; a process imports, fits once and ends"
    )
    print_table(table)
    return results
