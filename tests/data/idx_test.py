import gzip
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softmax_jax.data.idx import read_idx

ARRAY = np.random.default_rng(0).integers(256, size=(3, 4, 5), dtype=np.uint8)
HEADER = 4 + 4 * 3


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some-idx-ubyte"


def assert_refused(path, content, reason=""):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(path.name) + ".*" + reason):
        read_idx(path)


@pytest.mark.parametrize("shape", [(7,), (3, 4), (3, 4, 5), (0, 28, 28)])
@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gz", "plain"])
def test_what_is_written_is_read(path, encode_idx, shape, compress):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path.write_bytes(compress(encode_idx(array)))
    read = read_idx(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


def test_the_content_decides_whether_it_is_gzipped(tmp_path, encode_idx):
    (tmp_path / "plain.gz").write_bytes(encode_idx(ARRAY))
    np.testing.assert_array_equal(read_idx(tmp_path / "plain.gz"), ARRAY)


def test_axes_are_big_endian(path):
    path.write_bytes(b"\0\0\x08\x01" + b"\0\0\x01\x02" + bytes(258))
    assert read_idx(path).shape == (258,)


def test_a_missing_file_is_not_found(path):
    with pytest.raises(FileNotFoundError, match=path.name):
        read_idx(path)


def test_an_empty_file_is_refused(path):
    assert_refused(path, b"", "not an IDX file")


def test_a_wrong_magic_number_is_refused(path, encode_idx):
    assert_refused(path, b"\x01" + encode_idx(ARRAY)[1:], "not an IDX file")


@pytest.mark.parametrize("kind", [0x09, 0x0B, 0x0C, 0x0D, 0x0E])
def test_elements_other_than_uint8_are_refused(path, encode_idx, kind):
    content = encode_idx(ARRAY)
    assert_refused(path, content[:2] + bytes([kind]) + content[3:], f"{kind:#04x}")


@pytest.mark.parametrize("kept", range(4, HEADER))
def test_a_truncated_header_is_refused(path, encode_idx, kept):
    assert_refused(path, encode_idx(ARRAY)[:kept], "damaged")


@pytest.mark.parametrize("kept", [HEADER, HEADER + 1, HEADER + ARRAY.size - 1])
def test_truncated_elements_are_refused(path, encode_idx, kept):
    assert_refused(path, encode_idx(ARRAY)[:kept], "incomplete")


def test_extra_bytes_are_refused(path, encode_idx):
    assert_refused(path, encode_idx(ARRAY) + b"\0", "60 bytes, but more follow")


@pytest.mark.parametrize("kept", [2, 9, 10, 30, -8, -1])
def test_a_truncated_gzip_file_is_refused(path, encode_idx, kept):
    assert_refused(path, gzip.compress(encode_idx(ARRAY))[:kept], "gzip file is damaged")


def test_extra_bytes_after_a_gzip_file_are_refused(path, encode_idx):
    assert_refused(path, gzip.compress(encode_idx(ARRAY)) + b"more", "gzip file is damaged")


@pytest.mark.parametrize("position", [3, 10, 20, 40, -8, -1])
def test_a_flipped_byte_of_a_gzip_file_is_refused(path, encode_idx, position):
    content = bytearray(gzip.compress(encode_idx(ARRAY)))
    content[position] ^= 0xFF
    assert_refused(path, bytes(content), "gzip file is damaged")


def idx_header(*shape):
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()


def peak_bytes(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(2**32 - 1,), (10**6, 28, 28), (2**31, 2**31)])
@pytest.mark.parametrize("compress", [gzip.compress, bytes], ids=["gz", "plain"])
def test_a_size_that_the_file_cannot_hold_is_refused_before_anything_is_allocated(
    path, compress, shape
):
    content = compress(idx_header(*shape) + bytes(1000))
    assert peak_bytes(lambda: assert_refused(path, content, "incomplete or damaged")) < 2**20


def test_a_gzip_file_is_not_unpacked_beyond_the_budget_nor_beyond_what_is_announced(path):
    small = gzip.compress(idx_header(100, 1000) + bytes(10**5))
    path.write_bytes(small)
    with pytest.raises(ValueError, match="100,000 bytes; with max_bytes=100000 they are unpacked"):
        read_idx(path, max_bytes=99_999)
    assert read_idx(path, max_bytes=100_000).shape == (100, 1000)
    bomb = gzip.compress(idx_header(1000) + bytes(10**7))
    assert peak_bytes(lambda: assert_refused(path, bomb, "but more follow it")) < 2**21


def test_a_gzip_file_is_unpacked_into_its_array(path):
    content = gzip.compress(idx_header(1000, 1000) + bytes(10**6))
    path.write_bytes(content)
    assert peak_bytes(lambda: read_idx(path)) < 2e6


@pytest.mark.parametrize(
    "shape", [(1,) * 255, (0,) + (2**32 - 1,) * 3, (1,) * 65, (0,) + (1,) * 64], ids=len
)
def test_shapes_that_no_array_can_have_are_refused(path, shape):
    assert_refused(path, idx_header(*shape) + bytes(1), f"header announces {len(shape)} axes")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True, deadline=None
)
@given(
    start=st.sampled_from([b"", b"\0\0\x08", b"\0\0\x08\x01", b"\x1f\x8b", b"\x1f\x8b\x08\0"]),
    rest=st.binary(max_size=60),
)
def test_random_bytes_are_refused_or_read_whole(path, start, rest):
    path.write_bytes(start + rest)
    try:
        array = read_idx(path)
    except ValueError as e:
        message = str(e)
    else:
        message = path.name
        assert (start + rest).endswith(array.tobytes())
    assert path.name in message
