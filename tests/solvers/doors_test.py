"""The arrays that users give to `fit` and `cross_validate`: the same fit, or an error."""

import fractions
import inspect

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas
import pytest
import scipy.sparse

from softmax_jax import solvers
from softmax_jax.solvers import buckets

N, D, Q = 60, 4, 3


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    # Integers, which all types have exactly.
    return rng.integers(-8, 9, size=(N, D)).astype(float), rng.integers(Q, size=N)


@pytest.fixture(scope="module")
def reference(problem):
    return solvers.fit(*problem, l2=1e-2)


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


FEATURES = {
    "big-endian floats": lambda x: x.astype(">f4"),
    "big-endian integers": lambda x: x.astype(">i2"),
    "int8": lambda x: x.astype(np.int8),
    "int64": lambda x: x.astype(np.int64),
    "float16": lambda x: x.astype(np.float16),
    "bfloat16": lambda x: x.astype(ml_dtypes.bfloat16),
    "longdouble": lambda x: x.astype(np.longdouble),
    "objects": lambda x: x.astype(object),
    "fractions": lambda x: np.vectorize(fractions.Fraction, otypes=[object])(x.astype(int)),
    "a list": lambda x: x.tolist(),
    "a frame": pandas.DataFrame,
    "a frame of several types": lambda x: pandas.DataFrame(x).astype({0: int, 1: np.float32}),
    "a matrix": np.matrix,
    "Fortran order": np.asfortranarray,
    "backwards": lambda x: x[::-1].copy()[::-1],
    "read-only": read_only,
    "masked, nothing hidden": np.ma.array,
    "JAX": lambda x: jnp.asarray(x, jnp.float32),
    "sparse longdouble": lambda x: scipy.sparse.csr_matrix(x.astype(np.longdouble)),
    "sparse integers by columns": lambda x: scipy.sparse.csc_array(x.astype(np.int64)),
}
COMPILED_ANEW = (
    "big-endian integers",
    "int8",
    "int64",
    "float16",
    "bfloat16",
    "sparse longdouble",
    "sparse integers by columns",
)
TARGETS = {
    "big-endian ids": lambda y: y.astype(">i8"),
    "uint64": lambda y: y.astype(np.uint64),
    "a list": lambda y: y.tolist(),
    "a series": pandas.Series,
    "objects": lambda y: y.astype(object),
    "[n, 1]": lambda y: y[:, None],
    "JAX": jnp.asarray,
    "big-endian probabilities": lambda y: np.eye(Q)[y].astype(">f4"),
    "lists of probabilities": lambda y: np.eye(Q)[y].tolist(),
    "a frame of probabilities": lambda y: pandas.DataFrame(np.eye(Q)[y]),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] if k in COMPILED_ANEW else []) for k in FEATURES],
)
def test_features_as_the_numbers_they_are(problem, reference, kind):
    x, y = problem
    given = FEATURES[kind](x)
    before = given.copy() if hasattr(given, "copy") else given
    solution = solvers.fit(given, y, l2=1e-2)
    assert solution.objective == pytest.approx(reference.objective, rel=1e-14)
    np.testing.assert_allclose(solution.params.w, reference.params.w, atol=1e-9)
    assert getattr(given, "dtype", None) == getattr(before, "dtype", None)


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_as_the_numbers_they_are(problem, reference, kind):
    x, y = problem
    solution = solvers.fit(x, TARGETS[kind](y), l2=1e-2)
    assert solution.objective == pytest.approx(reference.objective, rel=1e-14)
    np.testing.assert_allclose(solution.params.w, reference.params.w, atol=1e-9)


def test_other_arguments_as_the_numbers_they_are(problem, reference):
    x, y = problem
    solution = solvers.fit(
        x,
        y,
        l2=1e-2,
        sample_weight=pandas.Series(np.full(N, 2, ">i4")),
        class_weight=np.ones(Q, ">f4"),
        offset=np.ones((N, Q), ">f4").tolist(),
        scale=np.ones(D, np.longdouble),
        shift=[0] * D,
        num_classes=np.int8(Q),
    )
    assert solution.objective == pytest.approx(reference.objective, rel=1e-14)


@pytest.mark.slow
def test_cross_validation_has_the_same_door(problem):
    x, y = problem
    same = solvers.cross_validate(x, y, l2=[1e-2, 1e-1], folds=3)
    for given in (x.astype(">f4"), x.tolist(), x.astype(object)):
        found = solvers.cross_validate(given, y[:, None], l2=[1e-2, 1e-1], folds=3)
        np.testing.assert_allclose(found.loss, same.loss, rtol=1e-12)


