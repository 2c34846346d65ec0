"""Runs that survive: states saved in the background, and the last one that is whole found again.

On orbax, which writes to a folder under a temporary name and renames it when all is there: a
process killed at any moment leaves whole checkpoints only. What may still happen to one on a disk
is caught by a digest of its content.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import jax
import numpy as np
import orbax.checkpoint as ocp

from softmax_jax import _provenance as provenance
from softmax_jax import _stored_state as stored_state
from softmax_jax import checks, processes
from softmax_jax._annotations import PyTree, Scalar

# Bytes to leave free beside a checkpoint: for what describes it, and for logs.
MARGIN = 2**20

KEEP_LAST = 2
"""Latest checkpoints that stay by default: one of them may be damaged."""
KEEP_BEST = 1
"""Checkpoints with the lowest scores that stay by default."""

# Seconds that a save may take. Orbax measures them by the time of day, which may jump by years.
_FOREVER = 2**32


class Folder(NamedTuple):
    """The checkpoints of one run; see `open_folder`."""

    manager: ocp.CheckpointManager
    scores: dict[int, float]
    """Scores by step."""


class Restored(NamedTuple):
    """A checkpoint as it was given to `save`."""

    step: int
    state: PyTree
    extra: dict[str, Any]


@contextlib.contextmanager
def open_folder(
    path: str | os.PathLike[str], *, keep_last: int = KEEP_LAST, keep_best: int = KEEP_BEST
) -> Iterator[Folder]:
    """Opens the checkpoints in a folder, which is made if it is not there.

    At the end of the ``with`` statement, what is being saved is waited for.

    Args:
      path: of the folder.
      keep_last: how many of the latest checkpoints stay; at 2 or more, one can be damaged.
      keep_best: and how many of those with the lowest finite score.

    Raises:
      ValueError: if ``keep_last`` is less than 1 or ``keep_best`` negative, or the path is not
        UTF-8.
      OSError: if the folder cannot be made or read.

    Example:
      >>> import tempfile
      >>> with open_folder(tempfile.mkdtemp(), keep_last=3) as folder:
      ...     save(folder, 1, {"w": np.ones(2)}, extra={}, score=0.7)
      >>> folder.scores
      {1: 0.7}
    """
    if keep_last < 1 or keep_best < 0:
        raise ValueError(f"keep_last={keep_last}, keep_best={keep_best}: at least 1 and 0")
    path = pathlib.Path(path).resolve()
    checks.refuse_other_than_utf8(path)
    path.mkdir(parents=True, exist_ok=True)
    scores: dict[int, float] = {}

    class Policy:
        def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
            steps = [checkpoint.step for checkpoint in checkpoints]
            finite = [step for step in steps if math.isfinite(scores.get(step, math.inf))]
            best = sorted(finite, key=lambda step: (scores[step], -step))[:keep_best]
            return [step in best or step in steps[-keep_last:] for step in steps]

    manager = ocp.CheckpointManager(
        path,
        options=ocp.CheckpointManagerOptions(
            create=False,
            cleanup_tmp_directories=True,
            preservation_policy=Policy(),
            async_options=ocp.AsyncOptions(
                timeout_secs=_FOREVER, create_directories_asynchronously=False
            ),
            multiprocessing_options=_alone(),
        ),
    )
    try:
        for step in manager.all_steps():
            with contextlib.suppress(Exception):  # `restore` will say what is wrong with it
                score = _about(manager, step)["score"]
                scores[step] = math.inf if score is None else score
        folder = Folder(manager, scores)
        yield folder
        finish(folder)
    finally:
        with contextlib.suppress(ValueError, OSError):  # of a save that failed, said already
            manager.close()


def _alone() -> ocp.options.MultiprocessingOptions:
    """Returns options for several processes not to wait for one another: each has its folder."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


