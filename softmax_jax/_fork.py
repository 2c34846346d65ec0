"""Refusal to compute in a process forked after JAX was used, where it would wait for ever.

A fork copies the memory of JAX's runtime but none of its threads. The forks of
`multiprocessing`'s start method ``fork``, and of joblib's ``multiprocessing`` backend, are such.
"""

import os

from jax._src import xla_bridge

_is_broken = False


def _note_fork() -> None:
    global _is_broken
    # Not `xla_bridge.backends_are_initialized`: a thread of the parent may have held its lock.
    _is_broken = bool(xla_bridge._backends)


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_note_fork)


def refuse_broken_process() -> None:
    """Raises a RuntimeError in a process that was forked after JAX was used in its parent."""
    if _is_broken:
        raise RuntimeError(
            "this process was forked from one that had used JAX, whose threads a fork does not "
            "copy, so that JAX would wait for ever: start workers with "
            "multiprocessing.get_context('spawn'), with joblib's default backend 'loky', or before "
            "the parent uses JAX"
        )
