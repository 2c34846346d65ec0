"""Checks of features and targets at the door; each message names the place and a remedy."""

import decimal
import numbers
import operator
import os
from collections.abc import Iterable
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray, Scalar

# float32 probabilities of a million classes still sum to one this well.
SUM_TOLERANCE = 1e-3


def as_array(a: AnyArray, where: str) -> AnyArray:
    """Returns an array as JAX can take it, of the same numbers.

    JAX arrays and tracers stay what they are. Lists, data frames and `np.matrix` become plain
    NumPy arrays; other byte orders native ones; ``longdouble`` float64; arrays of Python numbers
    (dtype object) become those of the type that NumPy finds for them, float64 beyond 64 bits.

    Raises:
      ValueError: if rows differ in length, an entry of an object array is not a number, or one of
        a masked array is masked.
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


def as_real(a: AnyArray, where: str) -> jax.Array:
    """Returns real numbers as a JAX array, converted on the host before JAX would cut them.

    The door of features, parameters, logits and weights. What JAX has already, traced values
    included, passes through as it is, integers too; anything else goes by `as_array`. There,
    64-bit integers, which JAX would wrap to 32 bits, and float64 become float32, or stay 64 bits
    wide as float64 under ``jax_enable_x64``. NaN and infinities pass.

    Raises:
      ValueError: if they are no real numbers (text, complex numbers, dates), or as `as_array`.
    """
    return _put(checked_real(a, where))


def checked_real(a: AnyArray, where: str) -> AnyArray:
    """`as_real` for arguments of a jitted function: host arrays stay there, as it is quicker."""
    array = as_array(a, where)
    if not (
        jnp.issubdtype(array.dtype, jnp.floating)
        or jnp.issubdtype(array.dtype, jnp.integer)
        or array.dtype == bool
    ):
        raise ValueError(f"{where}: type {array.dtype}; expected real numbers")
    return array if isinstance(array, jax.Array) else _of_float_width(array)


def _put(a: AnyArray) -> jax.Array:
    """Puts an array on the device by an explicit transfer, which a guard may demand."""
    return a if isinstance(a, jax.Array) else jax.device_put(a)


def _of_float_width(a: np.ndarray) -> np.ndarray:
    """64-bit numbers as the widest floating-point type that JAX is set to."""
    if a.dtype.kind not in "uif" or a.dtype.itemsize < 8:
        return a
    with np.errstate(over="ignore"):
        return a.astype(jax.dtypes.canonicalize_dtype(np.float64), copy=False)


def is_sparse(a: AnyArray) -> bool:
    """Returns whether an array is a sparse one, as SciPy's are."""
    return hasattr(a, "tocsr")


def is_known(a: AnyArray) -> bool:
    """Returns whether values can be looked at: no, if traced or if on other hosts too."""
    if isinstance(a, jax.core.Tracer):
        return False
    return not isinstance(a, jax.Array) or a.is_fully_addressable


def as_ids(labels: AnyArray, num_classes: int, where: str) -> jax.Array:
    """Returns class ids of any integer type and shape as a JAX array, each in [0, num_classes).

    The door of class ids. Host arrays become int32 after the check. JAX arrays are looked at on
    the host and pass as they are. Traced values pass unseen (and int64 host arrays that are
    arguments of the caller's own ``jax.jit`` are wrapped to int32 before anything sees them):
    those who use them give NaN for ids out of range, by `known_ids`.

    Raises:
      ValueError: if the type is no integer, or an id is out of range; names the first such row.
    """
    return _put(checked_ids(labels, num_classes, where))


def checked_ids(labels: AnyArray, num_classes: int | None, where: str) -> AnyArray:
    """Does as `as_ids` for arguments of a jitted function: host arrays stay there, as is quicker.

    Without ``num_classes`` an id may be any that int32 holds.
    """
    array = as_array(labels, where)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{where}: class ids of type {array.dtype}; expected integers from 0: use "
            ".astype('int32'), or number the classes with np.unique(labels, return_inverse=True)"
        )
    if is_known(array):
        refuse_ids_out_of_range(np.asarray(array), num_classes, where)
    return array if isinstance(array, jax.Array) else array.astype(np.int32, copy=False)


def refuse_ids_out_of_range(ids: np.ndarray, num_classes: int | None, where: str) -> None:
    """Raises a ValueError that names the first class id which is negative or beyond the last."""
    if not ids.size:
        return
    low, high = int(ids.min()), int(ids.max())
    end = 2**31 if num_classes is None else num_classes
    if low >= 0 and high < end:
        return
    bad = (ids < 0) | (ids >= end)
    at = np.unravel_index(int(np.argmax(bad)), bad.shape)
    row = at[0] if ids.ndim == 1 else f"[{', '.join(map(str, at))}]"
    if num_classes is None:
        problem = "; ids start at 0" if ids[at] < 0 else ", above 2**31 - 1"
    else:
        problem = f", but there are {end} classes, with ids 0 to {end - 1}"
        if low > 0 and high == end:
            problem += "; they seem to start at 1: subtract it"
    raise ValueError(f"{where}: row {row} has class id {ids[at]}{problem}")


