import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from softmax_jax import evaluation, model
from softmax_jax.data import Data, from_arrays

X = np.random.default_rng(0).uniform(size=(6, 4)).astype(np.float32)
IDS = np.array([0, 1, 2, 0, 1, 2])
PROBABILITIES = np.random.default_rng(1).dirichlet(np.ones(3), size=6)

both_splits = pytest.mark.parametrize("split", ["train", "test"])


def with_split(split, *, x=X, targets=IDS, other_targets=IDS, **kwargs):
    """A data set with the given arrays in one split and good ones in the other."""
    good = (X, other_targets)
    arrays = (x, targets, *good) if split == "train" else (*good, x, targets)
    return from_arrays(*arrays, **kwargs)


def with_probabilities(split, row, values):
    targets = PROBABILITIES.copy()
    targets[row] = values
    return with_split(split, targets=targets, other_targets=PROBABILITIES)


def with_value(value, dtype=np.float32):
    x = X.astype(dtype)
    x[3, 2] = value
    return x


@both_splits
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_features_that_are_not_finite_are_refused(split, value, dtype):
    with pytest.raises(ValueError, match=f"^{split}: row 3, feature 2 is {value}"):
        with_split(split, x=with_value(value, dtype))


@both_splits
def test_features_beyond_float32_are_refused(split):
    with pytest.raises(ValueError, match=f"^{split}: row 3, feature 2 is inf as float32"):
        with_split(split, x=with_value(1e39, np.float64))


@both_splits
def test_the_number_of_bad_rows_is_told(split):
    x = with_value(np.nan)
    x[5] = np.nan
    with pytest.raises(ValueError, match=f"^{split}: row 3.*2 of 6 rows"):
        with_split(split, x=x)


@both_splits
@pytest.mark.parametrize("dtype", [complex, str, "M8[s]", [("field", "f4")]], ids=str)
def test_features_that_are_no_real_numbers_are_refused(split, dtype):
    with pytest.raises(ValueError, match=f"^{split}: features of type .*real numbers"):
        with_split(split, x=np.zeros(X.shape, dtype))


@both_splits
@pytest.mark.parametrize("shape", [(), (6,), (6, 0), (0, 4)])
def test_features_of_wrong_shape_are_refused(split, shape):
    with pytest.raises(ValueError, match=f"^{split}: features of shape"):
        with_split(split, x=np.zeros(shape, np.float32))


@both_splits
def test_features_of_four_axes_are_refused(split):
    with pytest.raises(ValueError, match=f"^{split}: features of shape"):
        with_split(split, x=X.reshape(6, 2, 2, 1))


@both_splits
def test_no_rows_are_refused(split):
    with pytest.raises(ValueError, match=f"^{split}: .*at least one row"):
        with_split(split, x=X[:0], targets=IDS[:0])


@both_splits
@pytest.mark.parametrize("shape", [(), (5,), (7,), (6, 1, 1), (5, 3)])
def test_targets_of_wrong_shape_are_refused(split, shape):
    with pytest.raises(ValueError, match=f"^{split}: targets of shape .*for 6 rows"):
        with_split(split, targets=np.zeros(shape, np.int32))


@both_splits
def test_a_negative_id_is_refused(split):
    with pytest.raises(ValueError, match=f"^{split}: row 2 has class id -1; ids start at 0"):
        with_split(split, targets=np.array([0, 1, -1, 0, 1, 2]))


@both_splits
def test_an_id_without_a_name_is_refused(split):
    with pytest.raises(ValueError, match=f"^{split}: row 4 has class id 3, but there are 3"):
        with_split(split, targets=np.array([0, 1, 2, 0, 3, 2]), class_names="abc")


@both_splits
def test_an_id_beyond_int32_is_refused(split):
    with pytest.raises(ValueError, match=f"^{split}: row 4 has class id {2**40}"):
        with_split(split, targets=np.array([0, 1, 2, 0, 2**40, 2]))


@both_splits
@pytest.mark.parametrize("dtype", [np.float32, bool, str, complex])
def test_ids_that_are_no_integers_are_refused(split, dtype):
    with pytest.raises(ValueError, match=f"^{split}: class ids of type .*expected integers"):
        with_split(split, targets=IDS.astype(dtype))


