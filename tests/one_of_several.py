"""Does all that a mesh is for, and writes it to a file: a process of processes_test.py.

    python one_of_several.py ADDRESS NUMBER PROCESS FOLDER

Of one process, without joining any other.
"""

import os
import pathlib
import sys

os.environ["NPROC"] = "32"

import jax
import numpy as np
import optax

from softmax_jax import (
    Data,
    Params,
    checkpoint,
    data,
    evaluate,
    fit,
    linear_cross_entropy,
    parallel,
    processes,
    training,
)

N, D, Q = 2003, 6, 5


def results(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns what comes of a fit, of arrays and of files, of training, and of a head."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)).astype(np.float32)
    y = (x @ rng.normal(size=(D, Q)) + rng.gumbel(size=(N, Q))).argmax(axis=1)
    read = []

    def rows(numbers):
        read.extend(numbers.tolist())
        return x[numbers]

    found = {}
    stored = data.StoredRows(x.shape, x.dtype, rows)
    for name, features, max_bytes in (
        ("array", x, 2**20),
        ("read", stored, 2**14),  # not small, but within the memory of all processes
        ("streamed", stored, 2**10),
    ):
        read.clear()
        solution = fit(features, y, l2=1e-2, block_size=64, tol=1e-6, max_bytes=max_bytes * 2)
        assert str(solution.status) == "certified"
        found |= {f"{name} w": solution.params.w, f"{name} objective": solution.objective}
        found[f"{name} rows"] = np.unique(np.array(read, int))
    optimizer = optax.adam(1e-2)
    for name, features in (("trained", x), ("trained on files", stored)):
        state = training.init(Params(np.zeros((D, Q)), np.zeros(Q)), optimizer)
        state = parallel.laid_out(state, Q)
        examples = parallel.spread(Data(features, y), parts=8)
        state, scores = training.make_epoch(optimizer, batch_size=64, parts=8)(state, examples)
        found |= {f"{name} loss": np.asarray(scores.loss), f"{name} w": state.params.w}
        measured = evaluate(state.params, examples, k=2)
        found |= {
            f"{name} correct": measured.correct,
            f"{name} nats": measured.negative_log_likelihood,
        }
    found = processes.on_host(found)
    with checkpoint.open_folder(folder / f"{jax.process_index()}") as checkpoints:
        checkpoint.save(checkpoints, 1, state, extra={}, score=0)
        checkpoint.finish(checkpoints)
        restored = checkpoint.restore(checkpoints, processes.on_host(state))
    assert (restored is None) == (not processes.is_first())
    if restored is not None:
        np.testing.assert_array_equal(restored.state.params.w, found["trained on files w"])
    out = linear_cross_entropy(x, found["array w"], np.zeros(Q), y, extras=("argmax", "entropy"))
    whole = processes.on_host({name: getattr(out, name) for name in ("loss", "argmax", "entropy")})
    return found | {f"head {name}": a for name, a in whole.items()}


def main(address: str, number: int, process: int, folder: pathlib.Path) -> None:
    """Joins the others, and writes what was found."""
    jax.config.update("jax_num_cpu_devices", 8 // number)
    if number > 1:
        processes.start(address, number, process)
    assert jax.process_count() == number
    # Devices of a row of classes are of one process, or of two.
    for shape in ((4, 2), (2, 4)):
        devices = np.array(jax.devices()).reshape(shape[::-1]).T if shape == (2, 4) else None
        mesh = (
            parallel.make_mesh(*shape)
            if devices is None
            else jax.sharding.Mesh(devices, ("data", "classes"))
        )
        with jax.set_mesh(mesh):
            found = results(folder / f"checkpoints-{number}-{shape[0]}")
        np.savez(folder / f"{number}-{process}-{shape[0]}.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4]))
