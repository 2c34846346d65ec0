"""Certified fits for one strength of regularisation or a path, and what is written of them."""

import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from runs import datasets, files, folders, row_plots, settings, table
from softmax_jax import data, evaluation, figures, metrics, processes, solvers
from softmax_jax.data import Data
from softmax_jax.model import Params

TOP = 5
"""Most probable classes among which the top-k accuracy looks for the right one."""
HEADS = [
    "l2",
    "l1",
    "objective",
    "gap / objective",
    "passes",
    "train loss",
    "test loss",
    "accuracy",
    "non-zero",
    "",
]
WIDTHS = (10, 10, 11, 17, 8, 12, 11, 10, 10)


class Results(NamedTuple):
    """Solutions of a run, in numbers."""

    rows: list[dict[str, Any]]
    """Lines of path.jsonl, one a pair of strengths."""
    summary: dict[str, Any]


def fit(config: settings.Fit, workdir: pathlib.Path) -> Results:
    """Solves all problems, and writes the results to ``workdir``."""
    dataset = folders.start(config, workdir)
    l1, l2 = (grid.ravel() for grid in np.meshgrid(config.l1, config.l2, indexing="ij"))

    start = time.perf_counter()
    solutions = solve(config, dataset, l2, l1)
    fitted = time.perf_counter()
    train_data, test_data = datasets.batches(dataset)
    params = Params(*(a.astype(np.float32) for a in solutions.params))
    train_scores, test_scores = (scores(params, batch) for batch in (train_data, test_data))
    evaluated = time.perf_counter()

    rows = rows_of(solutions, l2, l1, train_scores, test_scores)
    summary = {
        **summarized(rows),
        "tol": config.tol,
        "fit_seconds_with_compilation": fitted - start,
        "evaluation_seconds_with_compilation": evaluated - fitted,
        "device": jax.devices()[0].device_kind,
    }
    write_results(workdir, dataset, solutions, rows, summary)
    return Results(rows, summary)


def rows_of(
    solutions: solvers.Solution,
    l2: np.ndarray,
    l1: np.ndarray,
    train_scores: Sequence[dict[str, float]],
    test_scores: Sequence[dict[str, float]],
) -> list[dict[str, Any]]:
    """Returns the lines of path.jsonl, one a pair of strengths."""
    each = [jax.tree.map(lambda a, i=i: a[i], solutions) for i in range(len(l2))]
    return [
        {
            "l2": float(l2[i]),
            "l1": float(l1[i]),
            "objective": float(solution.objective),
            "relative_gap": files.finite_or_none(solution.relative_gap),
            "status": str(solution.status),
            "reason": str(solution.reason),
            "passes": float(solution.passes),
            "nonzero_weights": int(solution.nonzeros.sum()),
            "weight_norm": float(np.linalg.norm(solution.params.w)),
            **in_columns("train", train_scores[i]),
            **in_columns("test", test_scores[i]),
        }
        for i, solution in enumerate(each)
    ]


