"""Sources of data sets: a name, an ``.npz`` file, or a folder that TFDS prepared."""

import contextlib
import io
import os
import pathlib
import queue
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np

from softmax_jax.checks import checked_count
from softmax_jax.data.classroom import classroom
from softmax_jax.data.dataset import Dataset, from_arrays
from softmax_jax.data.npz import MAX_BYTES, STRING_BYTES, read_npz
from softmax_jax.data.prepared import load_prepared

NAMES = ("classroom", "digits", "mnist", "fashion_mnist")
FOLDER_VARIABLE = "SOFTMAX_JAX_DATA"
"""Names a folder with ``mnist/`` and ``fashion_mnist/`` in it, each of four IDX files."""

_CONNECT_SECONDS = 3.0
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


def load(
    name: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] = "",
    data_dir: str | os.PathLike[str] = "",
    max_bytes: int = MAX_BYTES,
) -> Dataset:
    """Loads a data set into memory.

    Args:
      name: one of `NAMES`, the path of an ``.npz`` file, or that of a folder prepared by TFDS.
      folder: for ``mnist`` and ``fashion_mnist``, where the IDX files are. By default the folder
        of that name in ``$SOFTMAX_JAX_DATA``; without one they are downloaded.
      data_dir: where TFDS keeps what it prepared; by default ``$TFDS_DATA_DIR`` or
        ``~/tensorflow_datasets``.
      max_bytes: what a compressed file may unpack to, which is looked at before it is.

    Raises:
      ValueError: on an unknown name or defective data.
      FileNotFoundError: if files are missing.
      ConnectionError: if a download is needed and its host cannot be reached, within seconds.

    Example:
      >>> from softmax_jax import data
      >>> data.load("classroom").class_names
      ('cat', 'chicken', 'dog')
    """
    name, folder, data_dir = os.fspath(name), os.fspath(folder), os.fspath(data_dir)
    if folder and name not in ("mnist", "fashion_mnist"):
        raise ValueError(f"folder={folder!r} is for mnist and fashion_mnist, not for {name!r}")
    if name == "classroom":
        return classroom()
    if name in NAMES:
        return _load_builder(name, folder, data_dir, max_bytes)
    if name.endswith(".npz"):
        return load_npz(name, max_bytes=max_bytes)
    if pathlib.Path(name, "dataset_info.json").is_file():
        return load_prepared(name, max_bytes=max_bytes)
    raise ValueError(
        f"unknown data set {name!r}; expected one of {', '.join(NAMES)}, the path of an existing "
        ".npz file, or a folder prepared by TFDS (one with a dataset_info.json)"
    )


