"""The cost of labels in bits: compressed to a file, and sent online."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from runs import datasets, files, folders, optimizers, settings, table
from softmax_jax import data, evaluation, figures, information, metrics, solvers
from softmax_jax.codelength import coding, online
from softmax_jax.codelength.online import Codelength
from softmax_jax.model import Params


def codelength(config: settings.Codelength, workdir: pathlib.Path) -> dict[str, Any]:
    """Measures all, and returns what it also writes to summary.json."""
    optimizer = optimizers.make(config.optimizer, lambda step: 1.0)
    dataset = folders.start(config, workdir)
    if dataset.train.targets.ndim != 1 or dataset.test.targets.ndim != 1:
        raise ValueError("config.data: targets are probabilities; only class ids can be coded")
    summary = compressed(config, dataset, workdir)
    curves, controls = sent_online(config, dataset, optimizer)
    summary["online"] = {
        "labels": len(dataset.train.x),
        "uniform_bits": curves["refitted"].uniform,
        **{
            way: {
                "bits": curves[way].total,
                "compression": curves[way].compression,
                "control_bits": controls[way].total,
                "selectivity_bits": controls[way].total - curves[way].total,
            }
            for way in curves
        },
    }
    rows = [
        {"code": way, "control": some is controls, "seen": int(seen), "bits": float(bits)}
        for some in (curves, controls)
        for way, curve in some.items()
        for seen, bits in zip(curve.seen, curve.bits, strict=True)
    ]
    files.write_rows(workdir / "codelength.jsonl", rows)
    picture = figures.codelength_curves(curves, controls)
    files.write_picture(workdir / "codelength.png", picture)
    files.write_json(workdir / "summary.json", summary)
    return summary


def compressed(
    config: settings.Codelength, dataset: data.Dataset, workdir: pathlib.Path
) -> dict[str, Any]:
    """Writes the test labels to a file, reads them back, and says what they cost."""
    q, scale = len(dataset.class_names), dataset.train.scale
    solution = solvers.fit(
        *dataset.train[:2], l2=config.l2, num_classes=q, scale=scale, tol=config.tol
    )
    params = Params(*(jnp.asarray(a, jnp.float32) for a in solution.params))
    x, labels = dataset.test[:2]
    nats = metrics.summarize(evaluation.evaluate(params, datasets.batches(dataset)[1]))["nats"]
    bits = float(information.to_bits(nats)) * len(labels)
    content = coding.compress(params, x, labels, scale=scale)
    path = workdir / "labels.smxl"
    files.write_atomically(path, content)
    datasets.save_params(workdir, dataset, params)
    decoded = coding.decompress(path.read_bytes(), params, x, scale=scale)
    if not np.array_equal(decoded, labels):
        raise ValueError(f"{path}: other labels were decoded than were coded")
    shares = jnp.bincount(jnp.asarray(labels), length=q) / len(labels)
    marginal = float(information.entropy(shares, unit="bits")) * len(labels)
    uniform = len(labels) * float(np.log2(q))
    return {
        "fit": {"status": str(solution.status), "relative_gap": float(solution.relative_gap)},
        "file": {
            "labels": len(labels),
            "uniform_bits": uniform,
            "marginal_bits": marginal,
            "loss_bits": files.finite_or_none(bits),
            "codelength_bits": coding.codelength(params, x, labels, scale=scale),
            "bits": 8 * len(content),
            "bytes": len(content),
            "header_bytes": coding.HEADER_BYTES,
            "overhead_bits": files.finite_or_none(8 * len(content) - bits),
            "compression": uniform / (8 * len(content)),
        },
    }


def sent_online(
    config: settings.Codelength, dataset: data.Dataset, optimizer: Any
) -> list[dict[str, Codelength]]:
    """The training labels with both ways to learn, and the same of the control task."""
    order_key, control_key, pass_key = jax.random.split(jax.random.key(config.seed), 3)
    n, q = len(dataset.train.x), len(dataset.class_names)
    order = np.asarray(jax.random.permutation(order_key, n))
    x, labels = dataset.train.x[order], dataset.train.targets[order]
    ends = online.block_ends(n, config.percent)
    found = []
    with tqdm(total=2 * len(ends), unit="block", desc="sending labels") as bar:
        for task in (labels, online.control_labels(control_key, labels)):
            common: Any = {"num_classes": q, "scale": dataset.train.scale}
            refitted = online.refit(
                x,
                task,
                ends=ends,
                precision=config.precision,
                tol=config.tol,
                callback=lambda seen: bar.update(),
                **common,
            )
            bar.update()  # the first block, for which nothing is fitted
            one_pass = online.stream(
                x,
                task,
                optimizer=optimizer,
                learning_rate=config.learning_rate,
                batch_size=config.batch_size,
                key=pass_key,
                **common,
            )
            found.append({"refitted": refitted, "one pass": one_pass})
    return found


def report(summary: dict[str, Any]) -> str:
    """Returns the tables: of the file, and of the labels sent online."""
    file, sent = summary["file"], summary["online"]
    return "\n".join([*file_report(file), "", online_report(sent)])


def file_report(file: dict[str, Any]) -> list[str]:
    """Returns what the test labels cost, line by line."""
    n = file["labels"]
    cells = [[f"{n:,} test labels", "bits", "bytes", "bits/label"]]
    for name, key in (
        ("uniform code", "uniform_bits"),
        ("entropy of their marginal", "marginal_bits"),
        ("loss", "loss_bits"),
        ("file", "bits"),
    ):
        bits = file[key]
        costs = ["infinite", "", ""]
        if bits is not None:
            costs = [f"{bits:,.0f}", f"{bits / 8:,.1f}", f"{bits / n:.4f}"]
        cells.append([name, *costs])
    lines = [table.text(cells, widths=(34, 12, 12, 12), left=(0,), gap="")]
    overhead = file["overhead_bits"]
    if overhead is not None:
        coder = overhead / 8 - file["header_bytes"]
        lines.append(
            f"overhead of {overhead / 8:.1f} bytes: {file['header_bytes']} are the header, "
            f"{coder:.1f} those of the coder"
            + (f", as no label costs more than {coding.PRECISION} bits" if coder < 0 else "")
        )
    ratio = file["compression"]
    return [*lines, f"{ratio:.2f} times smaller than the uniform code; decoded, and the same"]


def online_report(sent: dict[str, Any]) -> str:
    """Returns a table of what the training labels cost, and those of the control task."""
    cells = [
        [
            f"{sent['labels']:,} training labels, online",
            "bits",
            "of uniform",
            "control",
            "selectivity",
        ],
        ["uniform code", f"{sent['uniform_bits']:,.0f}", f"{1:.1%}", "", ""],
    ]
    for way in ("refitted", "one pass"):
        scores = sent[way]
        cells.append(
            [
                way,
                f"{scores['bits']:,.0f}",
                f"{1 / scores['compression']:.1%}",
                f"{scores['control_bits']:,.0f}",
                f"{scores['selectivity_bits']:,.0f}",
            ]
        )
    return table.text(cells, widths=(34, 12, 12, 12, 13), left=(0,), gap="")
