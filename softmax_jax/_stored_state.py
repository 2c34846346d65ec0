"""States as they are stored: arrays of NumPy, with keys of random numbers as integers."""

from typing import Any

import jax
import numpy as np


def kind(array: Any) -> tuple[tuple[int, ...], str]:
    """Returns the shape and the name of the type."""
    return array.shape, str(array.dtype)


def _is_of_jax(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def _is_key(leaf: Any) -> bool:
    return _is_of_jax(leaf) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_stored(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and type of a leaf, `jax.ShapeDtypeStruct` included, as `on_host` makes it."""
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    elif not _is_of_jax(leaf):
        leaf = np.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _key_impl(leaf: Any) -> Any:
    """Returns the generator of a key, or of a `jax.ShapeDtypeStruct` of one."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


def on_host(state: Any) -> Any:
    """Returns NumPy arrays, keys of random numbers as the integers that they are made of."""
    plain = jax.tree.map(lambda a: jax.random.key_data(a) if _is_key(a) else a, state)
    return jax.tree.map(np.asarray, jax.device_get(plain))


def with_keys(arrays: Any, like: Any) -> Any:
    """Returns stored arrays as the leaves of ``like`` are: on the device, or keys."""

    def restored(array, leaf):
        if _is_key(leaf):
            return jax.random.wrap_key_data(array, impl=_key_impl(leaf))
        # Of a type that JAX is not set to, it would lose digits.
        is_held = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
        return jax.device_put(array) if _is_of_jax(leaf) and is_held else array

    return jax.tree.map(restored, arrays, like)
