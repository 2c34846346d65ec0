"""Arrays as users have them, of the same numbers as JAX or NumPy can take them."""

import decimal
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray


def as_array(a: AnyArray, where: str) -> AnyArray:
    """Returns an array as JAX can take it, of the same numbers.

    JAX arrays and tracers stay what they are. Lists, data frames and `np.matrix` become plain
    NumPy arrays; other byte orders native ones; ``longdouble`` float64; arrays of Python numbers
    (dtype object) become those of the type that NumPy finds for them, float64 beyond 64 bits.

    Raises:
      ValueError: if rows differ in length, an entry of an object array is not a number, or one of
        a masked array is masked.

    Example:
      >>> as_array([[1, 2], [3, 4]], "x").shape
      (2, 2)
    """
    if isinstance(a, jax.Array):
        return a
    if np.ma.is_masked(a):
        raise ValueError(f"{where}: there are masked entries; drop these rows or fill the gaps")
    if is_sparse(a):
        raise ValueError(f"{where}: a sparse matrix; give {where}.toarray()")
    try:
        array = np.asarray(a)
    except jax.errors.TracerArrayConversionError:
        return jnp.asarray(a)  # a list of what a transformation traces
    except ValueError as e:
        raise ValueError(f"{where}: not an array: {e}") from e
    if array.dtype.kind == "O":
        array = _numbers_of_objects(array, where)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # an infinity is refused where numbers must be finite
            array = array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _numbers_of_objects(a: np.ndarray, where: str) -> np.ndarray:
    for place, entry in np.ndenumerate(a):
        if not isinstance(entry, numbers.Real | decimal.Decimal | np.bool_):
            at = ", ".join(map(str, place))
            raise ValueError(f"{where}: entry [{at}] is {entry!r}; expected numbers")
    found = np.array(a.tolist())
    # Integers beyond 64 bits stay objects.
    return found.astype(np.float64) if found.dtype.kind == "O" else found


def as_real(a: AnyArray, where: str) -> jax.Array:
    """Returns real numbers as a JAX array, converted on the host before JAX would cut them.

    The door of features, parameters, logits and weights. What JAX has already, traced values
    included, passes through as it is, integers too; anything else goes by `as_array`. There,
    64-bit integers, which JAX would wrap to 32 bits, and float64 become float32, or stay 64 bits
    wide as float64 under ``jax_enable_x64``. NaN and infinities pass.

    Raises:
      ValueError: if they are no real numbers (text, complex numbers, dates), or as `as_array`.

    Example:
      >>> as_real([True, False], "weights").tolist(), as_real([1.5], "x").dtype
      ([True, False], dtype('float32'))
    """
    return on_device(checked_real(a, where))


def checked_real(a: AnyArray, where: str) -> AnyArray:
    """Does as `as_real` for arguments of a jitted function: host arrays stay there, as is quicker.

    Example:
      >>> checked_real(np.array([0.5]), "x")
      array([0.5], dtype=float32)
    """
    array = as_array(a, where)
    if not (
        jnp.issubdtype(array.dtype, jnp.floating)
        or jnp.issubdtype(array.dtype, jnp.integer)
        or array.dtype == bool
    ):
        raise ValueError(f"{where}: type {array.dtype}; expected real numbers")
    return array if isinstance(array, jax.Array) else _of_float_width(array)


def on_device(a: AnyArray) -> jax.Array:
    """Puts an array on the device by an explicit transfer, which a guard may demand.

    Example:
      >>> on_device(np.array([1, 2], np.int32))
      Array([1, 2], dtype=int32)
    """
    return a if isinstance(a, jax.Array) else jax.device_put(a)


def _of_float_width(a: np.ndarray) -> np.ndarray:
    """Returns 64-bit numbers as the widest floating-point type that JAX is set to."""
    if a.dtype.kind not in "uif" or a.dtype.itemsize < 8:
        return a
    with np.errstate(over="ignore"):
        return a.astype(jax.dtypes.canonicalize_dtype(np.float64), copy=False)


def is_sparse(a: AnyArray) -> bool:
    """Returns whether an array is a sparse one, as SciPy's are.

    Example:
      >>> import scipy.sparse
      >>> is_sparse(scipy.sparse.csr_array((2, 3))), is_sparse(np.zeros((2, 3)))
      (True, False)
    """
    return hasattr(a, "tocsr")


def dense(a: AnyArray) -> AnyArray:
    """Returns a sparse array as a dense one, and any other as it is.

    Example:
      >>> import scipy.sparse
      >>> dense(scipy.sparse.csr_array([[0, 2]]))
      array([[0, 2]])
    """
    return a.toarray() if is_sparse(a) else a


def is_known(a: AnyArray) -> bool:
    """Returns whether values can be looked at: no, if traced or if on other hosts too.

    Example:
      >>> is_known(np.ones(2)), bool(jax.jit(is_known)(np.ones(2)))
      (True, False)
    """
    if isinstance(a, jax.core.Tracer):
        return False
    return not isinstance(a, jax.Array) or a.is_fully_addressable


def is_real(a: AnyArray) -> bool:
    """Returns whether numbers are booleans, integers or floating point of up to 64 bits.

    Example:
      >>> is_real(np.array([1, 2])), is_real(np.array(["a"]))
      (True, False)
    """
    # Extension types such as bfloat16 are of kind V, which plain structured data is too.
    kind, name = a.dtype.kind, a.dtype.name
    return kind in "bui" or (kind == "f" and a.dtype.itemsize <= 8) or name == "bfloat16"


def exceeds_float32(dtype: np.dtype) -> bool:
    """Returns whether float32 does not hold all numbers of a type.

    Example:
      >>> exceeds_float32(np.dtype("float64")), exceeds_float32(np.dtype("uint8"))
      (True, False)
    """
    return dtype.kind in "iuf" and dtype.itemsize >= 4 and dtype != np.float32


def exceeds_jax(dtype: np.dtype) -> bool:
    """Returns whether numbers of a type lose digits in the widest floats that JAX is set to.

    Example:
      >>> exceeds_jax(np.dtype("float32"))
      False
    """
    return exceeds_float32(dtype) and jax.dtypes.canonicalize_dtype(np.float64) != np.float64
