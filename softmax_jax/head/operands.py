"""Features, weights and biases of a head, checked."""

import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray, Array, Num
from softmax_jax.checks import as_array, as_real
from softmax_jax.model import Params, centred


def checked_operands(
    x: AnyArray, w: AnyArray, b: AnyArray | None
) -> tuple[Num[Array, "*batch d"], Num[Array, "d q"], Num[Array, " q"] | None]:
    """Returns features, weights and biases of logits as JAX arrays; see `model.logits`.

    Raises:
      ValueError: if they are no real numbers, or their shapes do not fit.
    """
    x, w = as_array(x, "x"), as_array(w, "w")
    if w.ndim != 2 or 0 in w.shape:
        raise ValueError(f"w must have shape [d, q], got {w.shape}")
    d, q = w.shape
    if x.ndim == 0 or x.shape[-1] != d:
        raise ValueError(f"x of shape {x.shape} needs a last axis of the {d} features of w")
    bias = np.zeros(q) if b is None else as_array(b, "b")
    if bias.shape != (q,):
        raise ValueError(f"b of shape {bias.shape} for the {q} classes of w")
    given = Params(w, bias)
    params, x = centred(given, x)
    has_bias = b is not None or params is not given
    return (
        as_real(x, "x"),
        as_real(params.w, "w"),
        as_real(params.b, "b") if has_bias else None,
    )


def at_least_one_row(a: Num[Array, "n ..."]) -> Num[Array, "rows ..."]:
    """Returns ``[n, ...]``, or a row of zeros for none: compiled programs take one at least."""
    return jnp.zeros((1, *a.shape[1:]), a.dtype) if len(a) == 0 else a
