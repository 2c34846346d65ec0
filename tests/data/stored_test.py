"""Features in files, and what is said of files that are not as they should be."""

import os

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather, parquet

from softmax_jax import parallel
from softmax_jax.data import (
    StoredRows,
    concatenated,
    open_rows,
    rows_of_array,
    rows_of_records,
    shards,
)
from softmax_jax.data.reading import in_memory, unless_within
from softmax_jax.data.streams import opened, rows_at

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


def write_npy(path, x):
    np.save(path, x)


def write_npz(path, x):
    np.savez(path, x)


def lists_of(x):
    return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])


def write_parquet(path, x):
    table = pa.table({"id": np.arange(len(x)), "features": list(x)})
    parquet.write_table(table, path, row_group_size=7)


def write_feather(path, x):
    feather.write_feather(
        pa.table({"features": lists_of(x)}), path, chunksize=7, compression="uncompressed"
    )


def write_arrow_stream(path, x):
    table = pa.table({"features": lists_of(x)})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


KINDS = {
    "npy": (".npy", write_npy),
    "npz": (".npz", write_npz),
    "parquet": (".parquet", write_parquet),
    "feather": (".feather", write_feather),
    "arrow": (".arrow", write_arrow_stream),
}
kinds = pytest.mark.parametrize(("suffix", "write"), KINDS.values(), ids=KINDS)


@kinds
def test_files_are_the_rows_that_were_written(tmp_path, suffix, write):
    for i, part in enumerate(np.split(X, [15, 16])):
        write(tmp_path / f"part-{i}{suffix}", part)
    x = open_rows(tmp_path / f"part-*{suffix}")
    assert (x.shape, x.dtype, len(x), x.nbytes) == (X.shape, X.dtype, 40, X.nbytes)
    np.testing.assert_array_equal(in_memory(x), X)
    rows = np.array([39, 0, 16, 14, 15, 0, 8])
    np.testing.assert_array_equal(x[rows], X[rows])
    np.testing.assert_array_equal(x[5:30], X[5:30])
    assert x[np.array([], int)].shape == (0, 3)


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "|u1", "<i8", "|b1"])
def test_numbers_keep_their_type_and_come_in_native_order(tmp_path, dtype):
    x = (X * 3).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    found = open_rows(tmp_path / "x.npy")
    assert found.dtype == x.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found[:], x)


def test_bfloat16_which_numpy_has_no_name_for_is_named(tmp_path):
    x = X.astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"x\.npy: \(40, 3\) of \|?V2.*give its dtype"):
        open_rows(tmp_path / "x.npy")
    found = open_rows(tmp_path / "x.npy", dtype=jnp.bfloat16)
    np.testing.assert_array_equal(found[3:7], x[3:7])


@given(st.lists(st.integers(0, 39), max_size=60), st.integers(1, 6))
def test_rows_come_in_the_order_that_they_are_asked_for(rows, gap):
    order = np.unique(np.array(rows, int))
    covered = np.concatenate(
        [np.arange(*run.indices(60)) for run in shards._runs(order, gap)] or [[]]
    )
    np.testing.assert_array_equal(covered, np.arange(len(order)))
    parts = concatenated([rows_of_array(part) for part in np.split(X, [1, 5, 30])])
    np.testing.assert_array_equal(parts[np.array(rows, int)], X[np.array(rows, int)])


def test_an_array_of_several_is_chosen_by_name(tmp_path):
    np.savez(tmp_path / "x.npz", train=X, test=X[:5])
    with pytest.raises(ValueError, match=r"x\.npz: it has train, test; name one"):
        open_rows(tmp_path / "x.npz")
    with pytest.raises(ValueError, match="there is no 'dev'"):
        open_rows(tmp_path / "x.npz", name="dev")
    np.testing.assert_array_equal(open_rows(tmp_path / "x.npz", name="test")[:], X[:5])


