"""Models on disk: parameters together with the features and the classes that they were made for."""

import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from softmax_jax import checks, model
from softmax_jax._annotations import (
    AnyArray,
    Array,
    ArrayLike,
    Float,
    Integer,
    NDArray,
    Real,
    Shaped,
)
from softmax_jax.data import types
from softmax_jax.data.npz import MAX_BYTES, read_npz
from softmax_jax.model import Params

# The name of the file in the folder of a run.
PARAMS = "params.npz"

_OWN = ("w", "b", "scale", "shift", "class_names", "dtype", "best")


class Model(NamedTuple):
    """Parameters, and how to read features for them; from `load`.

    `features`, `predict` and `probabilities` take features as they were stored for training, and
    apply scale and shift themselves.
    """

    params: Params
    """NumPy arrays ``w: [d, q]``, ``b: [q]``."""
    scale: Real[NDArray, "*d"]
    """Scalar or ``[d]``: the model sees ``x * scale + shift``."""
    shift: Real[NDArray, "*d"]
    """Scalar or ``[d]``."""
    class_names: tuple[str, ...]
    """``q`` names, by default the numbers of the classes."""
    dtype: str | None
    """Type of the stored features, ``"uint8"`` for example; None if the file does not say."""
    about: dict[str, Any]
    """Further arrays of the file; of stacked models, the entries that belong to this one."""


def save(
    path: str | os.PathLike[str],
    params: Params,
    *,
    scale: AnyArray = 1.0,
    shift: AnyArray = 0.0,
    class_names: Sequence[str | bytes] | Shaped[NDArray, " q"] | None = None,
    dtype: DTypeLike | None = None,
    best: int | None = None,
    about: Mapping[str, AnyArray] | None = None,
) -> None:
    """Writes a model to one ``.npz`` file, whole or not at all.

    Args:
      path: of the file, which is replaced if it is there.
      params: ``w: [d, q]``, ``b: [q]``; or stacked models, ``w: [m, d, q]``, ``b: [m, q]``.
      scale: scalar or ``[d]``; the model sees ``x * scale + shift``.
      shift: scalar or ``[d]``.
      class_names: ``q`` names.
      dtype: type of the stored features ``x``, by which `features` tells raw from scaled ones;
        without it, features in any unit are taken.
      best: which of stacked models `load` takes unless told otherwise.
      about: further arrays by name; of stacked models, those of length ``m`` are one entry each.

    Raises:
      ValueError: if shapes do not fit, stacked models have no ``best``, or a name is taken.
      OSError: if the file cannot be written; an earlier one stays as it was.

    Example:
      >>> import pathlib, tempfile
      >>> import numpy as np, softmax_jax
      >>> params = softmax_jax.Params(np.eye(2), np.zeros(2))
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.npz"
      >>> softmax_jax.save(path, params, scale=1 / 255, class_names=["cat", "dog"], dtype="uint8")
      >>> softmax_jax.io.predict(softmax_jax.load(path), np.array([[0, 255]], np.uint8)).tolist()
      [1]
    """
    w, b = (_in_numpy(a) for a in params)
    arrays: dict[str, AnyArray] = {
        "w": w,
        "b": b,
        "scale": np.asarray(scale),
        "shift": np.asarray(shift),
    }
    if class_names is not None:
        names = checks.checked_names(class_names, "class_names")
        arrays["class_names"] = np.array(names, np.str_)
        if tuple(arrays["class_names"].tolist()) != names:
            raise ValueError("class_names: a name ends with a NUL character, which files lose")
    if dtype is not None:
        arrays["dtype"] = np.array(jnp.dtype(dtype).name)
    if best is not None:
        arrays["best"] = np.array(best)
    # The last two are arguments of NumPy's function.
    if taken := sorted(set(about or {}) & {*_OWN, "file", "allow_pickle"}):
        raise ValueError(f"about: {', '.join(taken)}: such names are taken; choose others")
    arrays |= {name: np.asarray(value) for name, value in (about or {}).items()}
    _model(arrays, where="params", member=None)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    write_atomically(pathlib.Path(path), stream.getvalue())


