"""The arrays that users have, at the doors of model, losses, metrics and training."""

from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import scipy.sparse
import scipy.special

from softmax_jax import checks, evaluation, head, losses, metrics, model, training
from softmax_jax.codelength import coding, online
from softmax_jax.data import Data, features, host_targets
from softmax_jax.model import Params

# Milliseconds since 1970: beyond 32 bits.
DATES = np.array([[1_600_000_000_000], [1_700_000_000_000], [-1_600_000_000_000]])
PER_DATE = Params([[1e-12, 0.0]], [0, 0])
DATE_LABELS = np.array([0, 1, 0])


def date_losses():
    logits = np.stack([DATES[:, 0] * 1e-12, np.zeros(3)], axis=1)
    return -scipy.special.log_softmax(logits, axis=1)[np.arange(3), DATE_LABELS]


class TestLargeIntegers:
    """Integers beyond 32 bits are the numbers that they are."""

    @pytest.mark.parametrize("x", [DATES, DATES.tolist(), DATES.astype(object)])
    def test_logits_of_dates_in_milliseconds(self, x):
        np.testing.assert_allclose(
            model.logits(PER_DATE, x), [[1.6, 0], [1.7, 0], [-1.6, 0]], rtol=1e-6
        )

    def test_unsigned(self):
        x = np.array([[2**64 - 1]], np.uint64)
        np.testing.assert_allclose(model.logits(PER_DATE, x)[0, 0], 2.0**64 * 1e-12, rtol=1e-6)

    def test_beyond_64_bits(self):
        np.testing.assert_allclose(model.logits(PER_DATE, [[10**25]])[0, 0], 1e13, rtol=1e-6)

    def test_logits_are_float64_where_that_is_enabled(self):
        with jax.enable_x64(True):
            logits = model.logits(PER_DATE, DATES)
        assert logits.dtype == jnp.float64
        np.testing.assert_allclose(logits[:, 0], [1.6, 1.7, -1.6], rtol=1e-15)

    def test_objective_and_its_gradient(self):
        mean = date_losses().mean()
        np.testing.assert_allclose(losses.objective(PER_DATE, DATES, DATE_LABELS), mean, rtol=1e-6)
        p = scipy.special.softmax(np.stack([DATES[:, 0] * 1e-12, np.zeros(3)], axis=1), axis=1)
        expected = DATES[:, 0] @ (p - np.eye(2)[DATE_LABELS]) / 3
        gradient = losses.objective_gradient(PER_DATE, DATES, DATE_LABELS)
        np.testing.assert_allclose(gradient.w[0], expected, rtol=1e-5)

    def test_evaluation(self):
        measured = evaluation.evaluate(PER_DATE, Data(DATES, DATE_LABELS))
        np.testing.assert_allclose(measured.negative_log_likelihood, date_losses().sum(), rtol=1e-6)

    def test_a_shift_takes_an_offset_away_before_it_is_rounded(self):
        start = 1_600_000_000_000
        batch = Data(start + np.arange(3)[:, None], DATE_LABELS, scale=2.0, shift=-2.0 * start)
        np.testing.assert_array_equal(features(batch), [[0], [2], [4]])

    def test_training(self):
        optimizer = optax.sgd(0.1)
        params = Params(jnp.zeros((1, 2)), jnp.zeros(2))
        batch = Data(DATES, DATE_LABELS, scale=1e-12)
        narrow = Data((DATES * 1e-12).astype(np.float32), DATE_LABELS)
        states = [
            training.make_epoch(optimizer, batch_size=3)(training.init(params, optimizer), b)[0]
            for b in (batch, narrow)
        ]
        np.testing.assert_allclose(states[0].params.w, states[1].params.w, rtol=1e-6)
        assert np.abs(states[0].params.w).min() > 1e-3


IDS = [2**32, -(2**32) + 1, 2**40 + 1, -1, 3]


