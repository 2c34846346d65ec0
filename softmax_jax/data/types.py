"""Examples as they are stored, and the one reading of ``x * scale + shift``.

`features` applies it to the examples, `for_stored` to the parameters instead.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmax_jax._annotations import AnyArray, Array, Float
from softmax_jax._dtypes import at_least_float32
from softmax_jax.checks import as_array, as_real, exceeds_float32, is_known, per_feature
from softmax_jax.data.stored import StoredRows
from softmax_jax.data.streams import Stream
from softmax_jax.model import Params


class Data(NamedTuple):
    """Examples as they are stored, and how to read their features; a whole data set is one too."""

    x: AnyArray
    """``[n, d]`` raw features, uint8 pixels for example; the model sees ``x * scale + shift``.

    Epochs and evaluation also take `StoredRows`, of which they read what they need.
    """
    targets: AnyArray
    """Class ids ``[n]`` or probabilities ``[n, q]``; `make_update` takes `SparseTargets`."""
    weights: AnyArray | None = None
    """``[n]`` example weights; None means 1."""
    scale: AnyArray | None = None
    """Scalar or ``[d]``; None means 1."""
    shift: AnyArray | None = None
    """Scalar or ``[d]``; None means 0."""


@jax.transfer_guard("allow")
def features(batch: Data) -> Float[Array, "*batch d"]:
    """Returns ``x * scale + shift`` as the model sees it: ``[..., d]``, floating point.

    It is formed in float32 at least: float16 and bfloat16 features that have no scale and no shift
    keep their type, all others become float32 (or float64 under ``jax_enable_x64``). Host arrays of
    float64 or of integers of 32 bits and more are formed by NumPy in float64, so that a shift takes
    away a large offset, of a date for example, before float32 would round it.

    Example:
      >>> from softmax_jax import data
      >>> pixels = data.Data(x=np.array([[0, 255]], np.uint8), targets=[1], scale=1 / 255)
      >>> data.features(pixels)
      Array([[0., 1.]], dtype=float32)
    """
    if isinstance(batch.x, StoredRows | Stream):
        raise ValueError("x: stored rows; give a batch of them, such as x[:256]")
    batch = formed_on_host(batch)
    x = as_real(batch.x, "x")
    if batch.scale is None and batch.shift is None and jnp.issubdtype(x.dtype, jnp.floating):
        return x
    x = at_least_float32(x)
    if batch.scale is not None:
        x = x * _like_rows_of(x, batch.scale)
    if batch.shift is not None:
        x = x + _like_rows_of(x, batch.shift)
    return x


def for_stored(params: Params, scale: AnyArray | None, shift: AnyArray | None) -> Params:
    r"""Returns parameters that give for stored ``x`` the logits of ``params`` for its features.

    .. math:: (x \odot a + c) W + b = x \, (a \odot W) + (b + c W)

    They are formed by NumPy in float64, one rounded operation after the other, so that they are the
    same to the last bit on every machine.

    Args:
      params: ``w: [..., d, q]``, ``b: [..., q]`` on the host.
      scale: ``a``, scalar or ``[d]``; None means 1.
      shift: ``c``, scalar or ``[d]``; None means 0.

    Raises:
      ValueError: if they are not finite, or neither one number nor ``d``.

    Example:
      >>> import numpy as np
      >>> params = Params(np.array([[2.0, 4.0]]), np.array([0.0, 1.0]))
      >>> for_stored(params, 0.5, 3.0)
      Params(w=array([[1., 2.]]), b=array([ 6., 13.]))
    """
    w, b = (np.asarray(a).astype(np.float64) for a in params)
    d = w.shape[-2]
    if shift is not None:
        b = b + np.sum(w * per_feature(shift, 0.0, d, "shift")[:, None], axis=-2)
    return Params(w * per_feature(scale, 1.0, d, "scale")[:, None], b)


def _like_rows_of(x: Float[Array, "*shape"], value: AnyArray) -> Float[Array, "*shape"]:
    return jnp.broadcast_to(as_real(value, "scale, shift").astype(x.dtype), x.shape)


def formed_on_host(batch: Data) -> Data:
    """Returns the batch with wide host features formed in float64; any other as it is."""
    scale, shift = batch.scale, batch.shift
    if isinstance(batch.x, jax.Array | Stream) or not (is_known(scale) and is_known(shift)):
        return batch
    x = as_array(batch.x, "x")
    if not exceeds_float32(x.dtype) or (scale is None and shift is None):
        return batch._replace(x=x)
    formed = x.astype(np.float64)
    if scale is not None:
        formed *= np.asarray(scale, np.float64)
    if shift is not None:
        formed += np.asarray(shift, np.float64)
    return batch._replace(x=formed, scale=None, shift=None)
