"""Shapes and dtypes in annotations: those of jaxtyping, which only tests and tools need.

``Float[Array, "*batch q"]`` is a `jax.Array` of floats with any leading axes and ``q`` classes.
Axes of one name have one size within a call. Without jaxtyping an annotation is the type of the
array alone. The tests check all of them with beartype, on each call that returns.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numpy import ndarray as NDArray

AnyArray: TypeAlias = Any
"""Whatever a user has that can be read as an array: JAX, NumPy, lists, frames, SciPy sparse."""

PyTree: TypeAlias = Any
"""Arrays nested in tuples, dicts and the like, as `jax.tree` walks them; the caller knows how."""

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Integer, Num, Real, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Int, Integer, Num, Real, Shaped
    except ImportError:

        class _ArrayAlone:
            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Int = Integer = Num = Real = Shaped = _ArrayAlone

Scalar: TypeAlias = float | int | np.floating | np.integer | Real[Array | NDArray, ""]
"""One real number, of Python, NumPy or JAX; under a transformation it may be traced."""

OverGrid: TypeAlias = float | Float[NDArray, "*grid"]
"""A number for one problem, or an array of them over a grid of problems."""

__all__ = [
    "AnyArray",
    "Array",
    "ArrayLike",
    "Bool",
    "Float",
    "Int",
    "Integer",
    "NDArray",
    "Num",
    "OverGrid",
    "PyTree",
    "Real",
    "Scalar",
    "Shaped",
]