def load_npz(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Dataset:
    """Reads ``x_train``, ``y_train``, ``x_test`` and ``y_test``, as Keras names them.

    ``class_names`` and ``num_classes`` are read too if there, see `from_arrays`; uint8 features are
    scaled by 1/255.

    Args:
      path: of the file.
      max_bytes: what the arrays may take in memory if it is more than the file has; class names
        count 64 bytes each.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no ``.npz`` file, an array is missing or defective.

    Example:
      >>> import pathlib, tempfile
      >>> from softmax_jax import data
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "pixels.npz"
      >>> x, y = np.array([[0, 255], [255, 0]], np.uint8), np.array([0, 1])
      >>> np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
      >>> data.features(data.load_npz(path).train).tolist()
      [[0.0, 1.0], [1.0, 0.0]]
    """
    keys = (*_NPZ_KEYS, "class_names", "num_classes")
    arrays = read_npz(path, keys, required=_NPZ_KEYS, max_bytes=max_bytes)
    names = arrays.get("class_names")
    num_classes: Any = arrays.get("num_classes")
    with _naming(path):
        if num_classes is not None:
            num_classes = checked_count(num_classes[()], "num_classes")
            _refuse_many_names(num_classes, max(os.path.getsize(path), max_bytes))
        return from_arrays(
            *(arrays[key] for key in _NPZ_KEYS),
            class_names=None if names is None else names.ravel().tolist(),
            num_classes=num_classes,
            scale=1 / 255 if arrays["x_train"].dtype == np.uint8 else 1.0,
        )


def _refuse_many_names(num_classes: int, most: int) -> None:
    """Raises a ValueError if the names of the classes, which are made up here, take too much."""
    if num_classes * STRING_BYTES > most:
        raise ValueError(
            f"the names of {num_classes:,} classes take {num_classes * STRING_BYTES:,} bytes, of "
            f"{most:,} that are there; a larger max_bytes allows it"
        )


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Puts the path before the message of a ValueError."""
    try:
        yield
    except ValueError as e:
        raise ValueError(f"{os.fspath(path)}: {e}") from e


def _load_builder(name: str, folder: str, data_dir: str, max_bytes: int) -> Dataset:
    from softmax_jax.data import builders

    cls = {
        "digits": builders.SoftmaxJaxDigits,
        "mnist": builders.SoftmaxJaxMnist,
        "fashion_mnist": builders.SoftmaxJaxFashionMnist,
    }[name]
    if not folder and name != "digits":
        candidate = pathlib.Path(os.environ.get(FOLDER_VARIABLE, ""), name)
        folder = str(candidate) if os.environ.get(FOLDER_VARIABLE) and candidate.is_dir() else ""

    source: dict[str, Any] = {}
    if name != "digits":
        source = {"folder": folder, "max_bytes": max_bytes}
    expected = cls.SHA256
    if folder:
        # The same checks as when TFDS writes, before it begins to.
        expected = builders.content_digests(cls.read_folder(folder, max_bytes=max_bytes))
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    prepared = pathlib.Path(root, cls.name, str(cls.VERSION)).expanduser()
    if not prepared.exists():
        if name != "digits" and not folder:
            _check_reachable(name, f"{cls.URL}{next(iter(cls.SHA256))}.gz", prepared)
        _prepare(cls, prepared, source)
    dataset = load_prepared(prepared, max_bytes=max_bytes)
    arrays = dict(zip(cls.SHA256, (*dataset.train[:2], *dataset.test[:2]), strict=True))
    if builders.content_digests(arrays) != expected:
        raise ValueError(
            f"{prepared} was prepared from other data than {folder or 'the published'}; give the "
            f"folder of those, another data_dir, or remove {prepared}"
        )
    return dataset


def _prepare(cls: Any, final: pathlib.Path, source: dict[str, Any]) -> None:
    """Prepares under a name of its own, so that another process may be at the same."""
    root = final.parent.parent
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{cls.name}.incomplete.", dir=root) as temporary:
        builder = cls(data_dir=temporary, file_format="array_record", **source)
        # What TFDS prints speaks of a download whether there is one or not; its bars tell enough.
        show_bars = cls.name != "softmax_jax_digits"  # which take longer than the work
        with contextlib.redirect_stdout(io.StringIO()), _progress_bars(show_bars):
            builder.download_and_prepare(download_dir=root / "downloads")
        final.parent.mkdir(exist_ok=True)
        try:
            os.rename(builder.data_path, final)
        except OSError:
            if not final.exists():  # by another process, which came first
                raise


@contextlib.contextmanager
def _progress_bars(show: bool):
    import tensorflow_datasets as tfds

    if not show:
        tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.enable_progress_bar()


def _check_reachable(name: str, url: str, prepared: os.PathLike[str]) -> None:
    """Raises a ConnectionError if a host does not answer; TFDS itself would retry for minutes."""
    # In a thread, for no timeout bounds the look-up of a name; urllib heeds proxies.
    answer: queue.Queue[Exception | None] = queue.Queue()

    def ask():
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
            answer.put(None)
        except OSError as e:
            answer.put(e)

    threading.Thread(target=ask, daemon=True).start()
    try:
        problem = answer.get(timeout=_CONNECT_SECONDS + 1)
    except queue.Empty:
        problem = TimeoutError("no answer")
    if problem is None:
        return
    raise ConnectionError(
        f"{name} is not prepared in {prepared}, no folder of its files was given, and {url} "
        f"cannot be reached ({problem}).\n"
        f"Fetch the four *-ubyte.gz files beside it on a machine with a network, put them in a "
        f"folder, and name it with --config.data.folder=FOLDER (folder=... in Python); or set "
        f"${FOLDER_VARIABLE} to the folder that has them in {name}/."
    ) from problem