def test_records_are_rows():
    records = [{"image": X[:2] + i, "label": i} for i in range(5)]
    x = rows_of_records(records, "image")
    assert x.shape == (5, 6)
    np.testing.assert_array_equal(x[np.array([4, 1])], [(X[:2] + 4).ravel(), (X[:2] + 1).ravel()])
    with pytest.raises(ValueError, match="have image, label, but no 'pixels'"):
        rows_of_records(records, "pixels")
    with pytest.raises(ValueError, match="no records"):
        rows_of_records([], "image")
    records[3] = {"image": X[:1], "label": 3}
    with pytest.raises(ValueError, match="record 3: 'image' is"):
        x[:]


def test_memory_maps_stay_on_disk_where_they_are_large(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    x = rows_of_array(mapped)
    assert isinstance(unless_within(x, X.nbytes), np.ndarray)
    x = unless_within(x, X.nbytes - 1)
    np.testing.assert_array_equal(x[np.array([7, 2])], X[[7, 2]])


def truncated(path):
    os.truncate(path, path.stat().st_size - 100)


def emptied(path):
    path.write_bytes(b"")


@kinds
@pytest.mark.parametrize("damage", [truncated, emptied])
def test_a_damaged_file_is_named_before_work_begins(tmp_path, suffix, write, damage):
    paths = [tmp_path / f"part-{i}{suffix}" for i in range(3)]
    for path in paths:
        write(path, X)
    damage(paths[1])
    with pytest.raises((ValueError, OSError), match=f"part-1{suffix}"):
        open_rows(paths)


def test_files_that_are_no_rows_are_named(tmp_path):
    refused = {
        "one axis": X[0],
        "by columns": np.asfortranarray(X),
        "no rows": X[:0],
        "text": np.array([["a"]]),
        "objects": np.array([[None]]),
    }
    for name, array in refused.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match=f"{name}.npy"):
            open_rows(tmp_path / f"{name}.npy")
    np.savez_compressed(tmp_path / "small.npz", X)
    with pytest.raises(ValueError, match=r"small\.npz: .*compressed.*np\.savez"):
        open_rows(tmp_path / "small.npz")
    (tmp_path / "x.csv").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"x\.csv: unknown kind"):
        open_rows(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match=r"absent\.npy"):
        open_rows(tmp_path / "absent.npy")
    with pytest.raises(FileNotFoundError, match=r"absent-\*"):
        open_rows(tmp_path / "absent-*.npy")
    with pytest.raises(ValueError, match="there are none"):
        open_rows([])