def known_ids(ids: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
    """Returns ids as int32, 0 for those out of [0, num_classes); and which are in range."""
    if ids.dtype.itemsize < 4:
        ids = ids.astype(jnp.int32)  # small types cannot hold what they are compared with
    valid = (ids >= 0) & (ids < num_classes)
    return jnp.where(valid, ids, 0).astype(jnp.int32), valid


def _numbers_of_objects(a: np.ndarray, where: str) -> np.ndarray:
    for place, entry in np.ndenumerate(a):
        if not isinstance(entry, numbers.Real | decimal.Decimal | np.bool_):
            at = ", ".join(map(str, place))
            raise ValueError(f"{where}: entry [{at}] is {entry!r}; expected numbers")
    found = np.array(a.tolist())
    # Integers beyond 64 bits stay objects.
    return found.astype(np.float64) if found.dtype.kind == "O" else found


def is_wide(dtype: np.dtype) -> bool:
    """Returns whether float32 does not hold all numbers of a type."""
    return dtype.kind in "iuf" and dtype.itemsize >= 4 and dtype != np.float32


def exceeds_jax(dtype: np.dtype) -> bool:
    """Returns whether numbers of a type lose digits in the widest floats that JAX is set to."""
    return is_wide(dtype) and jax.dtypes.canonicalize_dtype(np.float64) != np.float64


def checked_count(value: SupportsIndex, name: str, at_least: int = 1) -> int:
    """Returns an integer of any type as int.

    Raises:
      ValueError: if it is none, such as 2.5, 2.0, True or "2", or is less than ``at_least``.
    """
    is_integer = not isinstance(value, bool | np.bool_) and hasattr(value, "__index__")
    if not is_integer or getattr(value, "ndim", 0) > 0 or operator.index(value) < at_least:
        raise ValueError(f"{name}: {value!r}; expected an integer, {at_least} or more")
    return operator.index(value)


def is_real(a: AnyArray) -> bool:
    """Booleans, integers and floating-point numbers of up to 64 bits."""
    # Extension types such as bfloat16 are of kind V, which plain structured data is too.
    kind, name = a.dtype.kind, a.dtype.name
    return kind in "bui" or (kind == "f" and a.dtype.itemsize <= 8) or name == "bfloat16"


def refuse_not_finite(x: AnyArray, where: str) -> None:
    """Raises a ValueError if NumPy's or CSR ``[n, d]`` has NaN or infinities."""
    if x.dtype.kind in "bui":
        return
    finite = np.isfinite(x.data if is_sparse(x) else x)
    if finite.all():
        return
    if is_sparse(x):
        stored = np.flatnonzero(~finite)
        row_of = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
        rows, column, value = np.unique(row_of[stored]), x.indices[stored[0]], x.data[stored[0]]
    else:
        rows = np.flatnonzero(~finite.all(axis=1))
        column = np.flatnonzero(~finite[rows[0]])[0]
        value = x[rows[0], column]
    raise ValueError(
        f"{where}: row {rows[0]}, feature {column} is {float(value)} as {x.dtype} "
        f"({len(rows)} of {x.shape[0]} rows have such values); drop these rows or fill the gaps"
    )


def checked_features(x: AnyArray, where: str = "x") -> AnyArray:
    """Finite real numbers ``[n, d]``, as they are, in NumPy; sparse ones as CSR of its own entries.

    `dense_rows` takes blocks of either.
    """
    x = as_rows(x, where)
    if not is_sparse(x):
        x = np.asarray(x)
    elif not x.has_canonical_format:
        x = x.copy()  # it is the user's
        x.sum_duplicates()
    refuse_not_finite(x, where)
    return x


def as_rows(x: AnyArray, where: str = "x") -> AnyArray:
    """Returns real numbers ``[n, d]`` as CSR, as a JAX array where they are one, or as NumPy's.

    Raises:
      ValueError: if they have another shape, or are no real numbers.
    """
    if is_sparse(x):
        x = x.tocsr()
        stored = as_array(x.data, f"{where}, stored values")
        x = x if stored is x.data else type(x)((stored, x.indices, x.indptr), shape=x.shape)
    else:
        x = as_array(x, where)
    if x.ndim != 2:
        raise ValueError(f"{where}: shape {x.shape}; expected [n, d]")
    if not is_real(x):
        raise ValueError(f"{where}: type {x.dtype}; expected real numbers")
    return x


def dense_rows(x: AnyArray, rows: slice) -> np.ndarray:
    """Returns some rows of `checked_features`, dense."""
    return dense(x[rows])


def dense(a: AnyArray) -> AnyArray:
    """Returns a sparse array as a dense one, and any other as it is."""
    return a.toarray() if is_sparse(a) else a


def refuse_other_than_probabilities(
    values: np.ndarray, where: str, counts: np.ndarray | None = None
) -> None:
    """Raises a ValueError if ``[n, ...]`` has numbers outside [0, 1], or NaN.

    Beyond the ends they may be by rounding: by `SUM_TOLERANCE`, or by an ulp of narrower types.

    Args:
      values: of a floating-point type, or integers.
      where: what they are.
      counts: ``[n]``, which rows are looked at; None for all.
    """
    if not is_real(values):
        raise ValueError(f"{where}: type {values.dtype}; expected probabilities")
    slack = rounding_of_probabilities(values.dtype)
    values = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
    bad = ~((values >= -slack) & (values <= 1 + slack))
    if counts is not None:
        bad &= counts.reshape(-1, *[1] * (bad.ndim - 1))
    if bad.any():
        at = np.unravel_index(int(np.argmax(bad)), bad.shape)
        raise ValueError(
            f"{where}: row {at[0]} has {values[at]:g}, which is no probability; expected numbers "
            "in [0, 1]: of logits take the softmax, divide percents by 100"
        )


def rounding_of_probabilities(dtype: jax.typing.DTypeLike) -> float:
    """Returns by how much probabilities or their sum may be off: an ulp, or `SUM_TOLERANCE`."""
    is_floating = jnp.issubdtype(dtype, jnp.floating)
    return max(SUM_TOLERANCE, float(jnp.finfo(dtype).eps) if is_floating else 0.0)


def checked_weights(
    weights: AnyArray, rows: int, name: str = "weights", *, several: bool = False
) -> np.ndarray:
    """Returns finite float64 weights, 0 or more; 1 where they are None: ``[rows]``.

    Args:
      weights: ``[rows]``, or ``[m, rows]`` where there may be several weightings.
      rows: how many there are.
      name: of the argument.
      several: whether there may be, and the result is ``[m, rows]``.

    Raises:
      ValueError: if they are something else; names the first such row.

    Example:
      >>> checked_weights([1, 2], 2)
      array([1., 2.])
    """
    checked = np.ones(rows) if weights is None else np.asarray(weights, np.float64)
    if rows == 0:
        raise ValueError("there are no examples")
    if checked.shape[-1:] != (rows,) or checked.ndim > 1 + several:
        shapes = f"[{rows}], or [m, {rows}]" if several else f"[{rows}]"
        raise ValueError(f"{name}: shape {checked.shape} for {rows} rows; expected {shapes}")
    bad = ~(np.isfinite(checked) & (checked >= 0))
    if bad.any():
        at = tuple(np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: row {at[-1]} has weight {checked[at]}; expected finite numbers, 0 or more"
        )
    return np.atleast_2d(checked) if several else checked


def refuse_no_weight(weights: np.ndarray, name: str = "weights") -> None:
    """Raises a ValueError unless `checked_weights` have a positive and finite sum."""
    with np.errstate(over="ignore"):
        total = weights.sum(axis=-1)
    if not (total > 0).all():
        raise ValueError(f"{name}: the total weight is zero; give some row a positive weight")
    if not np.isfinite(total).all():
        raise ValueError(f"{name}: the total weight is infinite; give smaller ones")


def checked_strength(value: Scalar, name: str) -> float:
    """Returns the strength of a penalty as a float.

    Raises:
      ValueError: if it is negative or not finite.
    """
    strength = float(value)
    if not 0 <= strength < np.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {strength}: 0 is no penalty")
    return strength


def per_feature(value: AnyArray, default: float, d: int, name: str) -> np.ndarray:
    """``[d]`` finite float64, of one number or of one a feature."""
    value = np.asarray(default if value is None else value, np.float64)
    if value.shape not in ((), (d,)) or not np.isfinite(value).all():
        raise ValueError(f"{name}: expected a finite number, or {d} of them, one a feature")
    return np.array(np.broadcast_to(value, (d,)))


def checked_names(names: Iterable[object], where: str) -> tuple[str, ...]:
    """Returns names as text; bytes, as NumPy's type S and HDF5 have them, are read as UTF-8.

    Raises:
      ValueError: if bytes are not UTF-8.
    """
    found = []
    for name in names:
        try:
            found.append(name.decode() if isinstance(name, bytes) else str(name))
        except UnicodeDecodeError as e:
            raise ValueError(f"{where}: {name!r} is not UTF-8; give text") from e
    return tuple(found)


def refuse_other_than_utf8(path: os.PathLike[str]) -> None:
    """Raises a ValueError if a path cannot be written as UTF-8, as writers of files need it."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"{os.fspath(path)!a}: the path is not UTF-8; give another one") from e