def load(
    path: str | os.PathLike[str], *, member: int | None = None, max_bytes: int = MAX_BYTES
) -> Model:
    """Reads a model that `save` wrote, or the one of a run.

    Args:
      path: of the file; or the folder of a run of ``experiments``, which has a ``params.npz``.
      member: which of stacked models, a sweep's or a path's; by default the best, which for a sweep
        is the one with the lowest validation loss, or test loss where nothing was held out.
      max_bytes: what a compressed file may unpack to; one that is not may always be read.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: names the file if it is no model, or is damaged.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.npz"
      >>> save(path, Params(np.eye(2), np.zeros(2)), class_names=["cat", "dog"])
      >>> load(path).class_names
      ('cat', 'dog')
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = path / PARAMS
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: give a file of softmax_jax.save, or a run")
    return _model(read_npz(path, max_bytes=max_bytes), where=str(path), member=member)


def features(saved: Model, x: AnyArray) -> Float[Array, "*batch d"]:
    """Returns features as the model sees them, ``x * scale + shift``: ``[..., d]``.

    They are formed in float32 at least.

    Args:
      saved: from `load`.
      x: ``[..., d]`` features, as they were stored for training.

    Raises:
      ValueError: if there are not ``d`` features a row; or, where the file says of what type they
        were stored, if that tells another unit: integers for a model made for floating-point ones,
        the other way round, or integers that the type does not hold. The message says the scale.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.npz"
      >>> save(path, Params(np.eye(2), np.zeros(2)), scale=1 / 255, dtype="uint8")
      >>> features(load(path), np.array([[0, 255]], np.uint8)).tolist()
      [[0.0, 1.0]]
    """
    return types.features(_batch(saved, x))


def _batch(saved: Model, x: AnyArray) -> types.Data:
    """Returns features with their unit; those in float64 on the host have it applied already."""
    x = checks.as_array(x, "x")
    d = saved.params.w.shape[0]
    if x.ndim == 0 or x.shape[-1] != d:
        raise ValueError(f"x: shape {x.shape}; the model was made for {d} features, [..., {d}]")
    if saved.dtype is not None and _is_floating(x.dtype) != _is_floating(saved.dtype):
        raise ValueError(
            f"x: type {x.dtype}, {_unit(saved)}; if they are in that unit, "
            f"x.astype({saved.dtype!r})"
        )
    is_integer = saved.dtype is not None and jnp.issubdtype(jnp.dtype(saved.dtype), jnp.integer)
    if is_integer and x.dtype != saved.dtype and checks.is_known(x) and x.size:
        low, high, held = int(x.min()), int(x.max()), jnp.iinfo(saved.dtype)
        if low < held.min or high > held.max:
            raise ValueError(f"x: from {low} to {high}, {_unit(saved)}")
    batch = types.Data(x, x[..., 0], scale=saved.scale, shift=saved.shift)
    return types.formed_on_host(batch)


def _unit(saved: Model) -> str:
    """Returns the unit of the features in words, and what to do."""
    return (
        f"but the model was made for {saved.dtype} features, of which it sees "
        f"x * {_brief(saved.scale)} + {_brief(saved.shift)}: give them as they were stored for "
        "training"
    )


def _seen(saved: Model, x: AnyArray) -> AnyArray:
    """Returns `features`, which on the host keep the float64 that parameters may need."""
    batch = _batch(saved, x)
    return batch.x if batch.scale is None else types.features(batch)


def probabilities(saved: Model, x: AnyArray) -> Float[Array, "*batch q"]:
    """Returns predicted probabilities ``[..., q]``, see `model.probabilities`.

    Features are given as to `features`.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.npz"
      >>> save(path, Params(np.eye(2), np.zeros(2)))
      >>> probabilities(load(path), [[1.0, 1.0]]).tolist()
      [[0.5, 0.5]]
    """
    return model.probabilities(saved.params, _seen(saved, x))


def predict(saved: Model, x: AnyArray, *, threshold: ArrayLike = 0.0) -> Integer[Array, "*batch"]:
    """Predicts class ids ``[...]``, see `model.predict`; features are given as to `features`.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.npz"
      >>> save(path, Params(np.eye(2), np.zeros(2)), class_names=["cat", "dog"])
      >>> saved = load(path)
      >>> [saved.class_names[i] for i in predict(saved, [[0.0, 3.0], [1.0, 0.0]])]
      ['dog', 'cat']
    """
    return model.predict(saved.params, _seen(saved, x), threshold=threshold)


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes under a temporary name and renames, so that no half of a file is ever left.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "notes.txt"
      >>> write_atomically(path, b"all of it")
      >>> path.read_bytes()
      b'all of it'
    """
    # Of this process, as another one may write the same file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _model(arrays: Mapping[str, Shaped[NDArray, "..."]], where: str, member: int | None) -> Model:
    """Returns the model that arrays by name describe, of stacked ones a single one."""
    if missing := [name for name in ("w", "b") if name not in arrays]:
        raise ValueError(f"{where}: there is no {' and no '.join(missing)}; expected w and b")
    w, b = arrays["w"], arrays["b"]
    if w.ndim not in (2, 3) or b.shape != (*w.shape[:-2], w.shape[-1]) or 0 in w.shape:
        raise ValueError(
            f"{where}: w has shape {w.shape} and b {b.shape}; expected [d, q] and [q], or "
            "[m, d, q] and [m, q]"
        )
    if not (_is_floating(w.dtype) and _is_floating(b.dtype)):
        raise ValueError(f"{where}: w is {w.dtype} and b {b.dtype}; expected floating point")
    d, q = w.shape[-2:]
    scale, shift = arrays.get("scale", np.array(1.0)), arrays.get("shift", np.array(0.0))
    for name, unit in (("scale", scale), ("shift", shift)):
        if not checks.is_real(unit):
            raise ValueError(f"{where}: {name} is {unit.dtype}; expected numbers")
        checks.per_feature(unit, 0.0, d, f"{where}: {name}")
    dtype = str(arrays["dtype"]) if "dtype" in arrays else None
    if dtype is not None and not _is_type(dtype):
        raise ValueError(f"{where}: dtype is {dtype!r}; expected the name of a type of numbers")
    names = arrays.get("class_names", np.arange(q))
    if names.shape != (q,):
        raise ValueError(f"{where}: class_names of shape {names.shape} for {q} classes")
    about = {name: a for name, a in arrays.items() if name not in _OWN}
    if objects := [name for name, a in about.items() if a.dtype.kind == "O"]:
        raise ValueError(f"{where}: {', '.join(objects)}: expected numbers or text")
    if w.ndim == 3:
        m = len(w)
        if member is None and "best" not in arrays:
            raise ValueError(
                f"{where}: holds {m} models, and does not say which is the best: give best to "
                "save, or member to load"
            )
        of_file = f"{where}: best" if member is None else "member"
        at = checks.checked_count(arrays["best"][()] if member is None else member, of_file, 0)
        if at >= m:
            raise ValueError(f"{where}: model {at} of {m}; they are numbered from 0")
        w, b = w[at], b[at]
        about = {name: a[at] if a.shape[:1] == (m,) else a for name, a in about.items()}
        about["member"] = np.array(at)
    elif member not in (None, 0):
        raise ValueError(f"{where}: member {member} of a single model")
    return Model(
        params=Params(w, b),
        scale=scale,
        shift=shift,
        class_names=checks.checked_names(names.tolist(), f"{where}: class_names"),
        dtype=dtype,
        about={name: a.item() if a.ndim == 0 else a for name, a in about.items()},
    )


def _in_numpy(a: AnyArray) -> Shaped[NDArray, "..."]:
    """Returns a NumPy array that files can hold: bfloat16, which they do not know, as float32."""
    array = np.asarray(a)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _is_type(name: str) -> bool:
    try:
        dtype = jnp.dtype(name)
    except TypeError:
        return False
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_))


def _is_floating(dtype: DTypeLike) -> bool:
    return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)


def _brief(unit: Real[NDArray, "*d"]) -> str:
    return f"{unit:.6g}" if unit.ndim == 0 else f"[{unit.min():.3g} ... {unit.max():.3g}]"