def test_files_of_other_features_are_named(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", X[:, :2])
    with pytest.raises(ValueError, match=r"b\.npy, row 0: 2 features of float32; .*a\.npy"):
        open_rows([tmp_path / "a.npy", tmp_path / "b.npy"])
    np.save(tmp_path / "b.npy", X.astype(np.float64))
    with pytest.raises(ValueError, match="of float64"):
        open_rows([tmp_path / "a.npy", tmp_path / "b.npy"])


def test_names_whose_order_is_not_that_of_their_numbers_are_refused(tmp_path):
    for i in (2, 10):
        np.save(tmp_path / f"part-{i}.npy", X)
    with pytest.raises(ValueError, match=r"part-10\.npy comes before .*part-2\.npy"):
        open_rows(tmp_path / "part-*.npy")


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ([[1.0, 2.0], None], "row 1: it is null"),
        ([[1.0, 2.0], [1.0]], "row 1: it has 1 numbers; the first has 2"),
        ([[1.0, 2.0], [1.0, None]], "row 1: feature 1 is null"),
        ([["a"], ["b"]], "expected real numbers"),
        ([[], []], "expected real numbers"),
    ],
)
def test_lists_that_are_no_rows_are_named(tmp_path, lists, says):
    parquet.write_table(pa.table({"features": lists}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=rf"x\.parquet.*{says}"):
        open_rows(tmp_path / "x.parquet")[:]


def test_a_file_that_vanishes_is_named(tmp_path):
    np.save(tmp_path / "x.npy", X)
    x = open_rows(tmp_path / "x.npy")
    os.truncate(tmp_path / "x.npy", 400)
    with pytest.raises(OSError, match=r"x\.npy: it ends .* early"):
        x[:]
    (tmp_path / "x.npy").unlink()
    with pytest.raises(OSError, match=r"x\.npy"):
        x[:]


def test_a_program_reads_rows_ahead_and_says_what_went_wrong():
    asked = []

    def read(rows):
        asked.append(rows.tolist())
        if 13 in rows:
            raise OSError("row 13 is gone")
        return X[rows]

    x = rows_of_array(X)
    x = type(x)(X.shape, X.dtype, read)

    @jax.jit
    def total(stream, rows):
        def add(i, carry):
            return carry + rows_at(stream, rows[i], rows[jnp.minimum(i + 1, 2)]).sum()

        return jax.lax.fori_loop(0, 3, add, jnp.float32(0))

    rows = np.array([[0, 1], [5, 4], [7, 7]])
    with opened(x) as stream:
        np.testing.assert_allclose(total(stream, rows), X[rows.ravel()].sum(), rtol=1e-6)
    # Each once, though it was announced and asked for; rows are sorted for the files.
    assert sorted(asked) == [[0, 1], [4, 5], [7]]
    with pytest.raises(OSError, match="row 13 is gone"), opened(x) as stream:
        total(stream, np.array([[0, 1], [13, 4], [7, 7]])).block_until_ready()
    with pytest.raises((RuntimeError, ValueError), match="closed"):
        total(stream, rows).block_until_ready()


def test_rows_are_asked_for_as_of_an_array():
    x = rows_of_array(X)
    mask = X[:, 0] > 0
    for rows in (mask, [-1, 0], slice(None, None, -3), np.array([3, 1], np.uint8), slice(7, 7)):
        np.testing.assert_array_equal(x[rows], X[rows])
    for wrong in (40, -41):
        with pytest.raises(IndexError, match=f"there is no row {wrong} of 40"):
            x[[0, wrong]]
    for other in (3, mask[:5], [0.5], [[1]]):
        with pytest.raises(IndexError, match=r"expected a slice, numbers of rows, or a mask of 40"):
            x[other]
    with pytest.raises(ValueError, match=r"x\[:\] has them in memory"):
        np.asarray(x)


@pytest.mark.parametrize(
    "read", [lambda rows: X[rows][1:], lambda rows: X[rows, :2], lambda rows: X[rows].astype(int)]
)
def test_rows_that_are_not_what_was_announced_are_refused(read):
    x = StoredRows(X.shape, X.dtype, read)
    with pytest.raises(
        ValueError, match=r"row 4 and on: .* was read; expected \(3, 3\) of float32"
    ):
        x[4:7]


@pytest.mark.parametrize("kind", ["parquet", "feather", "arrow"])
def test_a_file_of_groups_that_is_cut_while_it_is_open_is_named(tmp_path, kind):
    suffix, write = KINDS[kind]
    path = tmp_path / f"x{suffix}"
    write(path, X)
    x = open_rows(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(OSError, match=rf"x\{suffix}"):
        x[:]


def test_of_groups_that_are_compressed_one_at_a_time_is_in_memory(tmp_path):
    table = pa.table({"id": np.arange(40), "features": lists_of(X)})
    feather.write_feather(table, tmp_path / "x.feather", chunksize=7, compression="lz4")
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=7, compression="snappy")
    x = open_rows([tmp_path / "x.feather", tmp_path / "x.parquet"])
    np.testing.assert_array_equal(x[:], np.concatenate([X, X]))
    assert x.together == 7


def test_a_stream_of_arrow_without_its_end_is_refused(tmp_path):
    write_arrow_stream(tmp_path / "x.arrow", X)
    whole = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"x\.arrow: it ends without the mark of its end"):
        open_rows(tmp_path / "x.arrow")


def test_columns_that_are_no_lists_are_shown(tmp_path):
    parquet.write_table(pa.table({"id": [1, 2], "name": ["a", "b"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"no column is of lists of numbers; .*id: int64"):
        open_rows(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="it is no file"):
        open_rows(tmp_path)


def test_devices_that_ask_for_the_same_rows_share_them():
    asked = []

    def read(rows):
        asked.append(rows.tolist())
        return X[rows]

    x = StoredRows(X.shape, X.dtype, read)
    with jax.set_mesh(parallel.make_mesh(2, 4)), opened(x) as stream:
        found = jax.jit(rows_at)(stream, np.arange(8))
        np.testing.assert_array_equal(found, X[:8])
    assert sorted(asked) == [[0, 1, 2, 3], [4, 5, 6, 7]]
