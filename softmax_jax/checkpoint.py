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
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

# Bytes to leave free beside a checkpoint: for what describes it, and for logs.
MARGIN = 2**20


class Folder(NamedTuple):
    """The checkpoints of one run; see `open_folder`."""

    manager: ocp.CheckpointManager
    scores: dict[int, float]
    """By step."""


class Restored(NamedTuple):
    """A checkpoint as it was given to `save`."""

    step: int
    state: Any
    extra: dict[str, Any]


@contextlib.contextmanager
def open_folder(path: pathlib.Path, *, keep_last: int = 2, keep_best: int = 1) -> Iterator[Folder]:
    """The checkpoints in a folder, which is made if it is not there.

    At the end of the ``with`` statement, what is being saved is waited for.

    Args:
      path: of the folder.
      keep_last: how many of the latest checkpoints stay; at 2 or more, one can be damaged.
      keep_best: and how many of those with the lowest finite score.

    Raises:
      ValueError: if ``keep_last`` is less than 1 or ``keep_best`` negative.
      OSError: if the folder cannot be made or read.
    """
    if keep_last < 1 or keep_best < 0:
        raise ValueError(f"keep_last={keep_last}, keep_best={keep_best}: at least 1 and 0")
    path.mkdir(parents=True, exist_ok=True)
    scores: dict[int, float] = {}

    class Policy:
        def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
            steps = [checkpoint.step for checkpoint in checkpoints]
            finite = [step for step in steps if math.isfinite(scores.get(step, math.inf))]
            best = sorted(finite, key=lambda step: (scores[step], -step))[:keep_best]
            return [step in best or step in steps[-keep_last:] for step in steps]

    manager = ocp.CheckpointManager(
        path.resolve(),
        options=ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True, preservation_policy=Policy()
        ),
    )
    try:
        for step in manager.all_steps():
            with contextlib.suppress(Exception):  # `restore` will say what is wrong with it
                score = _about(manager, step)["known"]["score"]
                scores[step] = math.inf if score is None else score
        folder = Folder(manager, scores)
        yield folder
        finish(folder)
    finally:
        with contextlib.suppress(ValueError, OSError):  # of a save that failed, said already
            manager.close()


def save(folder: Folder, step: int, state: Any, *, extra: Mapping[str, Any], score: float) -> None:
    """Copies the state to the host, and writes it in the background.

    Args:
      folder: from `open_folder`.
      step: above those of earlier checkpoints.
      state: a pytree of arrays, keys of random numbers among them.
      extra: what JSON can hold, but for the key ``score``.
      score: the lower, the better; inf if there is none.

    Raises:
      OSError: if this or the checkpoint before could not be written, or there is no room for it.
    """
    arrays = jax.device_get(_plain(state))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    free = shutil.disk_usage(folder.manager.directory).free
    if free < size + MARGIN:
        raise OSError(
            f"the disk of {folder.manager.directory} is full: {free:,} bytes are left and a "
            f"checkpoint takes {size + MARGIN:,}; free some and start again to go on"
        )
    # As it will be read: the keys of JSON are strings.
    known = json.loads(json.dumps({"score": score if math.isfinite(score) else None, **extra}))
    about = {"digest": _digest(arrays, known), "known": known}
    folder.scores[step] = score
    with _as_os_error(folder):
        folder.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
            ),
        )


def finish(folder: Folder) -> None:
    """Waits until all is written.

    Raises:
      OSError: if it could not be.
    """
    with _as_os_error(folder):
        folder.manager.wait_until_finished()


def restore(folder: Folder, like: Any, *, best: bool = False) -> Restored | None:
    """The latest checkpoint that is whole, or the best; None if there is none at all.

    Damaged ones that come before it are put aside under the name ``damaged-STEP``, with a warning.

    Args:
      folder: from `open_folder`.
      like: a state of the same structure, shapes and types.
      best: whether to take that with the lowest finite score; None if there is none.

    Raises:
      ValueError: if there are checkpoints and none can be read; they all stay.
      OSError: if one may not be read.
    """
    manager, scores = folder
    abstract = jax.tree.map(ocp.tree.to_shape_dtype_struct, jax.device_get(_plain(like)))
    damaged: dict[int, str] = {}
    steps = sorted(manager.all_steps(), reverse=True)
    if best:
        finite = [step for step in steps if math.isfinite(scores.get(step, math.inf))]
        steps = sorted(finite, key=lambda step: (scores[step], -step))
    for step in steps:
        try:
            about = _about(manager, step)
            found = manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            )
            arrays = jax.device_get(found["state"])
            if jax.tree.map(_kind, arrays) != jax.tree.map(_kind, abstract):
                raise ValueError("its arrays have other shapes or types")
            if _digest(arrays, about["known"]) != about["digest"]:
                raise ValueError("its content is not what was saved")
        except (PermissionError, MemoryError):
            raise
        except Exception as e:  # whatever a reader makes of damaged files
            damaged[step] = (str(e) or type(e).__name__).splitlines()[0]
            continue
        for at, message in damaged.items():
            warnings.warn(
                f"the checkpoint of step {at} in {manager.directory} is damaged ({message}); "
                f"that of step {step} is taken instead",
                stacklevel=2,
            )
            aside = manager.directory / f"damaged-{at}"
            for again in itertools.count(2):
                if not aside.exists():
                    break
                aside = manager.directory / f"damaged-{at}-{again}"
            os.rename(manager.directory / str(at), aside)
            scores.pop(at, None)
        if damaged:
            manager.reload()
        extra = {key: value for key, value in about["known"].items() if key != "score"}
        return Restored(step, _with_keys(arrays, like), extra)
    if damaged:
        step, message = max(damaged.items())
        which = " that have a score" if best else ""
        advice = "" if best else "; remove that folder to start from the beginning"
        raise ValueError(
            f"none of the {len(damaged)} checkpoints{which} in {manager.directory} can be read; "
            f"that of step {step}: {message}{advice}"
        )
    return None


def _about(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    found = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
    return found["about"]


def _kind(array: Any) -> tuple[tuple[int, ...], str]:
    return array.shape, str(array.dtype)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(state: Any) -> Any:
    """Keys of random numbers as the integers that they are made of."""
    return jax.tree.map(lambda a: jax.random.key_data(a) if _is_key(a) else a, state)


def _with_keys(arrays: Any, like: Any) -> Any:
    def restored(array, leaf):
        if _is_key(leaf):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return jax.device_put(array)

    return jax.tree.map(restored, arrays, like)


def _digest(arrays: Any, known: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _as_os_error(folder: Folder) -> Iterator[None]:
    """Writers raise ValueError, too, where the disk is full."""
    try:
        yield
    except ValueError as e:
        message = str(e).splitlines()[0]
        raise OSError(
            f"the checkpoint could not be written to {folder.manager.directory}: {message}"
        ) from e
