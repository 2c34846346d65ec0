import tracemalloc
import zipfile
from io import BytesIO

import numpy as np
import pytest

from softmax_jax.data.npz import read_npz

ARRAYS = {
    "x": np.random.default_rng(0).normal(size=(7, 3)),
    "text": np.array(["cat", "chicken"]),
    "fortran": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    "number": np.float32(0.1),
    "empty": np.zeros((0, 3)),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.npz"


def npy(descr, shape, rest=b""):
    """An entry that announces an array, and what follows."""
    stream = BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + rest


def write(path, compression=zipfile.ZIP_STORED, **entries):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(f"{name}.npy", content)


def assert_refused(path, message, **options):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"some.npz cannot be read as an .*{message}"):
            read_npz(path, **options)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(path, save):
    save(path, **ARRAYS)
    found = read_npz(path)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert list(read_npz(path, ("x", "absent"))) == ["x"]


@pytest.mark.parametrize(
    ("descr", "shape", "rest"),
    [
        ("<f8", (10**15,), b""),
        ("<f8", (10**15,), bytes(10**6)),
        ("<U0", (2 * 10**8,), b""),
        ("<U1", (5 * 10**8,), bytes(10**6)),
        ("|u1", (2**62, 4), bytes(100)),
        ("|u1", (0, 2**70), b""),
        ("|u1", (-1, -100), bytes(100)),
        ("|O", (3,), bytes(24)),
        ("|V0", (10**9,), b""),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_a_header_announces_is_compared_with_the_entry(path, compression, descr, shape, rest):
    write(path, compression, x=npy(descr, shape, rest))
    assert_refused(path, "'x'|dimension|shape|negative|large")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_the_directory_announces_is_compared_with_the_file(path, compression):
    """The directory and the header agree on 800 MB, in a file of 1 kB."""
    write(path, compression, x=npy("<f8", (10**8,), bytes(800)))
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02")
    size = len(npy("<f8", (10**8,))) + 8 * 10**8
    changed = content[: at + 24] + size.to_bytes(4, "little") + content[at + 28 :]
    path.write_bytes(changed)
    assert_refused(path, f"'x' announces {size:,} bytes, which are not there")
    if compression == zipfile.ZIP_STORED:
        packed = changed[: at + 20] + size.to_bytes(4, "little") + changed[at + 24 :]
        path.write_bytes(packed)
        assert_refused(path, f"'x' announces {size:,} bytes, which are not there")


def test_a_compressed_file_is_unpacked_within_the_budget(path):
    np.savez_compressed(path, x=np.zeros(100_000), y=np.zeros(50_000))
    assert_refused(path, "'x' is .* takes 800,000 bytes, .* a larger max_bytes", max_bytes=10**5)
    assert_refused(path, "'y' is .* of 399,999 that are left", max_bytes=12 * 10**5 - 1)
    assert read_npz(path, max_bytes=12 * 10**5)["y"].shape == (50_000,)
    assert read_npz(path, ("y",), max_bytes=4 * 10**5)["y"].shape == (50_000,)


def test_a_file_may_always_unpack_to_its_own_size(path):
    np.savez(path, x=ARRAYS["x"])
    np.testing.assert_array_equal(read_npz(path, max_bytes=0)["x"], ARRAYS["x"])


def test_text_counts_as_the_strings_that_it_becomes(path):
    """5e5 names of 2 kB in a file become 34 MB."""
    write(path, zipfile.ZIP_DEFLATED, names=npy("<U1", (5 * 10**5,), bytes(2 * 10**6)))
    assert path.stat().st_size < 3000
    assert_refused(path, "takes 34,000,000 bytes", max_bytes=34 * 10**6 - 1)
    assert read_npz(path, max_bytes=34 * 10**6)["names"].shape == (5 * 10**5,)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_arrays_of_one_name_are_refused(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", npy("|u1", (1,), b"\1"))
        file.writestr("x.npy", npy("|u1", (1,), b"\2"))
    assert_refused(path, "it has two arrays 'x'")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_cannot_be_bounded_is_refused(path, compression):
    write(path, compression, x=npy("|u1", (1000,), bytes(1000)))
    assert_refused(path, "compressed in a way that NumPy does not write")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_changed_byte_is_noticed_or_changes_nothing(path, save):
    save(path, **ARRAYS)
    content = path.read_bytes()
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        try:
            found = read_npz(path)
        except ValueError as e:
            message, found = str(e), ARRAYS
        else:
            message = path.name
        assert path.name in message
        assert found.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)
