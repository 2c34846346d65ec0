import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from scipy.special import gammaln, log_softmax
from sklearn.linear_model import LogisticRegression

from softmax_jax import conventions, training
from softmax_jax.codelength import online
from softmax_jax.data import Data
from softmax_jax.data.shuffle import permutation
from softmax_jax.model import Params


def drawn(n=120, d=4, q=3, seed=0):
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(n, d)), 2 * rng.normal(size=(d, q))
    return x, np.argmax(x @ w + rng.gumbel(size=(n, q)), axis=1)


@pytest.mark.parametrize(
    ("n", "ends"),
    [
        (1000, [1, 2, 4, 8, 16, 32, 63, 125, 250, 500, 1000]),
        (60_000, [60, 120, 240, 480, 960, 1920, 3750, 7500, 15_000, 30_000, 60_000]),
        (7, [1, 2, 4, 7]),
        (1, [1]),
    ],
)
def test_blocks_are_those_of_voita_and_titov(n, ends):
    assert online.block_ends(n) == ends


@pytest.mark.slow
def test_without_features_it_is_the_code_of_krichevsky_and_trofimov():
    rng = np.random.default_rng(0)
    q, labels = 4, rng.choice(4, size=40, p=[0.6, 0.3, 0.1, 0.0])
    found = online.refit(np.zeros((40, 1)), labels, num_classes=q, ends=range(1, 41), tol=1e-6)
    # A Dirichlet prior with 1/2 for each class: the probability of all labels in closed form.
    counts = np.bincount(labels, minlength=q)
    nats = gammaln(40 + q / 2) - gammaln(q / 2) - np.sum(gammaln(counts + 0.5) - gammaln(0.5))
    assert found.total == pytest.approx(nats / math.log(2), rel=1e-6)
    assert found.bits[0] == 2
    assert found.uniform == 80
    assert found.compression == pytest.approx(80 / found.total)


@pytest.mark.slow
def test_each_block_is_coded_by_the_fit_to_the_labels_before_it():
    x, labels = drawn()
    ends = [20, 50, 120]
    found = online.refit(x, labels, num_classes=3, ends=ends, precision=2.0, scale=0.5, tol=1e-9)
    bits = [20 * math.log2(3)]
    for seen, end in ((20, 50), (50, 120)):
        strengths = conventions.to_sklearn(2.0 / seen, total_weight=seen)
        model = LogisticRegression(**strengths, tol=1e-10, max_iter=10_000)
        model.fit(0.5 * x[:seen], labels[:seen])
        p = model.predict_proba(0.5 * x[seen:end])[np.arange(end - seen), labels[seen:end]]
        unknown = 1.5 / (seen + 1.5)
        bits.append(-np.log2((1 - unknown) * p + unknown / 3).sum())
    np.testing.assert_allclose(found.bits, np.cumsum(bits), rtol=1e-5)
    np.testing.assert_array_equal(found.seen, ends)


def test_labels_to_come_are_not_looked_at():
    x, labels = drawn()
    changed = np.where(np.arange(120) < 50, labels, 0)
    ours, theirs = (
        online.refit(x, some, num_classes=3, ends=[20, 50, 120]) for some in (labels, changed)
    )
    np.testing.assert_array_equal(ours.bits[:2], theirs.bits[:2])
    assert ours.bits[2] != theirs.bits[2]


def test_a_class_that_comes_late_costs_bits_and_not_infinity():
    x, labels = drawn()
    labels = np.where(np.arange(120) < 60, 0, labels)
    found = online.refit(x, labels, num_classes=5, ends=[1, 30, 60, 90, 120])
    assert np.isfinite(found.bits).all()
    # From one class alone: a label of it has (29.5 + 0.5) of 32.5, before the 31st.
    assert found.bits[2] - found.bits[1] == pytest.approx(30 * math.log2(32.5 / 30.5), rel=1e-6)


@pytest.mark.slow
def test_features_that_tell_nothing_do_not_compress_and_those_that_do_select():
    x, labels = drawn(n=600)
    control = online.control_labels(jax.random.key(0), labels)
    np.testing.assert_array_equal(np.bincount(control), np.bincount(labels))
    assert (control != labels).any()
    real, shuffled = (online.refit(x, some, num_classes=3) for some in (labels, control))
    assert real.total < 0.7 * real.uniform
    assert shuffled.total > 0.97 * shuffled.uniform


@pytest.mark.slow
def test_fits_to_all_blocks_share_one_program(count_compilations):
    x, labels = drawn(n=150, d=7)
    first = count_compilations(
        lambda: online.refit(x, labels, num_classes=3, ends=[20, 40, 150]).bits
    )
    assert first > 0
    again = count_compilations(
        lambda: online.refit(x, labels, num_classes=3, ends=[25, 50, 75, 100, 150]).bits
    )
    assert again == 0