class TestClassIds:
    """Refused beyond [0, q) in every integer type."""

    @pytest.mark.parametrize("wrong", IDS)
    def test_loss_gradient_and_scores(self, wrong):
        logits, labels = np.zeros((2, 3), np.float32), np.array([0, wrong])
        message = f"row 1 has class id {wrong}, but there are 3 classes, with ids 0 to 2"
        for function in (
            losses.cross_entropy,
            losses.cross_entropy_gradient,
            metrics.correct,
            metrics.accuracy,
            metrics.squared_error,
            metrics.measure,
        ):
            with pytest.raises(ValueError, match=message):
                function(logits, labels)

    @pytest.mark.parametrize("wrong", IDS)
    def test_objective_evaluation_and_training(self, wrong):
        params = Params(np.zeros((1, 3), np.float32), np.zeros(3, np.float32))
        x, labels = np.ones((2, 1), np.float32), np.array([wrong, 0])
        optimizer = optax.sgd(0.1)
        state = training.init(params, optimizer)
        message = f"row 0 has class id {wrong}, but there are 3 classes, with ids 0 to 2"
        for call in (
            lambda: losses.objective(params, x, labels),
            lambda: losses.objective_gradient(params, x, labels),
            lambda: evaluation.evaluate(params, Data(x, labels)),
            lambda: training.make_update(optimizer)(state, Data(x, labels)),
            lambda: training.make_epoch(optimizer, batch_size=2)(state, Data(x, labels)),
        ):
            with pytest.raises(ValueError, match=message):
                call()

    @pytest.mark.parametrize("dtype", ["uint8", "int32", "uint64", ">i8"])
    def test_ids_from_one_are_told_to_be_so_by_evaluate(self, dtype):
        params = Params(jnp.zeros((1, 3)), jnp.zeros(3))
        labels = np.array([1, 2, 3]).astype(dtype)
        for ids in (labels, jnp.asarray(labels.astype("int32"))):
            with pytest.raises(
                ValueError, match=r"row 2 has class id 3, .*; they seem to start at 1"
            ):
                evaluation.evaluate(params, Data(jnp.ones((3, 1)), ids))

    @pytest.mark.parametrize("x64", [False, True])
    @pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64"])
    def test_an_id_out_of_range_is_nan_for_its_row_where_it_is_traced(self, dtype, x64):
        with jax.enable_x64(x64):
            labels = jnp.asarray(np.array([0, 200, 1]).astype(dtype))
            loss = jax.jit(losses.cross_entropy)(jnp.zeros((3, 3), jnp.float32), labels)
            np.testing.assert_array_equal(np.isnan(loss), [False, True, False])

    def test_traced_64_bit_ids_do_not_wrap(self):
        with jax.enable_x64(True):
            loss = jax.jit(losses.cross_entropy)(np.zeros((2, 3)), np.array([2**32, 1]))
        np.testing.assert_array_equal(np.isnan(loss), [True, False])

    def test_one_column_of_ids_as_keras_ships_them(self):
        logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
        labels = np.array([0, 2, 1, 1])
        np.testing.assert_array_equal(
            losses.cross_entropy(logits, labels[:, None]), losses.cross_entropy(logits, labels)
        )
        a, b = (metrics.measure(logits, y, confusion=True) for y in (labels[:, None], labels))
        jax.tree.map(np.testing.assert_array_equal, a, b)
        params = Params(jnp.eye(3), jnp.zeros(3))
        a, b = (evaluation.evaluate(params, Data(logits, y)) for y in (labels[:, None], labels))
        jax.tree.map(np.testing.assert_array_equal, a, b)
        assert coding.compress(params, logits, labels[:, None]) == coding.compress(
            params, logits, labels
        )
        a, b = (
            online.refit(logits, y, num_classes=3, ends=[2, 4]) for y in (labels[:, None], labels)
        )
        np.testing.assert_array_equal(a.bits, b.bits)


@pytest.mark.parametrize("unit", [1e38, 1e39, 1e160, 1e-38, 1e-160])
def test_features_beyond_float32_are_evaluated_with_the_parameters_of_their_unit(unit):
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    w, b = rng.normal(size=(3, 3)), rng.normal(size=3)
    expected = model.logits(Params(w, b), z)
    params, x = Params(w / unit, b), z * unit
    np.testing.assert_allclose(model.logits(params, x), expected, rtol=1e-5, atol=1e-5)
    measured = evaluation.evaluate(params, Data(x, labels))
    loss = losses.cross_entropy(expected, labels)
    np.testing.assert_allclose(measured.negative_log_likelihood, loss.sum(), rtol=1e-5)
    head_loss = head.linear_cross_entropy(x, *params, labels).loss
    np.testing.assert_allclose(head_loss, loss, rtol=1e-4)


def test_a_gradient_of_which_float32_would_keep_nothing_is_refused():
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    params = Params(np.ones((3, 3)), np.zeros(3))
    with pytest.raises(ValueError, match=r"x: feature 0 varies .*; subtract its mean"):
        losses.objective_gradient(params, 1.6e9 + z, labels)
    with jax.enable_x64(True):
        found = losses.objective_gradient(params, 1.6e9 + z, labels)
    residual = (1 / 3 - np.eye(3)[labels]) / 50
    np.testing.assert_allclose(found.w, (1.6e9 + z).T @ residual, rtol=1e-6)


