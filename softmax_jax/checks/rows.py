"""Rows of a data set on the host: features, probabilities and weights."""

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray
from softmax_jax.checks.arrays import as_array, dense, is_real, is_sparse

# float32 probabilities of a million classes still sum to one this well.
SUM_TOLERANCE = 1e-3


def refuse_not_finite(x: AnyArray, where: str) -> None:
    """Raises a ValueError if NumPy's or CSR ``[n, d]`` has NaN or infinities.

    Example:
      >>> x = np.array([[0.0, 1.0], [np.nan, 2.0]])
      >>> refuse_not_finite(x, "x")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: x: row 1, feature 0 is nan as float64 (1 of 2 rows have such values); drop ...
    """
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
    """Returns finite real ``[n, d]`` as they are, in NumPy; sparse ones as CSR, one entry a number.

    `dense_rows` takes blocks of either.

    Example:
      >>> checked_features([[1, 2]])
      array([[1, 2]])
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

    Example:
      >>> as_rows([1.0, 2.0])
      Traceback (most recent call last):
      ValueError: x: shape (2,); expected [n, d]
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
    """Returns some rows of `checked_features`, dense.

    Example:
      >>> import scipy.sparse
      >>> dense_rows(checked_features(scipy.sparse.csr_array([[0, 2], [3, 0]])), slice(1, 2))
      array([[3, 0]])
    """
    return dense(x[rows])


def refuse_other_than_probabilities(
    values: np.ndarray, where: str, counts: np.ndarray | None = None
) -> None:
    """Raises a ValueError if ``[n, ...]`` has numbers outside [0, 1], or NaN.

    Beyond the ends they may be by rounding: by `SUM_TOLERANCE`, or by an ulp of narrower types.

    Args:
      values: of a floating-point type, or integers.
      where: what they are.
      counts: ``[n]``, which rows are looked at; None for all.

    Example:
      >>> refuse_other_than_probabilities(np.array([0.2, 50.0]), "p")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: p: row 1 has 50, which is no probability; expected numbers in [0, 1]: ...
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
    """Returns by how much probabilities or their sum may be off: an ulp, or `SUM_TOLERANCE`.

    Example:
      >>> rounding_of_probabilities("float32"), rounding_of_probabilities("bfloat16")
      (0.001, 0.0078125)
    """
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
    """Raises a ValueError unless `checked_weights` have a positive and finite sum.

    Example:
      >>> refuse_no_weight(np.zeros(3))
      Traceback (most recent call last):
      ValueError: weights: the total weight is zero; give some row a positive weight
    """
    with np.errstate(over="ignore"):
        total = weights.sum(axis=-1)
    if not (total > 0).all():
        raise ValueError(f"{name}: the total weight is zero; give some row a positive weight")
    if not np.isfinite(total).all():
        raise ValueError(f"{name}: the total weight is infinite; give smaller ones")