def test_progress_is_told():
    x, labels = drawn()
    told = []
    online.refit(x, labels, num_classes=3, ends=[20, 50, 120], callback=told.append)
    assert told == [50, 120]


@pytest.mark.slow
def test_a_pass_codes_each_minibatch_before_it_learns_from_it():
    x, labels = drawn()
    optimizer, key = optax.adam(0.1), jax.random.key(3)
    found = online.stream(
        x, labels, num_classes=3, optimizer=optimizer, batch_size=32, key=key, scale=0.5, l2=0.1
    )
    zero = Params(jnp.zeros((4, 3)), jnp.zeros(3))
    state = training.init(zero, optimizer, key=key, l2=0.1)
    update, bits = training.make_update(optimizer), []
    order = np.asarray(permutation(jax.random.fold_in(key, 1), 120))
    for start in range(0, 120, 32):
        rows = order[start : start + 32]
        w, b = map(np.asarray, state.params)
        log_p = log_softmax(0.5 * x[rows] @ w + b, axis=1)
        bits.append(-log_p[np.arange(len(rows)), labels[rows]].sum() / math.log(2))
        state, _ = update(state, Data(jnp.asarray(x[rows]), jnp.asarray(labels[rows]), scale=0.5))
    np.testing.assert_allclose(found.bits, np.cumsum(bits), rtol=1e-5)
    assert found.seen.tolist() == [32, 64, 96, 120]
    assert found.bits[0] == pytest.approx(32 * math.log2(3), rel=1e-6)
    assert found.total < found.uniform


def test_wide_integers_are_not_cut_off():
    x = np.random.default_rng(0).integers(-(2**33), 2**33, (300, 1))
    labels, options = (x[:, 0] > 0).astype(int), {"num_classes": 2, "optimizer": optax.sgd(1.0)}
    ours = online.stream(x, labels, scale=2.0**-33, **options)
    theirs = online.stream(x * 2.0**-33, labels, **options)
    assert ours.total == pytest.approx(theirs.total, rel=1e-5)


def test_a_pass_that_diverges_says_so():
    x, labels = drawn()
    with pytest.raises(FloatingPointError, match="a third of the learning rate 1e"):
        online.stream(1e20 * x, labels, num_classes=3, optimizer=optax.sgd(1.0), learning_rate=1e30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.full(120, 3)}, "class id 3, but there are 3 classes"),
        ({"labels": np.zeros(119, int)}, "for 120 rows"),
        ({"labels": np.zeros((120, 3))}, r"labels: shape \(120, 3\)"),
        ({"x": np.zeros((0, 4)), "labels": np.zeros(0, int)}, "there are no rows"),
        ({"x": np.zeros(120)}, r"x: shape \(120,\)"),
        ({"x": np.full((120, 1), 1j)}, "x: type complex128"),
        ({"scale": [1.0, 2.0]}, "scale: expected a finite number, or 4"),
        ({"x": np.full((120, 1), np.nan)}, "x: row 0, feature 0 is nan"),
        ({"ends": [10, 10, 120]}, "expected to rise to 120"),
        ({"ends": [10, 119]}, "expected to rise to 120"),
        ({"ends": [0, 120]}, "expected to rise to 120"),
        ({"ends": []}, "expected to rise to 120"),
        ({"ends": [2.5, 120]}, "ends: 2.5; expected an integer"),
        ({"num_classes": 2.5}, "num_classes: 2.5; expected an integer"),
        ({"labels": np.full(120, 2**32)}, "class id 4294967296"),
        ({"precision": 0.0}, "expected a positive number"),
    ],
)
def test_bad_input_is_refused(changes, message):
    x, labels = drawn()
    inputs = {"x": x, "labels": labels, "num_classes": 3} | changes
    with pytest.raises(ValueError, match=message):
        online.refit(**inputs)
    if not {"ends", "precision"} & set(changes):
        with pytest.raises(ValueError, match=message):
            online.stream(**inputs, optimizer=optax.sgd(1.0))


def test_a_share_of_less_than_a_label_is_one():
    assert online.block_ends(10, np.array([1e-9, 100])) == [1, 10]


@pytest.mark.parametrize("percent", [(), (50,), (0, 100), (60, 50, 100)])
def test_percents_that_do_not_rise_are_refused(percent):
    with pytest.raises(ValueError, match="expected to rise to 100"):
        online.block_ends(10, percent)


@pytest.mark.parametrize("factor", [1e8, 1e-8, 2.0**40])
def test_units_of_the_features_change_nothing_but_the_prior(factor):
    x, labels = drawn()
    options = {"num_classes": 3, "ends": [20, 50, 120], "tol": 1e-9}
    expected = online.refit(x, labels, **options)
    found = online.refit(factor * x, labels, precision=factor**2, **options)
    np.testing.assert_allclose(found.bits, expected.bits, rtol=1e-8)
    scaled = online.refit(factor * x, labels, scale=1 / factor, **options)
    np.testing.assert_allclose(scaled.bits, expected.bits, rtol=1e-8)