@both_splits
@pytest.mark.parametrize(
    "values",
    [
        (0.5, 0.5, 0.5),
        (0.3, 0.3, 0.3),
        (0, 0, 0),
        (1.5, -0.5, 0),
        (np.nan, 0.5, 0.5),
        (np.inf, 0, 0),
        (1e300, 0, 0),
    ],
    ids=str,
)
def test_rows_that_are_no_probabilities_are_refused(split, values):
    with pytest.raises(ValueError, match=f"^{split}: the targets of row 4 are not probabilities"):
        with_probabilities(split, 4, values)


@both_splits
@pytest.mark.parametrize("dtype", [str, complex])
def test_probabilities_that_are_no_real_numbers_are_refused(split, dtype):
    with pytest.raises(ValueError, match=f"^{split}: "):
        with_split(split, targets=PROBABILITIES.astype(dtype), other_targets=PROBABILITIES)


def test_a_single_named_class_is_refused():
    with pytest.raises(ValueError, match="a single class"):
        from_arrays(X, 0 * IDS, X, 0 * IDS)


def test_training_rows_of_a_single_class_are_refused():
    with pytest.raises(ValueError, match=r"^train: all of the weight is on a single class, 1"):
        with_split("train", targets=0 * IDS + 1)


def test_splits_of_different_width_are_refused():
    with pytest.raises(ValueError, match=r"^train has 4 features a row and test 3"):
        with_split("test", x=X[:, :3])


def test_images_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"train.*test"):
        from_arrays(X.reshape(6, 2, 2), IDS, X.reshape(6, 4, 1), IDS)


def test_ids_beside_probabilities_are_refused():
    with pytest.raises(ValueError, match="one split has class ids and the other probabilities"):
        with_split("test", targets=PROBABILITIES)


@both_splits
def test_probabilities_over_different_classes_are_refused(split):
    with pytest.raises(ValueError, match=r"^test: probabilities of [34] classes, but there are"):
        with_split(split, targets=PROBABILITIES, other_targets=np.eye(4)[IDS])


def test_probabilities_beside_too_many_names_are_refused():
    with pytest.raises(ValueError, match=r"^train: probabilities of 3 classes, but there are 4"):
        from_arrays(X, PROBABILITIES, X, PROBABILITIES, class_names="abcd")


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, ml_dtypes.bfloat16, np.float32])
def test_compact_types_stay_as_they_are(dtype):
    x = (10 * X).astype(dtype)
    dataset = from_arrays(x, IDS, x, IDS)
    assert dataset.train.x.dtype == dtype
    np.testing.assert_array_equal(dataset.train.x, x)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint64, np.float64, bool])
def test_other_numbers_become_float32(dtype):
    x = (10 * X).astype(dtype)
    dataset = from_arrays(x, IDS, x, IDS)
    assert dataset.test.x.dtype == np.float32
    np.testing.assert_array_equal(dataset.test.x, x.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_ids_become_int32(dtype):
    targets = from_arrays(X, IDS.astype(dtype), X, IDS).train.targets
    assert targets.dtype == np.int32
    np.testing.assert_array_equal(targets, IDS)


def test_one_hot_integers_become_probabilities():
    one_hot = np.eye(3, dtype=np.int64)[IDS]
    targets = from_arrays(X, one_hot, X, one_hot).train.targets
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets, one_hot)


def test_images_are_flattened_row_by_row():
    images = np.arange(6 * 2 * 3, dtype=np.uint8).reshape(6, 2, 3)
    dataset = from_arrays(images, IDS, images, IDS)
    assert dataset.image_shape == (2, 3)
    np.testing.assert_array_equal(dataset.train.x[1], [6, 7, 8, 9, 10, 11])


def test_a_table_has_no_image_shape():
    assert from_arrays(X, IDS, X, IDS).image_shape is None


def test_names_are_numbers_by_default():
    assert with_split("test", targets=IDS + 1).class_names == ("0", "1", "2", "3")


def test_more_names_than_ids_are_kept():
    assert from_arrays(X, IDS, X, IDS, class_names="abcd").class_names == ("a", "b", "c", "d")


def test_a_test_split_of_one_class_is_accepted():
    assert with_split("test", targets=0 * IDS).test.targets.tolist() == [0] * 6


def test_the_scale_is_kept():
    assert from_arrays(X, IDS, X, IDS, scale=0.25).train.scale == 0.25


