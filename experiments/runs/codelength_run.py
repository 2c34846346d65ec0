"""The cost of labels in bits: compressed to a file, and sent online."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from runs import datasets, files, folders, optimizers, settings
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
            "loss_bits": bits if np.isfinite(bits) else None,
            "codelength_bits": coding.codelength(params, x, labels, scale=scale),
            "bits": 8 * len(content),
            "bytes": len(content),
            "header_bytes": coding.HEADER_BYTES,
            "overhead_bits": 8 * len(content) - bits if np.isfinite(bits) else None,
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
    """The tables."""
    file, sent = summary["file"], summary["online"]

    def line(name: str, bits: float | None, labels: int) -> str:
        if bits is None:
            return f"{name:34}{'infinite':>12}"
        return f"{name:34}{bits:12,.0f}{bits / 8:12,.1f}{bits / labels:12.4f}"

    n, title = file["labels"], f"{sent['labels']:,} training labels, online"
    overhead = file["overhead_bits"]
    lines = [
        f"{f'{n:,} test labels':34}{'bits':>12}{'bytes':>12}{'bits/label':>12}",
        line("uniform code", file["uniform_bits"], n),
        line("entropy of their marginal", file["marginal_bits"], n),
        line("loss", file["loss_bits"], n),
        line("file", file["bits"], n),
    ]
    if overhead is not None:
        coder = overhead / 8 - file["header_bytes"]
        lines.append(
            f"overhead of {overhead / 8:.1f} bytes: {file['header_bytes']} are the header, "
            f"{coder:.1f} those of the coder"
            + (f", as no label costs more than {coding.PRECISION} bits" if coder < 0 else "")
        )
    lines += [
        f"{file['compression']:.2f} times smaller than the uniform code; decoded, and the same",
        "",
        f"{title:34}{'bits':>12}{'of uniform':>12}{'control':>12}{'selectivity':>13}",
        f"{'uniform code':34}{sent['uniform_bits']:12,.0f}{1:12.1%}",
    ]
    for way in ("refitted", "one pass"):
        scores = sent[way]
        lines.append(
            f"{way:34}{scores['bits']:12,.0f}{1 / scores['compression']:12.1%}"
            f"{scores['control_bits']:12,.0f}{scores['selectivity_bits']:13,.0f}"
        )
    return "\n".join(lines)
