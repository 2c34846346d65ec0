"""Arrays of any namespace, as scikit-learn's ``array_api_dispatch`` lets them in and out."""

from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.utils._array_api import (
    _convert_to_numpy,
    _is_numpy_namespace,
    _max_precision_float_dtype,
    get_namespace_and_device,
)

from softmax_jax._annotations import AnyArray
from softmax_jax.checks import is_sparse


class Place(NamedTuple):
    """A kind of array and where it lies."""

    namespace: Any
    """A module of the array API; NumPy's unless scikit-learn's ``array_api_dispatch`` is on."""
    device: Any

    def put(self, array: np.ndarray) -> AnyArray:
        """Returns the numbers of a NumPy array as an array of this kind."""
        return self.namespace.asarray(array, device=self.device)

    @property
    def is_numpy(self) -> bool:
        """True if it is main memory, as NumPy and SciPy have it."""
        return _is_numpy_namespace(self.namespace)

    @property
    def widest_float(self) -> Any:
        """The floating-point type of the most digits that the device has, float64 or float32."""
        return _max_precision_float_dtype(self.namespace, self.device)


def place_of(array: AnyArray) -> Place:
    """Returns the place of an array; lists, data frames and sparse matrices are NumPy's."""
    namespace, _, device = get_namespace_and_device(array)
    return Place(namespace, None if device == "cpu" else device)


def to_numpy(array: AnyArray) -> AnyArray:
    """The same numbers for NumPy; sparse matrices stay what they are."""
    if is_sparse(array) or isinstance(array, np.ndarray):
        return array
    return _convert_to_numpy(array, place_of(array).namespace)


def for_solvers(x: AnyArray) -> AnyArray:
    """Features as `solvers` take them: JAX arrays where they lie, others as NumPy's."""
    return x if isinstance(x, jax.Array) else to_numpy(x)


def without_bfloat16(x: AnyArray) -> AnyArray:
    """The same numbers as float32 where scikit-learn's checks would refuse bfloat16."""
    name = str(getattr(x, "dtype", ""))
    if name == "bfloat16":
        return x.astype(np.float32)
    return x.float() if name == "torch.bfloat16" else x


def dtype_of_weights(x: AnyArray) -> type:
    """The type of the weights for features ``x``: float32 if those are no wider floats."""
    name = str(x.dtype).rpartition(".")[2]
    return np.float32 if name in ("float32", "float16") else np.float64