X = np.array([[1.5, -2.0], [0.25, 3.0]])
SAME_FEATURES = {
    "big-endian": X.astype(">f4"),
    "float64": X,
    "longdouble": X.astype(np.longdouble),
    "list": X.tolist(),
    "pandas": pd.DataFrame(X, columns=["a", "b"]),
    "pandas of objects": pd.DataFrame(X.astype(object)),
    "objects": X.astype(object),
    "fractions": np.array([[Fraction(3, 2), -2], [Decimal("0.25"), np.float32(3)]], object),
    "float16": X.astype(np.float16),
    "fortran": np.asfortranarray(X),
    "read-only": np.broadcast_to(X, X.shape),
    "list of arrays": [jnp.asarray(row) for row in X],
}


@pytest.mark.parametrize("name", SAME_FEATURES)
def test_what_numpy_takes_is_taken(name):
    x = SAME_FEATURES[name]
    params = Params(np.array([[1.0, 0.5], [0.0, 1.0]], ">f8"), [0, 1])
    expected = [[1.5, -0.25], [0.25, 4.125]]
    np.testing.assert_array_equal(model.logits(params, x), expected)
    labels = pd.Series([1, 0], dtype="int16")
    loss = losses.cross_entropy(expected, labels)
    np.testing.assert_allclose(loss, np.log1p(np.exp([1.75, 3.875])), rtol=1e-6)
    weights = np.array([1, 3], ">i4")
    mean = (loss[0] + 3 * loss[1]) / 4
    np.testing.assert_allclose(
        losses.objective(params, x, labels, weights=weights), mean, rtol=1e-6
    )
    measured = evaluation.evaluate(params, Data(x, labels, weights))
    np.testing.assert_allclose(measured.negative_log_likelihood, 4 * mean, rtol=1e-6)
    assert model.predict(params, x).tolist() == [0, 1]


def test_a_matrix_is_an_array():
    with pytest.warns(PendingDeprecationWarning):
        x = np.matrix(X)
    np.testing.assert_array_equal(checks.as_real(x, "x"), X)
    assert not isinstance(checks.as_array(x, "x"), np.matrix)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.array([["1", "2"]]), "x: type <U1; expected real numbers"),
        (np.array([[1.0, None]], object), r"x: entry \[0, 1\] is None; expected numbers"),
        (np.array([[1 + 2j, 0]]), "x: type complex128"),
        (np.array([["2020-01-01"] * 2], "M8[s]"), "x: type datetime64"),
        ([[1.0, 2.0], [3.0]], "x: not an array"),
        (np.ma.masked_array([[1.0, 2.0]], [[False, True]]), "x: there are masked entries"),
        (scipy.sparse.csr_matrix(X), "x: a sparse matrix; give x.toarray"),
    ],
)
def test_what_is_no_array_of_real_numbers_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        model.logits(Params(jnp.zeros((2, 2)), jnp.zeros(2)), x)


@pytest.mark.slow
def test_traced_values_pass_as_they_are():
    params = model.init(jax.random.key(0), num_features=2, num_classes=2, scale=1.0)
    x, labels = jnp.asarray(X, jnp.float32), jnp.array([0, 1])
    expected = losses.objective_gradient(params, X, labels)
    for gradient in (
        jax.grad(losses.objective)(params, X, np.array([0, 1])),
        jax.jit(jax.grad(losses.objective))(params, x, labels),
        jax.jit(lambda p: jax.grad(losses.objective)(p, X.astype(">f4"), [0, 1]))(params),
        jax.jit(jax.grad(lambda p, a, b: losses.objective(p, [a, b], labels)))(params, *x),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), gradient, expected)


@pytest.mark.parametrize("value", [2.5, 0, True, "8"])
def test_sizes_are_integers(value):
    params, batch = Params(jnp.zeros((1, 2)), jnp.zeros(2)), Data(jnp.ones((3, 1)), [0, 1, 0])
    for name, call in {
        "block_size": lambda: evaluation.evaluate(params, batch, block_size=value),
        "k": lambda: evaluation.evaluate(params, batch, k=value),
        "batch_size": lambda: training.make_epoch(optax.sgd(0.1), batch_size=value),
    }.items():
        with pytest.raises(ValueError, match=rf"{name}: {value!r}; expected an integer"):
            call()


@pytest.mark.parametrize("offset", [0.0, 1e5, 1e7, 1.6e9, 1e12])
def test_a_fit_is_used_with_the_digits_it_was_certified_with(offset):
    rng = np.random.default_rng(3)
    x = offset + rng.normal(size=(500, 3))
    w = np.array([[1.0, -1], [2, 0], [0, 1]])
    params = Params(w, np.array([0.0, 0.1]) - offset * w.sum(axis=0))
    exact = (x.astype(np.longdouble) @ w + params.b).astype(np.float64)
    labels = (exact[:, 1] + rng.logistic(size=500) > exact[:, 0]).astype(int)
    nats = -scipy.special.log_softmax(exact, axis=1)[np.arange(500), labels].mean()
    rounding = 2e-6 + 1e-15 * offset  # of float64
    measured = evaluation.evaluate(params, Data(x, labels))
    assert abs(measured.negative_log_likelihood / 500 - nats) < rounding
    assert abs(losses.objective(params, x, labels) - nats) < rounding
    p = scipy.special.softmax(exact, axis=1)
    np.testing.assert_allclose(model.probabilities(params, x), p, atol=rounding)
    np.testing.assert_allclose(model.probabilities(params, x[7]), p[7], atol=rounding)
    np.testing.assert_array_equal(model.predict(params, x), p.argmax(axis=1))


