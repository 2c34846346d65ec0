"""Runs of several processes, of which the first one writes.

All do the same. The others have a copy of the folder of the run, so that all go on from the same
checkpoint; what they write there goes away with them.
"""

import contextlib
import io
import os
import pathlib
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from softmax_jax import processes

CLUSTER = "cluster"
"""Stands for the address that the environment of a cluster has."""
_PIECE = 2**26
"""Bytes that are sent at once."""


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes, if there are any, and makes all but the first one silent.

    Raises:
      ValueError: if flags are missing, or there is no cluster.
    """
    if not coordinator:
        if num_processes is not None or process_id is not None:
            raise ValueError("--num_processes, --process_id: give --coordinator=HOST:PORT, too")
        return
    if coordinator == CLUSTER:
        processes.start(None, num_processes, process_id)
    elif num_processes is None or process_id is None:
        raise ValueError(f"--coordinator={coordinator}: give --num_processes and --process_id, too")
    else:
        processes.start(coordinator, num_processes, process_id)
    if processes.is_first():
        print(
            f"{jax.process_count()} processes, {jax.device_count()} devices; where one of them "
            f"ends, the others do within {processes.SECONDS} seconds, and a run of train.py goes "
            "on from its last checkpoint, on any number of processes"
        )
    else:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def alone() -> contextlib.AbstractContextManager[Any]:
    """Sets a mesh of one device of this process, in a run of several: each works for itself."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    return jax.set_mesh(jax.make_mesh((1,), ("alone",), devices=jax.local_devices()[:1]))


@contextlib.contextmanager
def own_folder(folder: pathlib.Path | None) -> Iterator[pathlib.Path]:
    """Yields the folder to the first process, and to each other a copy that goes away."""
    if processes.is_first():
        assert folder is not None
        _received(_packed(folder))
        yield folder
        return
    with tempfile.TemporaryDirectory() as name, tarfile.open(fileobj=_received(b"")) as archive:
        archive.extractall(name, filter="data")
        yield pathlib.Path(name)


def _packed(folder: pathlib.Path) -> bytes:
    if jax.process_count() == 1:
        return b""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name != ".lock":
                archive.add(path, path.name)
    return packed.getvalue()


def _received(packed: bytes) -> io.BytesIO:
    """Returns the bytes of the first process."""
    if jax.process_count() == 1:
        return io.BytesIO(packed)
    # In pieces, as all of it would have to lie on a device at once.
    pieces = int(processes.from_first(np.int32(-(-len(packed) // _PIECE))))
    received = io.BytesIO()
    for i in range(pieces):
        own = packed[i * _PIECE : (i + 1) * _PIECE]
        size = int(processes.from_first(np.int32(len(own))))
        sent = np.frombuffer(own, np.uint8) if processes.is_first() else np.zeros(size, np.uint8)
        received.write(np.asarray(processes.from_first(sent)).tobytes())
    received.seek(0)
    return received
