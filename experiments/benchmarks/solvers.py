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
import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import io
import json
import math
import os
import pathlib
import platform
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

# A worker imports the one package that it is about and nothing else that is heavy, so that it takes
# the time and the memory that a user's process takes.

TARGETS = (1e-2, 1e-3, 3e-4, 1e-4, 1e-6)
L2 = 1e-4
PATH_L2 = tuple(float(l2) for l2 in np.logspace(-1, -6, 16))
PATH_TOL = 1e-3
SLACKS = (1e-3, 1e-6)
PATH_TOLERANCES = tuple(10.0 ** (-j / 2) for j in range(3, 18))
TOLERANCES = tuple(10.0 ** (-j / 4) for j in range(29))
# Its certified gap can be far above its excess.
OPTAX_TOLERANCES = tuple(10.0 ** (3 - j / 2) for j in range(21))
REFINEMENTS = 2
NEVER = 1e-14
"""A tolerance that no solver meets before its limit of iterations."""
STARTUP = 120.0
"""Seconds that a process has for imports and data, and again for compilation."""
PARTS = ("single", "path", "small")

OURS = "ours"
OPTAX = "optax.lbfgs"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A solver with a limit of iterations: where its ladder begins, and by what it grows.

    Limits are multiples of ``step``.
    """

    package: str
    solver: str
    first: int
    factor: float = 2.0
    step: int = 1
    dtype: str = "float32"


PEERS = {
    "scikit-learn lbfgs": Peer("scikit-learn", "lbfgs", 50),
    "scikit-learn newton-cg": Peer("scikit-learn", "newton-cg", 4, 1.5),
    "scikit-learn newton-cholesky": Peer("scikit-learn", "newton-cholesky", 3, 1.5),
    "scikit-learn sag": Peer("scikit-learn", "sag", 10),
    "scikit-learn saga": Peer("scikit-learn", "saga", 10),
    # It looks at where it is every five iterations.
    "cyanure, float32": Peer("cyanure", "auto", 10, step=5),
    "cyanure, float64": Peer("cyanure", "auto", 10, step=5, dtype="float64"),
}
MODULES = {"scikit-learn": "sklearn", "cyanure": "cyanure"}


# What runs in the workers.


def objective(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, b: np.ndarray, l2: float, divisor: float = 255
) -> float:
    """F(w, b) of ``x / divisor`` in float64, by NumPy and in blocks of rows."""
    w, b = np.asarray(w, np.float64), np.ravel(np.asarray(b, np.float64))
    total = 0.0
    for start in range(0, len(x), 4096):
        rows = slice(start, start + 4096)
        logits = x[rows].astype(np.float64) / divisor @ w + b
        largest = logits.max(axis=1)
        log_sums = np.log(np.exp(logits - largest[:, None]).sum(axis=1)) + largest
        total += float((log_sums - logits[np.arange(len(logits)), y[rows]]).sum())
    return total / len(x) + l2 / 2 * float((w**2).sum())


class Memory:
    """Resident memory of this process: at the start of a block, and at its peak since then."""

    def __enter__(self):
        # `resource.getrusage` would answer with the peak of the parent if that is higher.
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        self.before = self._read("VmRSS")
        return self

    def __exit__(self, *_):
        self.peak = self._read("VmHWM")

    def _read(self, key: str) -> float:
        """Memory in MiB."""
        try:
            status = pathlib.Path("/proc/self/status").read_text()
        except OSError:
            return math.nan
        match = re.search(rf"{key}:\s*(\d+) kB", status)
        return int(match[1]) / 1024 if match else math.nan


def read_data(task: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, float]:
    with np.load(task["data"]) as file:
        return file["x"], file["y"], float(file["divisor"])


def timed(call: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the result of a call, its seconds and its memory."""
    with Memory() as memory:
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
    added = memory.peak - memory.before
    return result, {"seconds": seconds, "peak": memory.peak, "added": added}