def save(
    folder: Folder, step: SupportsIndex, state: PyTree, *, extra: Mapping[Any, Any], score: Scalar
) -> None:
    """Copies the state to the host, and writes it in the background.

    With it go the step and what the numbers of a run depend on besides its state, which `restore`
    compares: the settings of JAX, its version and optax's, and the device. Of several processes all
    have to ask for it, and the first one writes.

    Args:
      folder: from `open_folder`.
      step: above those of all checkpoints that there are; to go on from an earlier one, put the
        later ones aside with `rewind` first.
      state: a pytree of arrays, keys of random numbers among them.
      extra: what JSON can hold, arrays as lists.
      score: the lower, the better; inf if there is none.

    Raises:
      ValueError: if there is a checkpoint of this step or of a later one.
      OSError: if this or the checkpoint before could not be written, or there is no room for it.

    Example:
      >>> import tempfile
      >>> with open_folder(tempfile.mkdtemp()) as folder:
      ...     for step, loss in ((10, 0.7), (20, 0.4)):
      ...         save(folder, step, {"w": np.ones(2)}, extra={"epochs": step // 10}, score=loss)
      >>> folder.scores
      {10: 0.7, 20: 0.4}
    """
    manager, step, score = folder.manager, checks.checked_count(step, "step", 0), float(score)
    later = [each for each in sorted(manager.all_steps()) if each >= step]
    if later:
        raise ValueError(
            f"step {step} cannot be saved: {manager.directory} has checkpoints of "
            f"{'steps' if len(later) > 1 else 'step'} {', '.join(map(str, later))} already; put "
            f"those aside with checkpoint.rewind first, to go on from an earlier one"
        )
    arrays = stored_state.on_host(state)
    if not processes.is_first():
        folder.scores[step] = score
        return
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    free = shutil.disk_usage(manager.directory).free
    if free < size + MARGIN:
        raise OSError(
            f"the disk of {manager.directory} is full: {free:,} bytes are left and a "
            f"checkpoint takes {size + MARGIN:,}; free some and start again to go on"
        )
    known = {
        "step": step,
        "score": score if math.isfinite(score) else None,
        "settings": provenance.settings(),
        "versions": provenance.versions(),
        "extra": dict(extra),
    }
    # As it will be read: the keys of JSON are strings.
    try:
        known = json.loads(json.dumps(known, default=lambda array: np.asarray(array).tolist()))
    except (TypeError, ValueError, RecursionError) as e:
        raise ValueError(f"extra: {_first_line(e)}; give what JSON can hold, and arrays") from e
    about = {
        "known": known,
        "digest_of_known": _digest([], known),
        "digest": _digest(arrays, known),
    }
    # The policy that says what is kept looks at it.
    folder.scores[step] = score
    with _as_os_error(folder):
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
            ),
        )


def rewind(folder: Folder, step: int) -> None:
    """Puts aside all checkpoints after a step, so that a run can go on from there.

    They get the name ``abandoned-STEP``, and their scores count no more.

    Args:
      folder: from `open_folder`.
      step: of the checkpoint that becomes the latest; 0 to start from the beginning.

    Raises:
      ValueError: if there is no checkpoint of that step.

    Example:
      >>> import tempfile
      >>> with open_folder(tempfile.mkdtemp()) as folder:
      ...     for step in (1, 2):
      ...         save(folder, step, {"w": np.ones(2)}, extra={}, score=step)
      ...     rewind(folder, 1)
      ...     restore(folder, {"w": np.ones(2)}).step
      1
    """
    finish(folder)
    steps = sorted(folder.manager.all_steps())
    if step != 0 and step not in steps:
        raise ValueError(f"{folder.manager.directory} has no checkpoint of step {step}: {steps}")
    for later in steps:
        if later > step:
            _put_aside(folder, later, "abandoned")
    folder.manager.reload()


def finish(folder: Folder) -> None:
    """Waits until all is written.

    Raises:
      OSError: if it could not be.

    Example:
      >>> import tempfile
      >>> with open_folder(tempfile.mkdtemp()) as folder:
      ...     save(folder, 1, {"w": np.ones(2)}, extra={}, score=0.7)
      ...     finish(folder)
      ...     (folder.manager.directory / "1").is_dir()
      True
    """
    with _as_os_error(folder):
        folder.manager.wait_until_finished()