def test_the_zero_of_the_features_changes_nothing():
    x, labels = drawn()
    options = {"num_classes": 3, "ends": [20, 50, 120], "tol": 1e-9}
    expected = online.refit(x, labels, **options)
    found = online.refit(1e8 + x, labels, **options)
    np.testing.assert_allclose(found.bits, expected.bits, rtol=1e-6)


@pytest.mark.parametrize("given", [list, lambda a: a.astype(">f8"), np.longdouble])
def test_arrays_of_any_kind_are_taken(given):
    x, labels = drawn()
    options = {"num_classes": 3, "ends": [60, 120]}
    expected = online.refit(x, labels, **options)
    found = online.refit(given(x), labels.astype(">i8"), **options)
    np.testing.assert_array_equal(found.bits, expected.bits)


@pytest.mark.slow
@pytest.mark.exact
def test_features_of_1e8_are_fitted_under_a_precision_of_one():
    x, labels = drawn()
    options = {"labels": labels, "num_classes": 3, "ends": [40, 120]}
    # The prior is as good as none.
    expected = online.refit(x, precision=1e-16, **options).bits
    np.testing.assert_allclose(online.refit(1e8 * x, **options).bits, expected, rtol=0.02)


@pytest.mark.slow
def test_what_cannot_be_certified_says_what_to_do():
    x, labels = drawn()
    with pytest.raises(RuntimeError, match=r"first 40 labels .*: give a scale that brings them"):
        online.refit(1e12 * x, labels, num_classes=3, ends=[40, 120])


def test_sparse_features_are_coded_as_dense_ones():
    x, labels = drawn()
    x = x * (np.random.default_rng(1).uniform(size=x.shape) < 0.5)
    options = {"labels": labels, "num_classes": 3, "ends": [20, 60, 120], "tol": 1e-8}
    dense, sparse = (online.refit(a, **options) for a in (x, scipy.sparse.csc_array(x)))
    np.testing.assert_allclose(sparse.bits, dense.bits, rtol=1e-5)
    with pytest.raises(ValueError, match=r"x: a sparse matrix; give x.toarray\(\)"):
        online.stream(scipy.sparse.csr_array(x), labels, num_classes=3, optimizer=optax.sgd(1.0))


def test_a_pass_takes_arrays_of_any_kind():
    x, labels = drawn()
    options = {"num_classes": 3, "optimizer": optax.sgd(0.1)}
    expected = online.stream(x, labels, **options).bits
    for a, b in (
        (x.astype(">f8"), labels.astype(">i8")),
        (x.tolist(), labels.tolist()),
        (x.astype(np.longdouble), labels.astype(np.uint64)),
    ):
        np.testing.assert_array_equal(online.stream(a, b, **options).bits, expected)


def test_a_pass_refuses_features_of_which_float32_keeps_too_little():
    x, labels = drawn()
    options = {"num_classes": 3, "optimizer": optax.sgd(0.1)}
    with pytest.raises(ValueError, match=r"x: feature 0 .*; subtract its mean"):
        online.stream(x + 1e9, labels, **options)
    with jax.enable_x64(True):
        assert np.isfinite(online.stream(1 + 1e-9 * x, labels, **options).bits).all()


@pytest.mark.parametrize("x64", [False, True])
def test_guards_of_transfers_and_promotion_let_arrays_through(x64):
    x, labels = drawn()
    options = {"num_classes": 3, "optimizer": optax.sgd(0.1), "scale": 0.5}
    expected = online.stream(x, labels, **options)
    with (
        jax.enable_x64(x64),
        jax.numpy_dtype_promotion("strict"),
        jax.transfer_guard("disallow"),
    ):
        found = online.stream(x, labels, **options)
        coded = online.refit(x, labels, num_classes=3, ends=[60, 120])
    np.testing.assert_allclose(found.bits, expected.bits, rtol=1e-5)
    np.testing.assert_array_equal(
        coded.bits, online.refit(x, labels, num_classes=3, ends=[60, 120]).bits
    )


def test_a_shift_is_part_of_the_unit():
    x, labels = drawn()
    unit = {"scale": 0.5, "shift": np.array([0.0, 1.0, -2.0, 3.0])}
    common = {"num_classes": 3}
    seen = x * unit["scale"] + unit["shift"]
    options = common | {"ends": [10, 60, 120], "tol": 1e-9}
    expected = online.refit(seen, labels, **options)
    np.testing.assert_allclose(online.refit(x, labels, **unit, **options).bits, expected.bits)
    options = common | {"optimizer": optax.sgd(0.1)}
    x, seen = x.astype(np.float32), seen.astype(np.float32)
    expected = online.stream(seen, labels, **options)
    found = online.stream(x, labels, **unit, **options)
    np.testing.assert_allclose(found.bits, expected.bits, rtol=1e-5)