def test_a_class_id_by_mistake_is_named_with_its_row():
    """It would make 16 million classes, of which nobody said a word."""
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=rf"^{split}: row 4 has class id {2**24}, .* 6 rows"):
            with_split(split, targets=np.array([0, 1, 2, 0, 2**24, 2]))


@both_splits
def test_more_classes_than_rows_have_to_be_said(split):
    targets = np.array([0, 1, 2, 0, 9, 2])
    with pytest.raises(ValueError, match=rf"^{split}: row 4 .* give num_classes=10 if"):
        with_split(split, targets=targets)
    assert with_split(split, targets=targets, num_classes=12).class_names == tuple(
        str(i) for i in range(12)
    )
    with pytest.raises(ValueError, match=rf"^{split}: row 4 has class id 9, but there are 9"):
        with_split(split, targets=targets, num_classes=9)
    with pytest.raises(ValueError, match="10 class_names, but num_classes is 9"):
        with_split(split, targets=targets, class_names="abcdefghij", num_classes=9)


def test_a_small_test_split_may_have_any_class_of_train():
    dataset = from_arrays(X, np.arange(6), X[:1], np.array([5]))
    assert dataset.class_names == tuple("012345")


@both_splits
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i4", object])
def test_ids_in_a_column_are_ids(split, dtype):
    """Takes labels as Keras ships those of CIFAR-10."""
    found = getattr(with_split(split, targets=IDS[:, None].astype(dtype)), split).targets
    assert (found.dtype, found.shape) == (np.int32, (6,))
    np.testing.assert_array_equal(found, IDS)


@both_splits
def test_a_column_of_floats_is_told_to_be_ids_of_the_wrong_type(split):
    with pytest.raises(ValueError, match=f"^{split}: class ids of type float32"):
        with_split(split, targets=IDS[:, None].astype(np.float32))


NUMBERS = np.round(1000 * X)