def summarized(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the summary says of all rows."""
    gaps = [row["relative_gap"] for row in rows]
    return {
        "problems": len(rows),
        "certified": sum(row["status"] == solvers.Status.CERTIFIED for row in rows),
        "largest_relative_gap": None if None in gaps else max(gaps),
        "passes": sum(row["passes"] for row in rows),
        # The test data like it best, so that their score of it is too good.
        "lowest_test_loss": min(rows, key=test_loss),
    }


def solve(
    config: settings.Fit, dataset: data.Dataset, l2: np.ndarray, l1: np.ndarray
) -> solvers.Solution:
    """Calls `solvers.fit_path` under a progress bar."""
    # Zeros, so that news without a problem finished are shown too, however soon they come.
    with tqdm(
        total=len(l2), desc="solved", miniters=0, mininterval=0, disable=not processes.is_first()
    ) as bar:

        def show(progress: solvers.Progress) -> None:
            bar.set_postfix_str(
                f"furthest: {progress.passes:.0f} passes, gap {progress.relative_gap:.1e}",
                refresh=False,
            )
            bar.update(progress.solved - bar.n)

        solutions = solvers.fit_path(
            dataset.train.x,
            dataset.train.targets,
            l2=l2,
            l1=l1,
            grouped=config.grouped,
            num_classes=len(dataset.class_names),
            scale=dataset.train.scale,
            tol=config.tol,
            max_passes=config.max_passes,
            callback=show,
        )
        certified = np.sum(solutions.status == solvers.Status.CERTIFIED)
        bar.set_postfix_str(
            f"{certified} certified, gap {np.max(solutions.relative_gap):.1e}", refresh=False
        )
        bar.update(len(l2) - bar.n)
    return solutions


def scores(params: Params, batch: Data) -> list[dict[str, float]]:
    """Evaluates each of the stacked parameters; one program serves all."""
    return [
        metrics.summarize(evaluation.evaluate(Params(w, b), batch, k=TOP))
        for w, b in zip(*params, strict=True)
    ]


def in_columns(split: str, score: dict[str, float]) -> dict[str, float | None]:
    """Returns the scores on a split by the names of their columns."""
    return {
        f"{split}_loss": files.finite_or_none(score["nats"]),
        f"{split}_accuracy": score["accuracy"],
        f"{split}_top_{TOP}_accuracy": score["top_k_accuracy"],
        f"{split}_brier": score["brier"],
    }


def test_loss(row: dict[str, Any]) -> float:
    """Returns the test loss of a row, infinite where a class was never trained on."""
    return np.inf if row["test_loss"] is None else row["test_loss"]


def write_results(
    workdir: pathlib.Path,
    dataset: data.Dataset,
    solutions: solvers.Solution,
    rows: Sequence[dict[str, Any]],
    summary: dict[str, Any],
) -> None:
    """Writes the parameters, the table, the pictures, and last, for a whole run, the summary."""
    params = solutions.params
    best = min(range(len(rows)), key=lambda i: test_loss(rows[i]))
    strengths = {name: [row[name] for row in rows] for name in ("l2", "l1")}
    datasets.save_params(workdir, dataset, params, best=best, about=strengths)
    files.write_rows(workdir / "path.jsonl", rows)
    if len(rows) > 1:
        files.write_picture(workdir / "path.png", row_plots.path_curves(rows))
        if min(strengths["l1"]) > 0 and len(set(strengths["l2"])) == 1:
            picture = figures.coefficient_path(solutions, dataset.class_names)
            files.write_picture(workdir / "coefficients.png", picture)
    elif dataset.image_shape is not None:
        images = figures.weight_images(params.w[0], dataset.image_shape, dataset.class_names)
        files.write_picture(workdir / "weights.png", images)
    files.write_json(workdir / "summary.json", summary)


def report(results: Results) -> str:
    """Returns the table of a run, and below it what must not be overlooked."""
    rows, summary = results
    lines = [
        table.text([HEADS, *map(cells, rows)], widths=WIDTHS, left=(len(WIDTHS),), gap=""),
        "losses in nats, accuracy on test data, gap and objective of the training data",
        "",
    ]
    lines += [
        f"{marked(row['status'])} at l2 = {row['l2']:.3g}, l1 = {row['l1']:.3g}: {row['reason']}"
        for row in rows
        if row["status"] != solvers.Status.CERTIFIED
    ]
    lines.append(
        f"{summary['certified']} of {summary['problems']} certified to a relative gap of "
        f"{summary['tol']:g}, in {summary['fit_seconds_with_compilation']:.1f} s with compilation"
    )
    best = summary["lowest_test_loss"]
    if len(rows) > 1:
        lines.append(
            f"lowest test loss: {table.digits(best['test_loss'], 'inf')} at l2 = {best['l2']:.3g}, "
            f"l1 = {best['l1']:.3g}"
        )
    return "\n".join(lines)


def cells(row: dict[str, Any]) -> list[str]:
    """Returns the line of the table for a pair of strengths."""
    gap = row["relative_gap"]
    return [
        f"{row['l2']:.3g}",
        f"{row['l1']:.3g}",
        f"{row['objective']:.6f}",
        "unknown" if gap is None else f"{gap:.1e}",
        f"{row['passes']:.0f}",
        table.digits(row["train_loss"], "inf"),
        table.digits(row["test_loss"], "inf"),
        f"{row['test_accuracy']:.4f}",
        f"{row['nonzero_weights']:,}",
        f"  {marked(row['status'])}",
    ]


def marked(status: str) -> str:
    """Returns a status, in capitals if it is no certificate."""
    return status if status == solvers.Status.CERTIFIED else status.upper()