def restore(folder: Folder, like: PyTree, *, best: bool = False) -> Restored | None:
    """Reads the latest checkpoint that is whole, or the best; None if there is none at all.

    Damaged ones that come before it are put aside under the name ``damaged-STEP``, with a warning;
    a folder that holds another step than its name says is one of them. Later ones than the best
    stay, until `rewind` puts them aside.

    Args:
      folder: from `open_folder`.
      like: a state of the same structure, shapes and types. `jax.ShapeDtypeStruct` may stand for
        its arrays, as `jax.eval_shape` gives them. Both become arrays of JAX, and all else arrays
        of NumPy; so do 64-bit types that JAX is not set to.
      best: whether to take that with the lowest finite score; None if there is none.

    Raises:
      ValueError: if there are checkpoints and none can be read, or it was saved under settings of
        JAX that make for other numbers; they all stay. Of another version of JAX or optax, or
        another kind of device, there is a warning.
      OSError: if one may not be read.

    Example:
      >>> import tempfile
      >>> state = {"w": jax.numpy.arange(3.0)}
      >>> with open_folder(tempfile.mkdtemp()) as folder:
      ...     save(folder, 5, state, extra={"epochs": 1}, score=0.7)
      ...     restored = restore(folder, jax.eval_shape(lambda: state))
      >>> restored.step, restored.state["w"].tolist(), restored.extra
      (5, [0.0, 1.0, 2.0], {'epochs': 1})
    """
    manager, scores = folder
    abstract = jax.tree.map(stored_state.as_stored, like)
    damaged: dict[int, str] = {}
    for step in _in_order(manager.all_steps(), scores, best=best):
        try:
            known = _about(manager, step)
        except (PermissionError, MemoryError):
            raise
        except Exception as e:  # whatever a reader makes of damaged files
            damaged[step] = _first_line(e)
            continue
        provenance.refuse_other_settings(known["settings"], step, manager.directory)
        try:
            arrays = _arrays(manager, step, abstract, known)
        except (PermissionError, MemoryError):
            raise
        except Exception as e:
            damaged[step] = _first_line(e)
            continue
        for at, message in damaged.items():
            warnings.warn(
                f"the checkpoint of step {at} in {manager.directory} is damaged ({message}); "
                f"that of step {step} is taken instead",
                stacklevel=2,
            )
            _put_aside(folder, at, "damaged")
        if damaged:
            manager.reload()
        provenance.warn_of_other_versions(known["versions"], step, manager.directory)
        return Restored(step, stored_state.with_keys(arrays, like), known["extra"])
    if damaged:
        step, message = max(damaged.items())
        which = " that have a score" if best else ""
        advice = "" if best else "; remove that folder to start from the beginning"
        raise ValueError(
            f"none of the {len(damaged)} checkpoints{which} in {manager.directory} can be read; "
            f"that of step {step}: {message}{advice}"
        )
    return None


def _in_order(steps: Sequence[int], scores: Mapping[int, float], *, best: bool) -> list[int]:
    """Returns the steps of checkpoints, that to be read first in front."""
    latest = sorted(steps, reverse=True)
    if not best:
        return latest
    # One whose score cannot be read may have been the best, so it comes first.
    scored = [step for step in latest if math.isfinite(scores.get(step, -1))]
    return sorted(scored, key=lambda step: (scores.get(step, -math.inf), -step))


def _arrays(
    manager: ocp.CheckpointManager, step: int, abstract: PyTree, known: Mapping[str, Any]
) -> PyTree:
    """Reads the arrays of a checkpoint.

    Raises:
      ValueError: if they are of other shapes or types, or not what was saved.
    """
    found = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore()
        ),
    )
    arrays = jax.device_get(found["state"])
    if jax.tree.map(stored_state.kind, arrays) != jax.tree.map(stored_state.kind, abstract):
        raise ValueError("its arrays have other shapes or types")
    if _digest(arrays, known) != found["about"]["digest"]:
        raise ValueError(_CHANGED)
    return arrays


_CHANGED = "its content is not what was saved"


def _about(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Returns what a checkpoint records beside its arrays; it must be of this step."""
    found = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
    known, digest = found["about"]["known"], found["about"]["digest_of_known"]
    if _digest([], known) != digest:
        raise ValueError(_CHANGED)
    if known["step"] != step:
        raise ValueError(f"it is that of step {known['step']}, copied or renamed")
    return known


def _put_aside(folder: Folder, step: int, why: str) -> None:
    """Renames a checkpoint to ``WHY-STEP``, or ``WHY-STEP-2`` if there is one, and so on."""
    directory = folder.manager.directory
    aside = directory / f"{why}-{step}"
    for again in itertools.count(2):
        if not aside.exists():
            break
        aside = directory / f"{why}-{step}-{again}"
    os.rename(directory / str(step), aside)
    folder.scores.pop(step, None)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _digest(arrays: PyTree, known: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _as_os_error(folder: Folder) -> Iterator[None]:
    """Raises an OSError for the ValueError of a writer, too, as where the disk is full.

    What has not been written loses its score.
    """
    try:
        yield
    except (ValueError, OSError) as e:
        folder.manager.reload()
        for step in folder.scores.keys() - set(folder.manager.all_steps()):
            del folder.scores[step]
        if isinstance(e, OSError):
            raise
        raise OSError(
            f"the checkpoint could not be written to {folder.manager.directory}: {_first_line(e)}"
        ) from e
