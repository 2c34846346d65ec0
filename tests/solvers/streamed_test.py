"""Fits whose features stay in files, held to those in memory."""

import jax
import numpy as np
import pytest

from softmax_jax import cross_validate, fit, fit_path, parallel
from softmax_jax.data import StoredRows, open_rows, rows_of_array
from softmax_jax.solvers.streamed import in_stored_order

RNG = np.random.default_rng(0)
N, D, Q = 1203, 12, 4
X = RNG.normal(size=(N, D)).astype(np.float32)
LOGITS = X @ RNG.normal(size=(D, Q))
# As data sets are stored, by class.
Y = np.sort((LOGITS + RNG.gumbel(size=(N, Q))).argmax(axis=1))
BLOCK = 128 * D * 4
"""Bytes of a block of 128 rows."""


def counted(x, asked):
    """Returns stored rows that say how many of them were read."""

    def read(rows):
        asked.append(len(rows))
        return x[rows]

    return StoredRows(x.shape, x.dtype, read)


def assert_same_fit(found, expected, tol=1e-6):
    """Asserts that both are certified, and equal within what the certificates leave open."""
    certified = np.ravel(found.status), np.ravel(expected.status)
    assert all(str(s) == "certified" for both in certified for s in both)
    apart = np.abs(found.objective - expected.objective)
    assert np.all(apart <= np.maximum(found.gap, expected.gap) + 1e-14 * expected.objective)
    assert np.all(found.gap <= tol * found.objective)


def both(function, *, max_bytes, **options):
    options = {"tol": 1e-6, "block_size": 128} | options
    found = function(rows_of_array(X), Y, max_bytes=max_bytes, **options)
    return found, function(X, Y, **options)


@pytest.mark.parametrize("kept", [0, 1, 4, 100])
def test_a_fit_is_that_in_memory_however_little_there_is(kept):
    found, expected = both(fit, l2=1e-2, max_bytes=1 + (3 + kept) * BLOCK)
    assert_same_fit(found, expected)
    np.testing.assert_allclose(found.params.w, expected.params.w, rtol=0, atol=1e-6)
    assert ("stored" in str(found.plan)) == (kept < 10)


def test_what_is_kept_is_not_read_again():
    def reads(kept):
        asked = []
        fit(counted(X, asked), Y, l2=1e-2, block_size=128, max_bytes=(3 + kept) * BLOCK)
        return sum(asked)

    none, four, all_of_them = reads(0), reads(4), reads(100)
    assert all_of_them == 2 * N  # to be looked at, and to stay in memory
    assert four < 0.75 * none


@pytest.mark.parametrize(
    "options",
    [
        {"l2": 1e-2, "fit_intercept": False, "standardize": True},
        {"l2": 1e-2, "offset": LOGITS},
        {"l2": 1e-2, "sample_weight": (np.arange(N) % 3).astype(float), "scale": 3, "shift": 5},
        {"l2": 1e-2, "method": "logits-free", "tol": 1e-3},
        {"l2": 1e-2, "method": "lbfgs", "tol": 1e-3},
        {"l2": 1e-2, "penalty_factor": np.where(np.arange(D) < 2, np.inf, 1)},
        {"l2": 0.0, "l1": 1e-2, "tol": 1e-4},
        {"l2": 0.0, "l1": 1e-2, "grouped": True, "tol": 1e-4},
        {"l2": 0.0, "l1": 1e-2, "l1_method": "proximal-newton", "tol": 1e-4},
        {"l2": 1e-2, "upper": 0.1, "tol": 1e-4},
    ],
    ids=lambda options: "-".join(map(str, options)),
)
def test_all_that_fits_offer_works_on_files(options):
    found, expected = both(fit, max_bytes=5 * BLOCK, **options)
    assert_same_fit(found, expected, options.get("tol", 1e-6))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int32])
def test_numbers_are_those_that_are_stored(dtype):
    x = (20 * X + 100).astype(dtype)
    options = {"l2": 1.0, "block_size": 128, "tol": 1e-6}
    assert_same_fit(fit(rows_of_array(x), Y, max_bytes=5, **options), fit(x, Y, **options))


def test_more_features_than_rows():
    x, y = RNG.normal(size=(60, 200)), np.arange(60) % 3
    options = {"l2": 1e-2, "block_size": 16, "tol": 1e-6}
    assert_same_fit(fit(rows_of_array(x), y, max_bytes=5, **options), fit(x, y, **options))


def test_paths_and_weightings_and_folds(tmp_path):
    folds = np.arange(N) % 3 != np.arange(3)[:, None]
    found, expected = both(
        fit_path, max_bytes=5 * BLOCK, l2=[1.0, 0.1], sample_weight=folds.astype(float)
    )
    assert_same_fit(found, expected)
    found, expected = both(
        cross_validate, max_bytes=5 * BLOCK, l2=[1.0, 1e-2], folds=np.arange(N) % 3, tol=1e-8
    )
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)


