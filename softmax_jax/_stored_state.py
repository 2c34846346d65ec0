"""States as they are stored: arrays of NumPy, with keys of random numbers as integers."""

from collections.abc import Hashable
from typing import TypeGuard

import jax
import numpy as np

from softmax_jax import processes
from softmax_jax._annotations import AnyArray, NDArray, PyTree


def kind(array: NDArray | jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], str]:
    """Returns the shape and the name of the type."""
    return array.shape, str(array.dtype)


def _is_of_jax(leaf: object) -> TypeGuard[jax.Array | jax.ShapeDtypeStruct]:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def _is_key(leaf: object) -> bool:
    return _is_of_jax(leaf) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_stored(leaf: AnyArray) -> jax.ShapeDtypeStruct:
    """Returns shape and type of a leaf, `jax.ShapeDtypeStruct` included, as `on_host` makes it."""
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    elif not _is_of_jax(leaf):
        leaf = np.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _key_impl(leaf: jax.Array | jax.ShapeDtypeStruct) -> Hashable:
    """Returns the generator of a key, or of a `jax.ShapeDtypeStruct` of one."""
    found: list[Hashable] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


def on_host(state: PyTree) -> PyTree:
    """Returns NumPy arrays, keys of random numbers as the integers that they are made of."""
    plain = jax.tree.map(lambda a: jax.random.key_data(a) if _is_key(a) else a, state)
    return jax.tree.map(np.asarray, processes.on_host(plain))


def with_keys(arrays: PyTree, like: PyTree) -> PyTree:
    """Returns stored arrays as the leaves of ``like`` are: on the device, or keys."""

    def restored(array, leaf):
        if _is_key(leaf):
            return jax.random.wrap_key_data(array, impl=_key_impl(leaf))
        # Of a type that JAX is not set to, it would lose digits.
        is_held = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
        return jax.device_put(array) if _is_of_jax(leaf) and is_held else array

    return jax.tree.map(restored, arrays, like)
