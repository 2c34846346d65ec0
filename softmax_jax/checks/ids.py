"""Class ids of any integer type."""

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray
from softmax_jax.checks.arrays import as_array, is_known, on_device


def as_ids(labels: AnyArray, num_classes: int, where: str) -> jax.Array:
    """Returns class ids of any integer type and shape as a JAX array, each in [0, num_classes).

    The door of class ids. Host arrays become int32 after the check. JAX arrays are looked at on
    the host and pass as they are. Traced values pass unseen (and int64 host arrays that are
    arguments of the caller's own ``jax.jit`` are wrapped to int32 before anything sees them):
    those who use them give NaN for ids out of range, by `known_ids`.

    Raises:
      ValueError: if the type is no integer, or an id is out of range; names the first such row.

    Example:
      >>> as_ids(np.array([2, 0]), 3, "targets")
      Array([2, 0], dtype=int32)
    """
    return on_device(checked_ids(labels, num_classes, where))


def checked_ids(labels: AnyArray, num_classes: int | None, where: str) -> AnyArray:
    """Does as `as_ids` for arguments of a jitted function: host arrays stay there, as is quicker.

    Without ``num_classes`` an id may be any that int32 holds.

    Example:
      >>> checked_ids([2, 0], 3, "targets")
      array([2, 0], dtype=int32)
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
    """Raises a ValueError that names the first class id which is negative or beyond the last.

    Example:
      >>> refuse_ids_out_of_range(np.array([0, 3]), 3, "y")
      Traceback (most recent call last):
      ValueError: y: row 1 has class id 3, but there are 3 classes, with ids 0 to 2
    """
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
    """Returns ids as int32, 0 for those out of [0, num_classes); and which are in range.

    Example:
      >>> ids, is_valid = known_ids(jnp.array([1, 7]), 3)
      >>> ids.tolist(), is_valid.tolist()
      ([1, 0], [True, False])
    """
    if ids.dtype.itemsize < 4:
        ids = ids.astype(jnp.int32)  # small types cannot hold what they are compared with
    valid = (ids >= 0) & (ids < num_classes)
    return jnp.where(valid, ids, 0).astype(jnp.int32), valid