@pytest.mark.parametrize("door", [solvers.fit, solvers.fit_path, solvers.cross_validate])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.array([0, 1, 2**32, 1])}, "row 2 has class id 4294967296"),
        ({"y": np.array([0, 1, -(2**32) + 1, 1])}, "row 2 has class id -4294967295"),
        ({"y": np.array([0, 1, 2**63, 1], np.uint64)}, "row 2 has class id 9223372036854775808"),
        ({"y": np.array([0, 2**24, 0, 1])}, "row 1 has class id 16777216, which makes more"),
        ({"y": np.array([0, 2**31 - 1, 0, 1])}, "than the 4 rows: give num_classes=2147483648"),
        ({"y": np.array([0, 4, 0, 1]), "num_classes": 4}, "class id 4, but there are 4"),
        ({"y": np.array([[0.0], [1], [0], [1]])}, "class ids of type float64"),
        ({"y": [[0, 1], [1]]}, "y: not an array"),
        ({"y": ["a", "b", "a", "b"]}, "class ids of type <U1"),
        ({"y": np.array(["a", 1, 0, 1], object)}, r"y: entry \[0\] is 'a'"),
        ({"num_classes": 2.5}, "num_classes: 2.5; expected an integer"),
        ({"num_classes": 2.0}, "num_classes: 2.0; expected an integer"),
        ({"block_size": 2.5}, "block_size: 2.5; expected an integer"),
        ({"block_size": "2"}, "block_size: '2'; expected an integer"),
        ({"block_size": np.array([2])}, r"block_size: array\(\[2\]\); expected an integer"),
        ({"x": [[1, 2], [3]]}, "x: not an array"),
        ({"x": np.full((4, 2), np.datetime64("2020-01-01"))}, "expected real numbers"),
        ({"x": np.ma.masked_less(np.arange(8.0).reshape(4, 2), 1)}, "x: there are masked entries"),
        ({"x": np.full((4, 2), 1e4000, np.longdouble)}, "is inf"),
    ],
)
def test_what_no_door_takes(door, change, message):
    good = {"x": np.arange(8.0).reshape(4, 2), "y": np.array([0, 1, 1, 0]), "l2": 1e-2}
    if door is solvers.cross_validate:
        good["folds"] = 2
    with pytest.raises(ValueError, match=message):
        door(**(good | change))


@pytest.mark.slow
def test_more_classes_than_rows_where_they_are_meant():
    x, y = np.arange(8.0).reshape(4, 2), np.array([0, 1, 1, 9])
    solution = solvers.fit(x, y, l2=1e-2, num_classes=10)
    assert solution.params.w.shape == (2, 10)
    assert solvers.fit(x, np.eye(10)[y], l2=1e-2).params.w.shape == (2, 10)


@pytest.mark.parametrize("door", [solvers.fit_path, solvers.cross_validate])
@pytest.mark.parametrize("slots", [1.5, True, 0])
def test_slots_are_a_count(door, slots):
    x, y = np.arange(8.0).reshape(4, 2), np.array([0, 1, 1, 0])
    given = {"folds": 2} if door is solvers.cross_validate else {}
    with pytest.raises(ValueError, match=f"slots: {slots}; expected"):
        door(x, y, l2=1e-2, slots=slots, **given)


def test_the_doors_share_their_keywords():
    fit, path, validate = (
        inspect.signature(door).parameters
        for door in (solvers.fit, solvers.fit_path, solvers.cross_validate)
    )
    assert path.keys() - fit.keys() == {"slots", "strengths", "weakest", "least_gain"}
    assert fit.keys() <= path.keys() <= validate.keys()
    for name in path.keys() & fit.keys() - {"l2"}:
        assert fit[name].default == path[name].default == validate[name].default, name


@pytest.mark.parametrize("stored", [np.asarray, scipy.sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_small_problems_of_nearly_one_shape_share_programs(
    count_compilations, stored, fit_intercept
):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(60, 16)), rng.integers(4, size=60)
    y[:4] = range(4)
    options = dict(l2=1e-2, fit_intercept=fit_intercept, standardize=True)

    def solve(n, d, q):
        return solvers.fit(stored(x[:n, :d]), y[:n] % q, **options)

    whole = solve(60, 16, 4)
    # Without an intercept a class of no weight is like any other, and none can be added.
    for n, d, q in ((60, 15, 4), (43, 5, 3 if fit_intercept else 4)):
        assert count_compilations(lambda shape=(n, d, q): solve(*shape)) == 0
        solution = solve(n, d, q)
        assert solution.params.w.shape == solution.centered.w.shape == (d, q)
        assert solution.params.b.shape == (q,)
        assert solution.mean.shape == (d,)
        # The same features, and some of zeros.
        same = solvers.fit(np.where(np.arange(16) < d, x, 0)[:n], y[:n] % q, **options)
        assert solution.objective == pytest.approx(same.objective, rel=1e-13)
        assert solution.objective > whole.objective
        np.testing.assert_allclose(solution.params.w, same.params.w[:d], atol=1e-12)


@pytest.mark.parametrize(
    ("shapes", "most"),
    [
        ([(200, d, 3) for d in range(25, 0, -1)], 3),  # recursive elimination
        ([(n, 13, 3) for n in range(20, 900, 7)], 3),  # a learning curve
        ([(200, 10, q) for q in range(2, 14)], 3),  # several targets
        ([(n, 8, 5) for n in range(120, 126)], 1),  # folds
    ],
    ids=["features", "rows", "classes", "folds"],
)
def test_a_loop_over_shapes_meets_few_of_them(shapes, most):
    met = {buckets.rounded(*shape, classes_may_grow=True) for shape in shapes}
    assert len(met) <= most
    assert all(
        a >= b
        for shape in shapes
        for a, b in zip(buckets.rounded(*shape, classes_may_grow=True), shape, strict=True)
    )