def work_ours(task: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Fits, one after the other, with each of ``tols``; of one strength or of a path."""
    from softmax_jax import solvers

    x, y, divisor = read_data(task)
    l2 = task["l2"]
    options: dict[str, Any] = {"scale": None if divisor == 1 else 1 / divisor}
    options |= task.get("options", {})
    emit(ready=True)
    for tol in task["tols"]:
        solution, result = timed(
            partial(solvers.fit_path, x, y, l2=np.array(l2), tol=tol, **options)
        )
        w, b = solution.params
        w, b = w.reshape(-1, *w.shape[-2:]), b.reshape(-1, b.shape[-1])
        values = [objective(x, y, *at, divisor) for at in zip(w, b, np.atleast_1d(l2), strict=True)]
        emit(
            **result,
            effort=tol,
            objective=values if np.ndim(l2) else values[0],
            lower=(np.asarray(solution.objective) - np.asarray(solution.gap)).tolist(),
            status=np.asarray(solution.status).tolist(),
            passes=np.asarray(solution.passes).tolist(),
        )


def quiet() -> None:
    import warnings

    warnings.simplefilter("ignore")


def work_peer(task: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """One fit with a limit of iterations."""
    quiet()
    x, y, divisor = read_data(task)
    features = np.divide(x, divisor, dtype=task["dtype"])
    options = {**task["strengths"], "solver": task["solver"], "max_iter": task["max_iter"]}
    model: Any
    if task["package"] == "scikit-learn":
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(**options, tol=NEVER)
    else:
        model = importlib.import_module("cyanure.estimators").Classifier(
            **options, tol=NEVER, loss="multiclass-logistic", fit_intercept=True, verbose=False
        )
    emit(ready=True)
    _, result = timed(lambda: model.fit(features, y))
    w = model.coef_.T if task["package"] == "scikit-learn" else model.coef_
    emit(
        **result,
        iterations=int(np.max(model.n_iter_)),
        objective=objective(x, y, w, model.intercept_, task["l2"], divisor),
    )


def work_path(task: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """scikit-learn over a path; see the top of the file for what is counted."""
    quiet()
    x, y, divisor = read_data(task)
    features = np.divide(x, divisor, dtype=np.float32)
    continues = task["solver"] == "newton-cg"
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver=task["solver"], max_iter=100_000, warm_start=True)
    emit(ready=True)
    for l2, strengths, ours in zip(task["l2"], task["strengths"], task["objectives"], strict=True):
        model.set_params(**strengths)
        start = {k: v.copy() for k, v in vars(model).items() if k in ("coef_", "intercept_")}
        spent = 0.0
        for tol in PATH_TOLERANCES:
            if start and not continues:
                for key, value in start.items():
                    setattr(model, key, value.copy())
            elif not continues and hasattr(model, "coef_"):
                del model.coef_
            model.set_params(tol=tol)
            _, result = timed(lambda: model.fit(features, y))
            if not continues:
                spent = result["seconds"]
            elif np.max(model.n_iter_) > 0:
                spent += result["seconds"]
            value = objective(x, y, model.coef_.T, model.intercept_, l2, divisor)
            emit(l2=l2, tol=tol, seconds=spent, excess=value / ours - 1)
            if value <= ours * (1 + min(SLACKS)):
                break


def work_iris(task: Mapping[str, Any], emit: Callable[..., None]) -> None:
    """Some fits of a small problem."""
    quiet()
    x, y, divisor = read_data(task)
    l2, tol = task["l2"], task["tol"]
    fit: Callable[[], tuple[np.ndarray, np.ndarray]]
    if task["package"] == OURS:
        from softmax_jax import solvers

        def fit():
            return solvers.fit(x, y, l2=l2, tol=tol).params
    else:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(**task["strengths"], tol=tol, max_iter=10_000)

        def fit():
            model.fit(x, y)
            return model.coef_.T, model.intercept_

    emit(ready=True)
    seconds = []
    for _ in range(task["fits"]):
        (w, b), result = timed(fit)
        seconds.append(result["seconds"])
    emit(seconds=seconds, objective=objective(x, y, w, b, l2, divisor))


WORKERS = {"ours": work_ours, "peer": work_peer, "path": work_path, "iris": work_iris}


def worker() -> None:
    """Does the task on standard input; answers are lines of JSON."""
    task = json.loads(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some solvers print

    def emit(**answer):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    WORKERS[task["do"]](task, emit)


# What runs in the parent.


class Trial(NamedTuple):
    """One fit, or one that took too long."""

    effort: float
    """A limit of iterations, or one over a tolerance."""
    seconds: float = math.inf
    excess: float = math.inf
    peak: float = math.nan
    added: float = math.nan
    stopped: bool = True
    """Whether more effort would change nothing."""


@dataclasses.dataclass
class Row:
    """A line of the table of ``single``."""

    name: str
    seconds: dict[float, float] = dataclasses.field(default_factory=dict)
    """Seconds by target, for the targets that were met."""
    trials: list[Trial] = dataclasses.field(default_factory=list)
    missing: str = "not met"
    """Text for a target that was not met."""

    def memory(self, key: str) -> str:
        """The most of all trials."""
        values = [getattr(trial, key) for trial in self.trials]
        return f"{max(v for v in values if v == v):.0f}" if any(v == v for v in values) else "-"


_BEGAN = time.perf_counter()


def progress(text: str) -> None:
    print(f"[{time.perf_counter() - _BEGAN:6.0f} s] {text}", file=sys.stderr, flush=True)


def answers_of(task: Mapping[str, Any], limit: float) -> Iterator[dict[str, Any]]:
    """The answers of a fresh process as they come, until one takes longer than ``limit``.

    Raises:
      RuntimeError: if the process fails, with the end of what it said.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()

        def read(stream):
            for line in stream:
                lines.put(line)
            lines.put("")

        reader = threading.Thread(target=read, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.close()
            if not lines.get(timeout=STARTUP):  # else it is ready
                process.wait()
            else:
                while line := lines.get(timeout=limit):
                    yield json.loads(line)
            if process.wait() != 0:
                errors.seek(0)
                said = errors.read().strip().splitlines() or [f"exit {process.returncode}"]
                raise RuntimeError(said[-1])
        except queue.Empty:
            return
        finally:
            process.kill()
            process.wait()
            reader.join()
            process.stdout.close()


def climb(
    attempt: Callable[[int], Trial], peer: Peer, targets: Sequence[float], budget: float
) -> list[Trial]:
    """Trials with growing limits until the last target is met, and then such as just meet each.

    Args:
      attempt: from a limit to a trial.
      peer: says where to begin, and the steps.
      targets: of the excess, falling.
      budget: of seconds.
    """

    def whole(effort: float) -> int:
        return peer.step * math.ceil(effort / peer.step)

    trials = [attempt(peer.first)]
    while trials[-1].excess > targets[-1] and not trials[-1].stopped:
        if len(trials) > 1 and trials[-1].excess > 0.9 * trials[-2].excess:
            break
        trials.append(attempt(whole(trials[-1].effort * peer.factor)))
    if len(trials) > 1 and math.isinf(trials[-1].excess):
        before = trials[-2]
        effort = whole(0.9 * before.effort * budget / before.seconds) - peer.step
        if before.effort < effort < trials[-1].effort:
            trials.append(attempt(effort))
    for target in targets:
        for _ in range(REFINEMENTS):
            met = [trial for trial in trials if trial.excess <= target]
            if not met:
                break
            high = min(met, key=lambda trial: trial.effort)
            below = [trial for trial in trials if trial.effort < high.effort]
            low = max(below, key=lambda trial: trial.effort, default=Trial(0))
            if high.effort - low.effort <= max(peer.step, 0.07 * low.effort):
                break
            if below:
                share = math.log(low.excess / target) / math.log(low.excess / high.excess)
                guess = 1.02 * low.effort * (high.effort / low.effort) ** share
            else:
                guess = high.effort / 2
            most = int(high.effort) - peer.step
            trials.append(attempt(min(max(whole(guess), int(low.effort) + peer.step), most)))
    return trials


def quickest(trials: Sequence[Trial], target: float) -> Trial | None:
    """The fastest within the target."""
    met = [trial for trial in trials if trial.excess <= target]
    return min(met, key=lambda trial: trial.seconds, default=None)


def single(args: argparse.Namespace, data: str) -> dict[str, Any]:
    """Seconds to each target at one strength."""
    task = {"do": "ours", "data": data, "l2": L2}
    (reference,) = answers_of({**task, "tols": [1e-8]}, STARTUP + args.budget)
    lower = reference["lower"]
    progress(
        f"minimum between {lower:.10f} and {reference['objective']:.10f} ({reference['status']})"
    )
    rows = our_rows(OURS, task, TOLERANCES, args.repeats, lower, args.budget)
    rows += our_rows(f"{OURS}, certified", task, None, args.repeats, lower, args.budget)
    compiled = len(rows)
    task["options"] = {"method": "lbfgs"}
    rows += our_rows(OPTAX, task, OPTAX_TOLERANCES, 1, lower, args.budget)

    peers = chosen_peers(args)
    peer_rows = {}
    for name, peer in peers.items():
        attempt = partial(attempt_peer, name, peer, data=data, lower=lower, budget=args.budget)
        row = peer_rows[name] = Row(name)
        try:
            row.trials = climb(attempt, peer, TARGETS, args.budget)
            if any(math.isinf(trial.excess) for trial in row.trials):
                row.missing = f"> {args.budget:g}"
        except RuntimeError as e:
            progress(f"{name}: failed: {e}")
            row.missing = "failed"
        for target in TARGETS:
            if best := quickest(row.trials, target):
                row.seconds[target] = best.seconds

    # The best of each package once more; what is met twice is the same run.
    runs: dict[tuple[str, float], list[float]] = {}
    for target in TARGETS:
        for package in sorted({peer.package for peer in peers.values()}):
            found = [
                (trial.seconds, name, trial.effort)
                for name, row in peer_rows.items()
                if peers[name].package == package and (trial := quickest(row.trials, target))
            ]
            if not found:
                continue
            seconds, name, effort = min(found)
            if (name, effort) not in runs:
                attempt = partial(
                    attempt_peer, name, peers[name], data=data, lower=lower, budget=args.budget
                )
                more = [attempt(int(effort)).seconds for _ in range(args.repeats - 1)]
                runs[name, effort] = [seconds, *more]
            peer_rows[name].seconds[target] = statistics.median(runs[name, effort])

    rows += peer_rows.values()
    print_single(rows, compiled)
    if args.figure:
        pathlib.Path(args.figure).write_bytes(draw(rows))
        print(f"the figure is in {args.figure}")
    return {"l2": L2, "lower": lower, "rows": [dataclasses.asdict(row) for row in rows]}


def our_rows(
    name: str,
    task: Mapping[str, Any],
    tolerances: Sequence[float] | None,
    processes: int,
    lower: float,
    budget: float,
) -> list[Row]:
    """Later calls, and the first one of a process.

    Args:
      name: of the rows.
      task: for the worker.
      tolerances: the ladder, falling; None to take the targets as they are.
      processes: how many there are for each target.
      lower: bound of the objective.
      budget: seconds of a call.
    """

    def trial_of(answer: Mapping[str, Any]) -> Trial:
        return Trial(
            effort=1 / answer["effort"],
            seconds=answer["seconds"],
            excess=answer["objective"] / lower - 1,
            peak=answer["peak"],
            added=answer["added"],
        )

    later, first = Row(f"{name}, later calls"), Row(f"{name}, first call")
    tols = {target: target for target in TARGETS}
    if tolerances is not None:
        progress(f"{name}: a ladder of tolerances")
        tolerances = [tolerances[0], *tolerances]
        for answer in answers_of({**task, "tols": tolerances}, STARTUP + budget):
            later.trials.append(trial_of(answer))
            if later.trials[-1].excess <= TARGETS[-1]:
                break
        else:
            if len(later.trials) < len(tolerances):
                later.missing = first.missing = f"> {budget:g}"
        del later.trials[:1]  # it compiled
        tols = {
            target: 1 / min(met)
            for target in TARGETS
            if (met := [t.effort for t in later.trials if t.excess <= target])
        }
    for target, tol in tols.items():
        at_first, at_last = [], []
        for _ in range(processes):
            trials = [
                trial_of(a) for a in answers_of({**task, "tols": [tol] * 3}, STARTUP + budget)
            ]
            seconds = ", ".join(f"{trial.seconds:.2f}" for trial in trials)
            progress(f"{name}: within {target:.0e} by tol={tol:.1e}: {seconds} s")
            at_first += trials[:1]
            at_last += trials[1:]
        for row, trials in ((first, at_first), (later, at_last)):
            row.trials += trials
            if trials and all(trial.excess <= target for trial in trials):
                row.seconds[target] = statistics.median(trial.seconds for trial in trials)
    return [later, first]


def attempt_peer(
    name: str, peer: Peer, limit: int, *, data: str, lower: float, budget: float
) -> Trial:
    """A fit in a fresh process."""
    with np.load(data) as file:
        strengths = strengths_for(peer.package, L2, len(file["y"]))
    task = {"do": "peer", "data": data, "l2": L2, "strengths": strengths, "max_iter": limit}
    answers = list(answers_of({**task, **dataclasses.asdict(peer)}, budget))
    if not answers or answers[0]["seconds"] > budget:
        progress(f"{name}: {limit} iterations take longer than {budget:g} s")
        return Trial(limit)
    (answer,) = answers
    excess = answer["objective"] / lower - 1
    progress(f"{name}: {limit} iterations, {answer['seconds']:.2f} s, {excess:.2e}")
    return Trial(
        limit,
        answer["seconds"],
        excess,
        answer["peak"],
        answer["added"],
        stopped=answer["iterations"] <= limit - peer.step,
    )


def chosen_peers(args: argparse.Namespace) -> dict[str, Peer]:
    chosen = {}
    for name, peer in PEERS.items():
        if args.solvers and not any(word in name for word in args.solvers):
            continue
        if importlib.util.find_spec(MODULES[peer.package]) is None:
            progress(f"{name}: skipped, as {peer.package} is not installed")
            continue
        chosen[name] = peer
    return chosen


def strengths_for(package: str, l2: float, n: int) -> dict[str, Any]:
    """The strength of a penalty in the words of a package, for ``n`` rows."""
    from softmax_jax import conventions

    if package == "scikit-learn":
        return dict(conventions.to_sklearn(l2, total_weight=n))
    return dict(conventions.to_cyanure(l2))


def print_single(rows: Sequence[Row], ours: int) -> None:
    """The table of seconds, and what they are of those of the first ``ours`` rows."""
    header = ["", *(f"{target:.0e}" for target in TARGETS)]
    print(f"\nSingle: l2 = {L2:g}, seconds until F is within a relative excess; memory in MiB")
    print_table(
        [
            [*header, "peak", "added"],
            *(
                [
                    row.name,
                    *(
                        f"{row.seconds[t]:.2f}" if t in row.seconds else row.missing
                        for t in TARGETS
                    ),
                    row.memory("peak"),
                    row.memory("added"),
                ]
                for row in rows
            ),
        ]
    )
    later, first = rows[0].seconds, rows[1].seconds
    compiling = [first[t] - later[t] for t in TARGETS if t in first and t in later]
    if compiling:
        print(f"Of a first call of ours, {statistics.median(compiling):.2f} s are compilation.")

    def ratio(seconds: Mapping[float, float], base: Row, target: float, missing: str) -> str:
        if target not in base.seconds:
            return "-"
        if target in seconds:
            return f"{seconds[target] / base.seconds[target]:.1f}"
        budget = missing.removeprefix("> ")
        return f"> {float(budget) / base.seconds[target]:.1f}" if budget != missing else "-"

    for at in range(0, ours, 2):
        print(f"\nTimes as long as {rows[at].name} / {rows[at + 1].name.split(', ')[-1]}")
        table = [header]
        for peer in rows[ours:]:
            if peer.name == f"{OPTAX}, later calls":
                continue
            pairs = [(rows[at], peer), (rows[at + 1], peer)]
            if peer.name == f"{OPTAX}, first call":
                pairs[0] = (rows[at], rows[ours])
            cells = [
                " / ".join(ratio(p.seconds, base, t, p.missing) for base, p in pairs)
                for t in TARGETS
            ]
            table.append([peer.name.replace(", first call", ""), *cells])
        print_table(table)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())


def path(args: argparse.Namespace, data: str) -> dict[str, Any]:
    """Seconds for a path of strengths."""
    task = {"data": data, "l2": PATH_L2}
    runs = []
    for _ in range(args.repeats):
        tols = [PATH_TOL] * 3
        runs.append(list(answers_of({**task, "do": "ours", "tols": tols}, STARTUP + args.budget)))
        progress("path: ours: " + ", ".join(f"{r['seconds']:.2f} s" for r in runs[-1]))
    first = statistics.median([run[0]["seconds"] for run in runs])
    later = statistics.median([r["seconds"] for run in runs for r in run[1:]])
    certified = min(r["status"].count("certified") for run in runs for r in run)
    objectives = runs[0][0]["objective"]

    head = ["", "seconds", "of later calls", "of first call"]
    table = [head, [f"{OURS}, later calls", f"{later:.2f}", "", ""]]
    table.append([f"{OURS}, first call", f"{first:.2f}", "", ""])
    peers = {}
    most = math.inf
    for solver in ("newton-cg", "lbfgs"):
        name = f"scikit-learn {solver}"
        if name not in chosen_peers(args):
            continue
        with np.load(data) as file:
            strengths = [strengths_for("scikit-learn", l2, len(file["y"])) for l2 in PATH_L2]
        peer_task = {
            **task,
            "do": "path",
            "solver": solver,
            "strengths": strengths,
            "objectives": objectives,
        }
        peers[name] = spent = path_of_peer(name, peer_task, most, args)
        for slack in SLACKS:
            label = f"{name}, F at most ours x (1 + {slack:g})"
            total = sum(by_slack.get(slack, 0.0) for by_slack in spent.values())
            if len(spent) == len(PATH_L2) and all(slack in at for at in spent.values()):
                ratios = [f"{total / later:.1f}", f"{total / first:.1f}"]
                table.append([label, f"{total:.1f}", *ratios])
                if slack == min(SLACKS):
                    most = min(most, total)
            else:
                done = sum(slack in at for at in spent.values())
                bounds = [f"> {total / later:.1f}", f"> {total / first:.1f}"]
                table.append([label, f"{total:.1f} for {done} of them", *bounds])
    print(
        f"\nPath: {len(PATH_L2)} strengths from {PATH_L2[-1]:g} to {PATH_L2[0]:g}, ours to a "
        f"relative certified gap of {PATH_TOL:g} ({certified} certified)"
    )
    print_table(table)
    return {"l2": PATH_L2, "later": later, "first": first, "certified": certified, "peers": peers}


def path_of_peer(
    name: str, task: Mapping[str, Any], most: float, args: argparse.Namespace
) -> dict[float, dict[float, float]]:
    """Seconds by strength and slack.

    It is given up once the sum exceeds ``most``, which another needed for all: the best is wanted.
    """
    spent: dict[float, dict[float, float]] = {}
    try:
        for answer in answers_of(task, args.budget):
            at = spent.setdefault(answer["l2"], {})
            for slack in SLACKS:
                if answer["excess"] <= slack:
                    at.setdefault(slack, answer["seconds"])
            if min(SLACKS) not in at:
                continue
            total = sum(by_slack.get(min(SLACKS), 0.0) for by_slack in spent.values())
            progress(
                f"path: {name}: l2={answer['l2']:.1e}, tol={answer['tol']:.0e}, "
                f"{at[max(SLACKS)]:.1f} s and {at[min(SLACKS)]:.1f} s, {total:.0f} s so far"
            )
            if total > most:
                progress(f"path: {name}: given up, as another took {most:.0f} s for all")
                break
    except RuntimeError as e:
        progress(f"path: {name}: failed: {e}")
    return spent


def small(args: argparse.Namespace, data: str) -> dict[str, Any]:
    """Milliseconds a fit of iris, and seconds for a process with one."""
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


# Okabe and Ito's palette without its yellow, and a grey.
COLOURS = {
    OURS: "#0072B2",
    OPTAX: "#56B4E9",
    "scikit-learn lbfgs": "#D55E00",
    "scikit-learn newton-cg": "#000000",
    "scikit-learn newton-cholesky": "#999999",
    "scikit-learn sag": "#009E73",
    "scikit-learn saga": "#CC79A7",
    "cyanure, float32": "#E69F00",
    "cyanure, float64": "#E69F00",
}
MARKERS = "osD^vPX*<"


def draw(rows: Sequence[Row]) -> bytes:
    """Excess over seconds, a line a solver, as PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        for row in rows:
            name, _, calls = row.name.rpartition(", ")
            name = name if name in (OURS, OPTAX) else row.name
            points = np.array(frontier([(trial.seconds, trial.excess) for trial in row.trials]))
            if name not in COLOURS or not len(points):
                continue
            compiles = calls == "first call"
            ax.loglog(
                *points.T,
                label=f"{name}, with compilation" if compiles else name,
                color=COLOURS[name],
                marker=MARKERS[list(COLOURS).index(name)],
                markersize=4,
                linestyle="--" if compiles else "-",
                linewidth=2.5 if name == OURS else 1.4,
            )
        for target in TARGETS:
            ax.axhline(target, color="0.7", linewidth=0.8, linestyle=":", zorder=0)
        ax.set_xlabel("seconds of a fit from scratch")
        ax.set_ylabel("(F - min F) / min F, in float64")
        figure.legend(loc="outside right center", frameon=False)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both time and excess, by time."""
    kept: list[tuple[float, float]] = []
    for seconds, excess in sorted(points):
        if 0 < excess < (kept[-1][1] if kept else math.inf):
            kept.append((seconds, excess))
    return kept


def machine() -> str:
    versions = []
    for name in ("jax", "jaxlib", "optax", "numpy", "scipy", "scikit-learn", "cyanure"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    try:
        found = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    processor = found[1] if found else platform.processor() or platform.machine()
    python = platform.python_version()
    return f"{os.cpu_count()} cores, {processor}; Python {python}, {', '.join(versions)}"


def plain(value: Any) -> Any:
    """Returns what JSON can hold: keys as text, and None for numbers that are not finite."""
    if isinstance(value, Trial):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {f"{key:g}" if isinstance(key, float) else key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        default="",
        help="with the IDX files of Fashion-MNIST; by default the one in $SOFTMAX_JAX_DATA",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
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
        worker()
        return
    print(machine())
    report: dict[str, Any] = {"machine": machine(), "flags": vars(args)}
    with tempfile.TemporaryDirectory() as scratch:
        images, flowers = f"{scratch}/images.npz", f"{scratch}/flowers.npz"
        if {"single", "path"} & set(args.parts):
            from softmax_jax import data

            split = data.load("fashion_mnist", folder=args.folder).train
            x, y = split.x[: args.rows or None], split.targets[: args.rows or None]
            np.savez(images, x=x, y=y, divisor=255.0)
            print(f"Fashion-MNIST, training images: {x.shape[0]:,} x {x.shape[1]}, 10 classes")
        if "small" in args.parts:
            from sklearn.datasets import load_iris

            x, y = load_iris(return_X_y=True)
            np.savez(flowers, x=x, y=y, divisor=1.0)
        for name, part in (("single", single), ("path", path), ("small", small)):
            if name in args.parts:
                report[name] = part(args, flowers if name == "small" else images)
                if args.json:
                    text = json.dumps(plain(report), indent=1, allow_nan=False)
                    pathlib.Path(args.json).write_text(text + "\n")
    if args.json:
        print(f"all numbers are in {args.json}")


if __name__ == "__main__":
    main(sys.argv[1:])
