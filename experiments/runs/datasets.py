"""The data set of a run: loaded, described, known by its digest, and put on the device."""

import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from runs import settings
from softmax_jax import data, io, parallel, processes
from softmax_jax.data import Data
from softmax_jax.model import Params


def load(source: settings.Data) -> data.Dataset:
    """Loads the data set, prints what it is, and makes its names such that they can be drawn."""
    with processes.first_before_others():  # it may have to be downloaded
        dataset = data.load(
            source.name,
            folder=source.folder,
            data_dir=source.data_dir,
            max_bytes=int(source.memory * 2**30),
        )
    dataset = dataset._replace(class_names=tuple(map(printable, dataset.class_names)))
    num_train, num_features = dataset.train.x.shape
    print(
        f"{source.name}: {num_train:,} training and {len(dataset.test.x):,} test examples, "
        f"{num_features} features, {len(dataset.class_names)} classes"
    )
    return dataset


def printable(name: str) -> str:
    """Returns the name with halves of characters and what cannot be seen as escapes."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in name
    )


def digest(dataset: data.Dataset) -> str:
    """Returns the SHA-256 of all features and targets."""
    found = hashlib.sha256(repr(dataset.train.scale).encode())
    for array in (*dataset.train[:2], *dataset.test[:2]):
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def batches(dataset: data.Dataset, parts: int = 1) -> tuple[Data, Data]:
    """Puts training and test data on the device, or the mesh; the former in so many parts."""
    return batch(dataset.train, parts), batch(dataset.test)


def batch(split: Data, parts: int = 1) -> Data:
    """Puts a split of a data set on the device, or over the devices of the mesh, filled up."""
    if parts == parallel.extent(parallel.DATA) == 1:
        return alone(split)
    split = split._replace(scale=jnp.float32(split.scale))
    return parallel.spread(split, max(parts, parallel.extent(parallel.DATA)))


def alone(split: Data) -> Data:
    """Puts a split of a data set on a single device, for what looks at its examples one by one."""
    return jax.device_put(split._replace(scale=jnp.float32(split.scale)))


def save_params(
    workdir: pathlib.Path, dataset: data.Dataset, params: Params, **options: Any
) -> None:
    """Writes params.npz, which knows the features and the classes of its data set."""
    io.save(
        workdir / io.PARAMS,
        params,
        scale=dataset.train.scale,
        class_names=dataset.class_names,
        dtype=dataset.train.x.dtype,
        **options,
    )