def test_memory_maps_and_files_that_fit_into_memory(tmp_path):
    np.save(tmp_path / "x.npy", X)
    expected = fit(X, Y, l2=1e-2)
    for x in (np.load(tmp_path / "x.npy", mmap_mode="r"), open_rows(tmp_path / "x.npy")):
        found = fit(x, Y, l2=1e-2)
        np.testing.assert_array_equal(found.params.w, expected.params.w)
        assert_same_fit(fit(x, Y, l2=1e-2, block_size=128, max_bytes=9), expected)


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), pytest.param((2, 4), marks=pytest.mark.slow)])
def test_each_device_of_a_mesh_reads_its_own(shape):
    asked = []
    with jax.set_mesh(parallel.make_mesh(*shape)):
        # A block has as many rows of each device.
        found = fit(counted(X, asked), Y, l2=1e-2, block_size=16, max_bytes=5 * BLOCK, tol=1e-6)
    assert_same_fit(found, fit(X, Y, l2=1e-2, tol=1e-6))
    rows_of_device = max(set(asked), key=asked.count)
    assert rows_of_device <= 16 * 8 // shape[0] + 8


def test_rows_that_are_read_ascend_in_blocks_and_those_kept_are_drawn():
    order = np.random.default_rng(1).permutation(30)
    has_weight = order[np.argsort(order)] >= 0
    has_weight[[3, 4, 5]] = False
    order = order[np.argsort(~has_weight[order], kind="stable")]
    found = in_stored_order(order, rows=4, kept=2, has_weight=has_weight)
    assert sorted(found) == list(range(30))
    np.testing.assert_array_equal(found[:8], order[:8])
    assert set(found[-3:]) == {3, 4, 5}
    blocks = found[8:24].reshape(-1, 4)
    assert (np.diff(blocks, axis=1) > 0).all()
    # No block has a row between those of another.
    by_first = blocks[np.argsort(blocks[:, 0])].ravel()
    assert (np.diff(by_first) > 0).all()


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("max_bytes", [5, 2**30])
def test_numbers_that_are_not_finite_are_found_in_their_file(tmp_path, number, max_bytes):
    for i, part in enumerate(np.split(X, 3)):
        part = part.copy()
        part[7, 2] = number if i == 1 else part[7, 2]
        np.save(tmp_path / f"part-{i}.npy", part)
    says = rf"part-1\.npy, row 7: feature 2 is {number} as float32"
    with pytest.raises(ValueError, match=says):
        fit(open_rows(tmp_path / "part-*.npy"), Y, l2=1e-2, max_bytes=max_bytes)


def test_a_budget_is_a_number():
    with pytest.raises(ValueError, match="max_bytes: 0"):
        fit(X, Y, l2=1e-2, max_bytes=0)


def test_a_file_that_vanishes_ends_the_fit_with_its_name(tmp_path):
    paths = [tmp_path / f"part-{i}.npy" for i in range(3)]
    for path, part in zip(paths, np.split(X, 3), strict=True):
        np.save(path, part)

    def remove(progress):
        paths[1].unlink(missing_ok=True)

    with pytest.raises(FileNotFoundError, match=r"part-1\.npy"):
        fit(
            open_rows(paths),
            Y,
            l2=1e-3,
            block_size=128,
            max_bytes=5,
            method="lbfgs",
            tol=1e-9,
            callback=remove,
        )


def test_what_fits_into_memory_is_read_twice_and_is_there_once():
    """Once to look for NaN, and once into the blocks of the solver."""
    asked = []
    x = np.tile(X, (50, 1)).astype(np.float32)
    y = np.tile(Y, 50)
    found = fit(counted(x, asked), y, l2=1e-2)
    assert sum(asked) == 2 * len(x)
    assert "stored" not in str(found.plan)
    assert_same_fit(found, fit(x, y, l2=1e-2), tol=1e-4)


def test_rows_of_a_group_of_a_file_stay_together():
    order = np.random.default_rng(1).permutation(64)
    found = in_stored_order(order, rows=4, kept=0, has_weight=np.ones(64, bool), together=16)
    np.testing.assert_array_equal(np.sort(found), np.arange(64))
    runs = found.reshape(4, 16)
    assert (np.diff(runs, axis=1) == 1).all()


def test_what_goes_wrong_is_raised_as_it_is_also_an_interrupt():
    for error in (OSError("gone"), KeyboardInterrupt()):
        asked = []

        def read(rows, asked=asked, error=error):
            asked.append(len(rows))
            if len(asked) > 20:
                raise error
            return X[rows]

        with pytest.raises(type(error)):
            fit(StoredRows(X.shape, X.dtype, read), Y, l2=1e-4, block_size=128, max_bytes=5)