@pytest.mark.parametrize(
    "made",
    {
        "list": NUMBERS.tolist(),
        "matrix": NUMBERS.view(np.matrix),
        "objects": NUMBERS.astype(int).astype(object),
        "longdouble": NUMBERS.astype(np.longdouble),
        "frame": pd.DataFrame(NUMBERS.astype(int)),
        "mixed frame": pd.DataFrame({0: NUMBERS[:, 0].astype(int)}).join(
            pd.DataFrame(NUMBERS[:, 1:], columns=[1, 2, 3])
        ),
        "jax": jnp.asarray(NUMBERS),
        ">f4": NUMBERS.astype(">f4"),
        ">f8": NUMBERS.astype(">f8"),
        ">i2": NUMBERS.astype(">i2"),
        ">u8": NUMBERS.astype(">u8"),
        ">f2": NUMBERS.astype(">f2"),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_numpy_takes_for_numbers_is_taken_for_features_and_trained_on(made):
    dataset = from_arrays(made[1], IDS.tolist(), made[1], pd.Series(IDS))
    assert type(dataset.train.x) is np.ndarray
    assert dataset.train.x.dtype.isnative
    np.testing.assert_array_equal(dataset.train.x, NUMBERS)
    x, targets = dataset.train[:2]
    batch = Data(jnp.asarray(x, jnp.float32), jnp.asarray(targets))
    w = np.random.default_rng(3).normal(size=(4, 3)) / 1000
    params = model.Params(jnp.asarray(w, jnp.float32), jnp.zeros(3))
    logits = NUMBERS.astype(np.float64) @ w
    expected = (np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(6), IDS]).sum()
    found = evaluation.evaluate(params, batch).negative_log_likelihood
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_ragged_rows_are_refused():
    with pytest.raises(ValueError, match=r"^train: not an array"):
        from_arrays([[1.0], [1.0, 2.0]], [0, 1], [[1.0]], [0])


Z = np.random.default_rng(2).normal(size=(500, 4))


def around(center, column, scale=1.0):
    x = Z.copy()
    x[:, column] = center + scale * Z[:, column]
    return x


@both_splits
@pytest.mark.parametrize("center", [1e7, 1.6e9, -1e12])
def test_a_feature_whose_digits_float32_loses_is_refused(split, center):
    """Its mean is so large that the rows differ by a few steps of float32, or by none."""
    x = around(center, 1)
    with pytest.raises(ValueError, match=rf"^{split}: feature 1 varies by .*subtract its mean"):
        with_split(split, x=x, targets=np.arange(500) % 3)
    x[:, 1] -= center
    with_split(split, x=x, targets=np.arange(500) % 3)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_float32_may_change_a_feature_by_a_256th_of_its_spread(dtype):
    """Shows it at 2^26, where it rounds to multiples of 8, so that 2^26 + 4 becomes 2^26."""
    labels = np.arange(500) % 3
    for spread, fails in ((4 * 2**8 - 4, True), (4 * 2**8 + 4, False)):
        x = np.zeros((500, 2), dtype)
        x[:, 0] = 2**26 + 2**12 + np.where(np.arange(500) < 250, -spread, spread)
        x[0, 0] += 4 - x[0, 0] % 8
        standard_deviation = np.std(x[:, 0].astype(np.float64))
        assert (standard_deviation < 4 * 2**8) == fails
        if fails:
            with pytest.raises(ValueError, match="train: feature 0 varies by"):
                from_arrays(x, labels, x, labels)
        else:
            from_arrays(x, labels, x, labels)


@pytest.mark.parametrize("scale", [1e-38, 1e-45, 1e-160])
def test_features_that_float32_makes_zeros_are_refused(scale):
    labels = np.arange(500) % 3
    with pytest.raises(ValueError, match=r"train: feature 0 varies by .* standardise"):
        from_arrays(scale * Z, labels, scale * Z, labels)
    from_arrays(Z, labels, 0 * Z, labels)


def test_a_missing_value_as_0_does_not_hide_lost_digits():
    """A date in seconds: with one 0 among them, the standard deviation is that of the 0."""
    x = around(1.6e9, 2, scale=100.0)
    x[7, 2] = 0
    with pytest.raises(ValueError, match="train: feature 2 varies by"):
        from_arrays(x, np.arange(500) % 3, x, np.arange(500) % 3)


@pytest.mark.parametrize(
    "column",
    {
        "constant": np.full(500, 0.1),
        "large constant": np.full(500, 1e30 / 3),
        "rounding of a constant": 1 + np.arange(500) % 3 * 2.0**-52,
        "mostly zero": np.where(np.arange(500) % 100 == 0, 1e9 + Z[:, 0], 0),
        "heavy tail": np.exp(20 * Z[:, 0]),
        "seconds over years": 1.6e9 + 3e7 * Z[:, 0],
        "exact": 2.0**26 + 8 * (np.arange(500) % 2),
        "small": 1e-30 * Z[:, 0],
    }.items(),
    ids=lambda item: item[0],
)
def test_features_that_float32_holds_are_taken(column):
    x = Z.copy()
    x[:, 1] = column[1]
    dataset = from_arrays(x, np.arange(500) % 3, x, np.arange(500) % 3)
    np.testing.assert_array_equal(dataset.train.x, x.astype(np.float32))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-46, 1e-39, 1e39])
def test_a_scale_that_float32_does_not_hold_is_refused(scale):
    """It would make all features 0, or infinite."""
    with pytest.raises(ValueError, match="scale must be positive and finite in float32"):
        from_arrays(X, IDS, X, IDS, scale=scale)


@st.composite
def valid_arrays(draw):
    d, q = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    dtype = draw(st.sampled_from([np.uint8, np.float16, np.float32]))
    arrays = []
    for least in (2, 1):
        n = draw(st.integers(least, 8))
        finite = {"allow_nan": False, "allow_infinity": False}
        elements = hnp.from_dtype(np.dtype(dtype), **(finite if dtype != np.uint8 else {}))
        arrays.append(draw(hnp.arrays(dtype, (n, d), elements=elements)))
        ids = draw(hnp.arrays(np.int32, n, elements=st.integers(0, q - 1)))
        arrays.append(ids)
    arrays[1][:2] = (0, 1)
    if draw(st.booleans()):
        arrays[1], arrays[3] = (np.eye(q, dtype=np.float32)[ids] for ids in arrays[1::2])
    return arrays, q


@settings(derandomize=True, deadline=None)
@given(valid_arrays())
def test_a_valid_data_set_passes_unchanged(arrays_and_q):
    arrays, q = arrays_and_q
    dataset = from_arrays(*arrays, class_names=[f"class {j}" for j in range(q)])
    passed = (*dataset.train[:2], *dataset.test[:2])
    for before, after in zip(arrays, passed, strict=True):
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after, before)