def test_small_offsets_are_left_alone():
    params = Params(np.ones((2, 2)), np.zeros(2))
    x = 100 + np.random.default_rng(0).normal(size=(10, 2))
    assert model.centred(params, x)[1] is x


@pytest.mark.slow
def test_a_guard_of_transfers_lets_arrays_through(count_compilations):
    x, labels = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 3
    params = model.init(jax.random.key(0), num_features=3, num_classes=3)
    optimizer = optax.sgd(0.1)
    epoch = training.make_epoch(optimizer, batch_size=10)

    def run():
        state = training.init(params, optimizer)
        return (
            model.predict(params, x, threshold=0.5),
            losses.cross_entropy(model.logits(params, x), labels, label_smoothing=0.1),
            losses.objective(params, x, labels, l2=0.1),
            metrics.measure(model.logits(params, x), labels, confusion=True),
            evaluation.evaluate(params, Data(x, labels, scale=2.0)),
            epoch(state, Data(x, labels))[0].params,
        )

    expected = run()
    with jax.transfer_guard("disallow"):
        jax.tree.map(np.testing.assert_array_equal, run(), expected)
        assert count_compilations(run) == 0


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
def test_scores_of_any_types_together(x64):
    rng = np.random.default_rng(0)
    logits, labels, weights = rng.normal(size=(30, 4)), rng.integers(4, size=30), np.arange(30)
    p = scipy.special.softmax(logits, axis=1)
    hits = p.argmax(axis=1) == labels
    confusion = np.zeros((4, 4))
    np.add.at(confusion, (labels, p.argmax(axis=1)), weights)
    with jax.enable_x64(x64), jax.numpy_dtype_promotion("strict"):
        for label_type in ("uint8", "int16", ">i4", "uint64"):
            for weight_type in ("uint8", "float16", "float32", "float64"):
                measured = metrics.measure(
                    logits, labels.astype(label_type), weights.astype(weight_type), confusion=True
                )
                assert measured.weight.dtype == (np.float64 if x64 else np.float32)
                np.testing.assert_allclose(measured.correct, weights[hits].sum(), rtol=1e-6)
                np.testing.assert_allclose(measured.confusion, confusion, rtol=1e-6)
                nats = weights @ -np.log(p[np.arange(30), labels])
                np.testing.assert_allclose(measured.negative_log_likelihood, nats, rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"s: shape \(1,\) for 3 rows; expected \[3\]"),
        (np.ones((2, 3)), r"s: shape \(2, 3\) for 3 rows"),
        ([1, -1, 1], "s: row 1 has weight -1.0; expected finite numbers, 0 or more"),
        ([1, 1, np.nan], "s: row 2 has weight nan"),
        ([0, 0, 0], "s: the total weight is zero"),
        ([1e308, 1e308, 0], "s: the total weight is infinite"),
    ],
)
def test_weights_are_checked_in_one_way(weights, message):
    with pytest.raises(ValueError, match=message):
        checks.refuse_no_weight(checks.checked_weights(weights, 3, "s"), "s")


def test_there_may_be_several_weightings():
    several = checks.checked_weights(np.ones((2, 3)), 3, several=True)
    assert several.shape == (2, 3)
    assert checks.checked_weights(None, 3, several=True).shape == (1, 3)
    with pytest.raises(ValueError, match="the total weight is zero"):
        checks.refuse_no_weight(several * [[1], [0]])


def test_a_single_class_is_nothing_to_tell_apart():
    host_targets.refuse_single_class(np.array([1.0, 0, 2]), "y")
    for y in (np.array([1, 1, 0]), np.array([[0.5, 0.5], [0, 1], [1, 0]])):
        mass = host_targets.mass_of_classes(y, np.array([0.0, 2.0, 0.0]), 2)
        np.testing.assert_array_equal(mass, [0, 2])
        with pytest.raises(ValueError, match="y: all of the weight is on a single class, 1; there"):
            host_targets.refuse_single_class(mass, "y")


@pytest.mark.parametrize("value", [-1e-9, np.inf, np.nan])
def test_strengths_are_finite_and_not_negative(value):
    with pytest.raises(ValueError, match="l2 must be finite and at least 0"):
        checks.checked_strength(value, "l2")
    assert checks.checked_strength(jnp.float32(0.5), "l2") == 0.5
