"""Folders that TFDS prepared, read as they were prepared or not at all."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from softmax_jax._annotations import Integer, NDArray, Shaped
from softmax_jax.data import blocks
from softmax_jax.data.dataset import Dataset, from_arrays
from softmax_jax.data.npz import MAX_BYTES

DIGESTS = "SHA256SUMS"
"""The file of digests in a folder, as ``sha256sum * > SHA256SUMS`` writes it."""

OWN_PREFIX = "softmax_jax_"
"""Prefix of the names of data sets whose folders must have digests."""

# Others would have TFDS import the modules that their names begin with.
_FEATURES = {
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "features_dict.FeaturesDict",
        "tensor_feature.Tensor",
        "class_label_feature.ClassLabel",
    )
}


def load_prepared(
    directory: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_BYTES,
    block_size: int = blocks.ROWS,
) -> Dataset:
    """Reads the ``train`` and ``test`` splits of a data set that TFDS has prepared.

    It must be stored as ArrayRecord, with features ``image`` (a `Tensor` of one shape) and
    ``label`` (a `ClassLabel`), and only `Tensor` and `ClassLabel` beside them. TensorFlow is not
    needed. Images of uint8 are scaled by 1/255, or by one over the ``largest_pixel`` that
    metadata.json names.

    If the folder has a file `DIGESTS`, every file must be as it says; ``sha256sum * > SHA256SUMS``
    makes one. The builders of this package write it, and their folders are not read without; those
    of others are, and then only their records are protected, by checksums of their format.

    Args:
      directory: with the ``dataset_info.json``.
      max_bytes: what the images may take in memory if it is more than their files have.
      block_size: records that are read at a time.

    Raises:
      OSError: if the folder holds no data set.
      ValueError: names the file that is damaged, or says what is stored or shaped otherwise.

    Example:
      >>> import pathlib, tempfile
      >>> from softmax_jax import data
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> digits = data.load("digits", data_dir=folder)  # has TFDS prepare them there
      >>> data.load_prepared(folder / "softmax_jax_digits" / "1.1.0").train.x.shape
      (1438, 64)
    """
    folder = pathlib.Path(directory)
    if not (folder / "dataset_info.json").is_file():
        raise FileNotFoundError(f"{folder} has no dataset_info.json; TFDS prepared nothing there")
    has_digests = (folder / DIGESTS).exists()
    if has_digests:
        check_digests(folder)
    refuse_other_features(folder / "features.json")
    with _naming(folder):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(os.fspath(folder))
        _refuse_other_layout(builder.info, has_digests)
        arrays: list[NDArray] = []
        for split in ("train", "test"):
            arrays += _read_split(builder, split, max_bytes, block_size)
        label = builder.info.features["label"]
        _refuse_invented_classes(label, folder / "label.labels.txt", rows=len(arrays[1]))
        largest = (builder.info.metadata or {}).get("largest_pixel", 255)
        return from_arrays(
            *arrays,
            class_names=label.names,
            scale=1 / largest if arrays[0].dtype == np.uint8 else 1.0,
        )


def write_digests(folder: pathlib.Path) -> None:
    """Writes the digests of all files of a folder beside them."""
    lines = [f"{_digest(path)}  {path.name}\n" for path in _files(folder)]
    (folder / DIGESTS).write_text("".join(lines), encoding="utf-8")


def check_digests(folder: pathlib.Path) -> None:
    """Raises a ValueError that names a file which is not as its digest says."""
    lines = (folder / DIGESTS).read_text(encoding="utf-8", errors="replace").splitlines()
    expected = {}
    for line in lines:
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]([^/]+)", line)
        if match is None:
            raise ValueError(f"{folder / DIGESTS}: {line[:80]!a} is no digest of a file")
        expected[match[2]] = match[1]
    expected.pop(DIGESTS, None)  # of itself, if there was one already
    found = {path.name: path for path in _files(folder)}
    for name in sorted({*expected, *found}):
        if name not in found:
            problem = "is missing"
        elif name not in expected:
            problem = f"has no digest in {DIGESTS}"
        elif _digest(found[name]) != expected[name]:
            problem = f"is not the file whose digest is in {DIGESTS}"
        else:
            continue
        raise ValueError(
            f"{folder / name} {problem}: it was damaged or changed after the data were prepared; "
            f"remove {folder} and have it prepared again"
        )


def refuse_other_features(path: pathlib.Path) -> None:
    """Raises a ValueError unless features.json has classes of `_FEATURES` only."""
    with _naming(path):
        description = json.loads(path.read_bytes())
        todo: list[object] = [description]
        while todo:
            node = todo.pop()
            if isinstance(node, dict):
                # TFDS of long ago wrote type.
                for key in ("pythonClassName", "python_class_name", "type"):
                    name = node.get(key)
                    if isinstance(name, str) and name not in _FEATURES:
                        raise ValueError(
                            f"a feature is of the class {name[:100]!a}; only FeaturesDict, Tensor "
                            "and ClassLabel of tensorflow_datasets are read"
                        )
            todo += _children(node)


def _children(node: object) -> list[object]:
    return list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []


def _refuse_other_layout(info: Any, has_digests: bool) -> None:
    import tensorflow_datasets as tfds

    if info.name.startswith(OWN_PREFIX) and not has_digests:
        raise ValueError(
            f"there is no {DIGESTS}, so that nobody knows whether the data are as they were "
            "prepared; remove the folder and have it prepared again"
        )
    if "largest_pixel" in (info.metadata or {}) and not has_digests:
        raise ValueError(
            f"metadata.json names a largest_pixel, but there is no {DIGESTS} to vouch for it; "
            "write one with sha256sum * > SHA256SUMS"
        )
    features = info.features
    if "image" not in features or "label" not in features:
        raise ValueError(f"it has the features {', '.join(features)}; expected 'image' and 'label'")
    if not isinstance(features["label"], tfds.features.ClassLabel):
        raise ValueError(f"'label' is {features['label']}; expected a ClassLabel")
    if None in features["image"].shape:
        raise ValueError(
            f"'image' has the shape {features['image'].shape}; all images must have one and the "
            "same"
        )
    if info.file_format.value != "array_record":
        raise ValueError(
            f"it is stored as {info.file_format.value}, which needs TensorFlow; prepare it with "
            "file_format='array_record'"
        )
    for split in ("train", "test"):
        if split not in info.splits:
            raise ValueError(f"it has no split {split!r}")


def _read_split(
    builder: Any, name: str, max_bytes: int, block_size: int
) -> tuple[Shaped[NDArray, "n ..."], Integer[NDArray, " n"]]:
    """Reads images and labels; nothing is allocated before their number is known to be real."""
    from array_record.python.array_record_module import ArrayRecordReader

    split = builder.info.splits[name]
    image = builder.info.features["image"]
    size = 0
    for path, rows in zip(map(pathlib.Path, split.filepaths), split.shard_lengths, strict=True):
        with _naming(path):
            size += path.stat().st_size
            reader = ArrayRecordReader(os.fspath(path))
            try:
                found = reader.num_records()
            finally:
                reader.close()
            if found != rows:
                raise ValueError(f"it has {found:,} records; dataset_info.json says {rows:,}")
    rows = split.num_examples
    dtype = np.dtype(image.np_dtype)
    taken = rows * int(np.prod(image.shape, dtype=object)) * dtype.itemsize
    if taken > max(size, max_bytes):
        raise ValueError(
            f"the images of {name} announce {rows:,} x {image.shape} of {dtype}, {taken:,} bytes; "
            f"with max_bytes={taken} they are read"
        )
    images, labels = np.empty((rows, *image.shape), dtype), np.empty(rows, np.int64)
    with _naming(", ".join(map(str, split.filepaths))):
        source = builder.as_data_source(split=name)
        for at in blocks.slices(rows, block_size):
            for i, row in enumerate(source.__getitems__(range(at.start, at.stop)), at.start):
                images[i], labels[i] = row["image"], row["label"]
    return images, labels


def _refuse_invented_classes(label: Any, path: pathlib.Path, rows: int) -> None:
    """Raises a ValueError if there are more classes than rows, and no names of them.

    Without names, TFDS makes as many as features.json says.
    """
    q = label.num_classes
    if q > max(rows, path.stat().st_size if path.is_file() else 0):
        raise ValueError(f"'label' has {q:,} classes, but there are {rows:,} rows and no names")


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        path for path in folder.iterdir() if path.name != DIGESTS and not path.name.startswith(".")
    )


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Makes of whatever readers raise on damaged bytes a ValueError that begins with the path."""
    try:
        yield
    except OSError:
        raise
    except Exception as e:
        if isinstance(e, ValueError) and str(e).startswith(os.fspath(path)):
            raise
        raise ValueError(f"{os.fspath(path)}: {str(e) or type(e).__name__}") from e
