"""Types in which to compute, said explicitly: implicit promotion may be forbidden (strict)."""

import jax
import numpy as np

from softmax_jax._annotations import Array, Float, Shaped


def accumulation_type(*arrays: Shaped[Array | jax.ShapeDtypeStruct, "..."]) -> np.dtype:
    """Returns the type of sums over ``arrays``: float64 if any of them is of it, float32 else."""
    return np.dtype(np.float64 if any(a.dtype == np.float64 for a in arrays) else np.float32)


def at_least_float32(a: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns ``a`` itself if it is float32 or float64; narrower types and integers as float32."""
    return a.astype(accumulation_type(a))
