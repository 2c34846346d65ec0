"""Small IDX files to prepare data sets from."""

import gzip

import numpy as np
import pytest


@pytest.fixture
def no_folder(monkeypatch):
    """Leaves downloads as the only source, and reaches this machine without a proxy."""
    monkeypatch.delenv("SOFTMAX_JAX_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="session")
def encode_idx():
    """A function from an array of uint8 to the bytes of an IDX file."""

    def encode(array):
        header = bytes([0, 0, 8, array.ndim])
        return header + np.array(array.shape, ">u4").tobytes() + array.tobytes()

    return encode


@pytest.fixture(scope="session")
def idx_arrays():
    """Random images and labels under the names of the four MNIST files."""
    generator = np.random.default_rng(0)
    arrays = {}
    for prefix, rows in (("train", 30), ("t10k", 20)):
        images = generator.integers(256, size=(rows, 28, 28), dtype=np.uint8)
        arrays[f"{prefix}-images-idx3-ubyte"] = images
        arrays[f"{prefix}-labels-idx1-ubyte"] = np.arange(rows, dtype=np.uint8) % 10
    return arrays


@pytest.fixture(scope="session")
def write_idx_folder(encode_idx):
    """A function that makes a folder of IDX files from arrays by name, gzipped or not."""

    def write(folder, arrays, *, zipped=True):
        folder.mkdir(exist_ok=True)
        for name, array in arrays.items():
            content = encode_idx(array)
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
        return folder

    return write
