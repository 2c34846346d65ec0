"""The numbers that a change of the code must not change: of runs, fits and coded files.

    python tests/golden.py

writes them anew to golden.json. Do so when a change means to alter them, and say in its commit
message which and why.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse

import softmax_jax
from softmax_jax import ensemble, evaluation, head, metrics, solvers, training
from softmax_jax.codelength import coding, online
from softmax_jax.data import Data
from softmax_jax.model import Params

FILE = pathlib.Path(__file__).with_suffix(".json")
TRAIN = FILE.parent.parent / "experiments" / "train.py"
COMPILED = "/jax/core/compile/backend_compile_duration"
SWEEP = (
    "--config.duration=5 epochs",
    "--config.sweep.learning_rate=0.1,0.3",
    "--config.sweep.l2=0,1e-3",
)


def _drawn(n: int, d: int, q: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(-8, 9, size=(n, d)) / 8
    w = rng.integers(-8, 9, size=(d, q)) / 4
    return x, np.argmax(x @ w + rng.gumbel(size=(n, q)), axis=1)


def fits() -> dict[str, dict[str, Any]]:
    """Objectives, gaps, passes and statuses, as `solvers` returns them."""
    x, y = _drawn(300, 6, 4)
    wide_x, wide_y = _drawn(40, 60, 3)
    large_x, large_y = _drawn(20_000, 30, 5)
    rng = np.random.default_rng(1)
    soft = rng.dirichlet(np.ones(4), size=300)
    folds = rng.integers(0, 3, size=(3, 300))
    offset = rng.normal(size=(300, 4))
    sparse = scipy.sparse.csr_array(np.where(np.abs(x) < 0.5, 0, x))
    units = 10.0 ** np.arange(-3, 3)
    fit, fit_path = solvers.fit, solvers.fit_path
    solutions = {
        "l2": fit(x, y, l2=1e-2),
        "none": fit(x, y, l2=0),
        "l1": fit(x, y, l2=0, l1=1e-2),
        "elastic net": fit(x, y, l2=1e-2, l1=1e-2),
        "grouped": fit(x, y, l2=1e-3, l1=1e-2, grouped=True),
        "probabilities": fit(x, soft, l2=1e-2),
        "offset": fit(x, y, l2=1e-2, offset=offset),
        "sparse": fit(sparse, y, l2=1e-2),
        "units": fit(x * units, y, l2=1e-8),
        "standardize": fit(x * units, y, l2=1e-2, standardize=True),
        "no intercept": fit(x, y, l2=1e-2, fit_intercept=False),
        "wide": fit(wide_x, wide_y, l2=1e-3),
        "path": fit_path(x, y, l2=np.geomspace(1, 1e-4, 5)),
        "slots": fit_path(x, y, l2=np.geomspace(1, 1e-4, 5), slots=2),
        "path of l1": fit_path(x, y, l2=1e-3, l1="auto"),
        "weightings": fit_path(x, y, l2=[1e-1, 1e-3], sample_weight=folds),
        "lbfgs": fit(x, y, l2=1e-2, method="lbfgs"),
        "logits-free": fit(x, y, l2=1e-2, method="logits-free"),
        "float32": fit(large_x.astype(np.float32), large_y, l2=1e-4),
        "float32, l1": fit(large_x.astype(np.float32), large_y, l2=1e-4, l1=1e-3),
    }
    return {
        name: {
            "objective": np.ravel(s.objective).tolist(),
            "relative_gap": np.ravel(s.relative_gap).tolist(),
            "passes": np.ravel(s.passes).tolist(),
            "status": np.ravel(s.status).tolist(),
        }
        for name, s in solutions.items()
    }


def cross_validation() -> dict[str, Any]:
    """Losses of held-out rows."""
    x, y = _drawn(300, 6, 4)
    found = solvers.cross_validate(x, y, l2=np.geomspace(1, 1e-3, 4), folds=5)
    return {"loss": np.ravel(found.loss).tolist()}


def coded() -> str:
    """The digest of a file of coded labels."""
    x, y = _drawn(500, 7, 5)
    w, b = np.arange(35).reshape(7, 5) % 11 / 8 - 0.5, np.arange(5) / 4
    return hashlib.sha256(coding.compress(Params(w, b), x, y)).hexdigest()


def trained() -> dict[str, list[float]]:
    """Parameters after epochs of a single state and of a sweep, in float32."""
    x, y = _drawn(200, 5, 3)
    data = Data(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))
    optimizer = optax.adam(0.1)
    zero = Params(jnp.zeros((5, 3)), jnp.zeros(3))
    states = [training.init(zero, optimizer, key=jax.random.key(i), l2=1e-3) for i in (0, 1)]
    epoch = training.make_epoch(optimizer, batch_size=32)
    state, _ = epoch(epoch(states[0], data)[0], data)
    sweep = ensemble.make_epoch(optimizer, batch_size=32, shared_order=False)
    members, _ = sweep(ensemble.stack(states, shared_order=False), data, None)
    update, _ = training.make_update(optimizer)(states[0], data)
    return {
        "epochs": _flat(state.params),
        "sweep": _flat(members.params),
        "update": _flat(update.params),
    }


def evaluated() -> dict[str, Any]:
    """Metrics of a model, and what its head returns for each row."""
    x, y = _drawn(300, 6, 4)
    w, b = np.arange(24).reshape(6, 4) % 7 / 4 - 0.75, np.arange(4) / 8
    params = Params(w.astype(np.float32), b.astype(np.float32))
    x = x.astype(np.float32)
    out = head.linear_cross_entropy(
        x, *params, y, label_smoothing=0.1, z_loss=1e-3, extras=head.EXTRAS, k=2, block_classes=3
    )
    code = online.refit(x, y, num_classes=4, ends=[20, 100, 300], tol=1e-8)
    return {
        "metrics": metrics.summarize(evaluation.evaluate(params, Data(x, y))),
        "head": {
            name: np.sum(np.asarray(a), dtype=np.float64).item()
            for name, a in out._asdict().items()
            if a is not None
        },
        "codelength": code.bits.tolist(),
    }


def compilations() -> dict[str, int]:
    """Programs that XLA compiles for the first call of each, and for the second."""
    x, y = _drawn(300, 6, 4)
    features, w, b = x.astype(np.float32), np.zeros((6, 4), np.float32), np.zeros(4, np.float32)
    optimizer = optax.sgd(0.1)
    state = training.init(Params(jnp.asarray(w), jnp.asarray(b)), optimizer)
    epoch = training.make_epoch(optimizer, batch_size=32)
    calls = {
        "fit": lambda: solvers.fit(x, y, l2=1e-2),
        "fit with l1": lambda: solvers.fit(x, y, l2=1e-2, l1=1e-3),
        "evaluate": lambda: evaluation.evaluate(Params(w, b), Data(features, y)),
        "epoch": lambda: epoch(state, Data(features, y)),
        "head": lambda: head.linear_cross_entropy(features, w, b, y),
    }
    found, events = {}, []
    jax.monitoring.register_event_duration_secs_listener(
        listener := lambda event, duration, **_: events.append(event)
    )
    for name, call in calls.items():
        jax.clear_caches()
        for time in ("first", "second"):
            events.clear()
            call()
            found[f"{name}, {time} call"] = events.count(COMPILED)
    jax.monitoring.unregister_event_duration_listener(listener)
    return found


def runs() -> dict[str, list[float]]:
    """Parameters of the default run of ``experiments/train.py``, and of a sweep."""
    with tempfile.TemporaryDirectory() as folder:
        for name, words in (("run", ()), ("sweep", SWEEP)):
            command = [sys.executable, str(TRAIN), f"--workdir={folder}/{name}", *words]
            subprocess.run(command, check=True, capture_output=True)
        best = {name: softmax_jax.load(pathlib.Path(folder, name)) for name in ("run", "sweep")}
    return {name: _flat(model.params) for name, model in best.items()}


def _flat(params: Params) -> list[float]:
    return [float(value) for leaf in params for value in np.ravel(leaf)]


RECORDS = (fits, cross_validation, coded, trained, evaluated, compilations, runs)


def machine() -> str:
    """Returns what the last bits of floating-point numbers depend on."""
    cpu = pathlib.Path("/proc/cpuinfo")
    flags = [line for line in cpu.read_text().splitlines() if line.startswith("flags")][:1]
    digest = hashlib.sha256(" ".join(flags).encode()).hexdigest()[:16]
    return f"jax {jax.__version__}, {jax.default_backend()} with features {digest}"


if __name__ == "__main__":
    found = {"machine": machine()} | {record.__name__: record() for record in RECORDS}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{FILE} is written")
