"""Features, weights and biases of a head, checked, and filled up for the devices to share."""

import jax.numpy as jnp
import numpy as np

from softmax_jax import parallel
from softmax_jax._annotations import AnyArray, Array, Num
from softmax_jax.checks import as_array, as_real
from softmax_jax.head.targets import TargetWeights
from softmax_jax.head.tiles import Operands
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


def filled_up(operands: Operands, targets: TargetWeights) -> tuple[Operands, TargetWeights]:
    """Returns them with rows of zeros, and impossible classes, that a mesh divides evenly.

    There is one row at least, as compiled programs need one.
    """
    ids, weights, dense = (
        None if a is None else with_rows(a) for a in (targets.ids, targets.weights, targets.dense)
    )
    operands = operands._replace(x=with_rows(operands.x))
    targets = targets._replace(ids=ids, weights=weights, dense=dense)
    q = operands.w.shape[1]
    more = parallel.filled_up(q, parallel.CLASSES) - q
    if more == 0:
        return operands, targets
    b = jnp.zeros(q, operands.w.dtype) if operands.b is None else operands.b
    b = b if jnp.issubdtype(b.dtype, jnp.floating) else b.astype(jnp.float32)
    of_classes = targets.class_weights, targets.uniform
    class_weights, uniform = (
        None if a is None else jnp.pad(jnp.broadcast_to(a, (q,)), (0, more)) for a in of_classes
    )
    dense = None if dense is None else jnp.pad(dense, ((0, 0), (0, more)))
    return (
        operands._replace(
            w=jnp.pad(operands.w, ((0, 0), (0, more))),
            b=jnp.pad(b, (0, more), constant_values=-jnp.inf),
        ),
        targets._replace(dense=dense, class_weights=class_weights, uniform=uniform),
    )


def with_rows(a: Num[Array, "n ..."]) -> Num[Array, "rows ..."]:
    """Returns ``[n, ...]`` with rows of zeros that a mesh divides evenly, one at least."""
    more = parallel.filled_up(max(len(a), 1), parallel.DATA) - len(a)
    return jnp.pad(a, [(0, more)] + [(0, 0)] * (a.ndim - 1)) if more else a
