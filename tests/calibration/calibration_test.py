import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmax_jax import calibration, evaluation, metrics
from softmax_jax.data import Data
from softmax_jax.model import Params

SETTINGS = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
FEW = calibration.equal_width_edges(5)


def slow(confidence, outcome, edges, weights):
    """Bin by bin and example by example, in Python floats."""
    bins = [[] for _ in edges[1:]]
    for c, y, s in zip(confidence, outcome, weights, strict=True):
        at = 0
        while at + 1 < len(bins) and c >= edges[at + 1]:
            at += 1
        if s > 0:
            bins[at].append((float(c), float(y), float(s)))
    total = sum(s for some in bins for _, _, s in some)
    found = {"expected": 0.0, "maximum": 0.0, "rms": 0.0, "debiased": 0.0}
    for some in filter(None, bins):
        weight = sum(s for _, _, s in some)
        gap = sum(s * (y - c) for c, y, s in some) / weight
        found["expected"] += weight / total * abs(gap)
        found["maximum"] = max(found["maximum"], abs(gap))
        found["rms"] += weight / total * gap**2
        pairs = [
            (s * t * (y - c) * (z - d), s * t)
            for i, (c, y, s) in enumerate(some)
            for j, (d, z, t) in enumerate(some)
            if i != j
        ]
        if pairs:
            found["debiased"] += (
                weight / total * sum(a for a, _ in pairs) / sum(b for _, b in pairs)
            )
    found["rms"] **= 0.5
    found["brier"] = sum(s * (y - c) ** 2 for some in bins for c, y, s in some) / total
    return found


def errors(bins):
    return {
        "expected": calibration.expected_error(bins),
        "maximum": calibration.maximum_error(bins),
        "rms": calibration.rms_error(bins),
        "debiased": calibration.debiased_squared_error(bins),
        "brier": calibration.brier(bins).score,
    }


def drawn(seed, n, levels=None):
    """Confidences, with ties if there are few levels, outcomes and weights, some of them zero."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(size=n)
    if levels:
        confidence = np.rint(confidence * levels) / levels  # with 0 and 1 among them
    outcome = (rng.uniform(size=n) < confidence**2).astype(float)
    return confidence, outcome, rng.integers(0, 4, size=n).astype(float)


@SETTINGS
@hypothesis.given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([1, 7, 30]),
    levels=st.sampled_from([None, 1, 4, 5]),
    weighted=st.booleans(),
    equal_mass=st.booleans(),
)
def test_errors_are_those_of_a_slow_reference(seed, n, levels, weighted, equal_mass):
    confidence, outcome, weights = drawn(seed, n, levels)
    weights = weights + (weights.sum() == 0) if weighted else np.ones(n)
    edges = calibration.equal_mass_edges(confidence, 5) if equal_mass else FEW
    with jax.enable_x64(True):
        bins = calibration.reliability(
            jnp.asarray(confidence), jnp.asarray(outcome), edges, jnp.asarray(weights)
        )
    expected = slow(confidence, outcome, edges, weights)
    for name, value in errors(bins).items():
        assert value == pytest.approx(expected[name], rel=1e-12, abs=1e-12), name


def test_float32_loses_little():
    confidence, outcome, weights = drawn(0, 3000)
    bins = calibration.reliability(
        *map(jnp.float32, (confidence, outcome)), FEW, jnp.float32(weights)
    )
    expected = slow(np.float32(confidence), outcome, np.float32(FEW), weights)
    for name in expected:
        assert errors(bins)[name] == pytest.approx(expected[name], rel=1e-5), name


def test_in_float32_a_million_rows_lose_little():
    c, y = calibrated(2**20)
    c = 0.94 + 0.06 * c
    y = (jax.random.uniform(jax.random.key(7), c.shape) < c).astype(jnp.float32)
    bins = calibration.reliability(c, y, jnp.float32(FEW), jnp.ones(len(c)))
    c, y = np.asarray(c, np.float64), np.asarray(y, np.float64)
    assert float(bins.weight.sum()) == 2**20
    assert calibration.expected_error(bins) == pytest.approx(abs((y - c).mean()), rel=1e-3)


def test_ids_of_a_small_type_are_not_cut_off():
    logits, labels = jnp.zeros((2, 300)), jnp.array([1, 43], jnp.uint8)
    _, outcome = calibration.class_wise(logits, labels)
    np.testing.assert_array_equal(outcome, np.eye(300)[[1, 43]])
    assert not calibration.of_class(logits, labels, 257)[1].any()


@pytest.mark.slow
def test_rows_without_weight_take_no_part_in_bands():
    c, y = calibrated(100)
    weights = (np.arange(100) % 2).astype(np.float32)
    holes = jnp.where(weights == 0, jnp.nan, c), jnp.where(weights == 0, jnp.nan, y)
    for band in (calibration.bootstrap_band, lambda *a: calibration.consistency(*a).band):
        ours, theirs = (
            band(jax.random.key(0), *some, FEW, jnp.asarray(weights)) for some in ((c, y), holes)
        )
        np.testing.assert_array_equal(ours.lower, theirs.lower)


def test_published_examples():
    # Of the documentation of torchmetrics: two bins and a probability for class 1, ...
    confidence = jnp.array([0.25, 0.25, 0.55, 0.75, 0.75])
    outcome = jnp.array([0, 0, 1, 1, 1])
    bins = calibration.reliability(confidence, outcome, calibration.equal_width_edges(2))
    assert calibration.expected_error(bins) == pytest.approx(0.2900, abs=5e-5)
    assert calibration.rms_error(bins) == pytest.approx(0.2918, abs=5e-5)
    assert calibration.maximum_error(bins) == pytest.approx(0.3167, abs=5e-5)
    # ... and three bins for three classes.
    p = jnp.array([[0.25, 0.20, 0.55], [0.55, 0.05, 0.40], [0.10, 0.30, 0.60], [0.90, 0.05, 0.05]])
    labelled = calibration.top_label(jnp.log(p), jnp.array([0, 1, 2, 0]))
    bins = calibration.reliability(*labelled, calibration.equal_width_edges(3))
    assert calibration.expected_error(bins) == pytest.approx(0.2000, abs=5e-5)
    assert calibration.rms_error(bins) == pytest.approx(0.2082, abs=5e-5)
    assert calibration.maximum_error(bins) == pytest.approx(0.2333, abs=5e-5)


@pytest.mark.parametrize("kind", ["top_label", "class_wise", "of_class"])
@pytest.mark.parametrize("soft", [False, True])
def test_streaming_equals_one_shot(kind, soft):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(500, 4)), jnp.float32)
    targets = rng.dirichlet(np.ones(4), 500) if soft else rng.integers(4, size=500)
    targets = jnp.asarray(targets, jnp.float32 if soft else jnp.int32)
    weights = jnp.asarray(rng.uniform(size=500), jnp.float32)
    pick = {
        "top_label": calibration.top_label,
        "class_wise": calibration.class_wise,
        "of_class": lambda o, y: calibration.of_class(o, y, 2),
    }[kind]
    edges = calibration.equal_mass_edges(pick(logits, targets)[0], 10)
    assert edges.shape == ((4, 11) if kind == "class_wise" else (11,))
    whole = calibration.reliability(*pick(logits, targets), edges, weights)
    parts = [
        calibration.reliability(
            *pick(logits[i : i + 100], targets[i : i + 100]), edges, weights[i : i + 100]
        )
        for i in range(0, 500, 100)
    ]
    merged = metrics.merge(
        parts[0], metrics.total(jax.tree.map(lambda *a: np.stack(a), *parts[1:]))
    )
    for ours, theirs in zip(merged, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for name, value in errors(merged).items():
        np.testing.assert_allclose(value, errors(whole)[name], rtol=1e-4, atol=1e-6)


def test_equal_mass_is_equal_without_ties():
    confidence = np.random.default_rng(0).permutation(np.linspace(0.2, 0.9, 100))
    edges = calibration.equal_mass_edges(confidence, 8)
    assert (edges[0], edges[-1]) == (0, 1)
    with jax.enable_x64(True):
        bins = calibration.reliability(jnp.asarray(confidence), jnp.ones(100), edges)
    assert sorted(np.asarray(bins.weight)) == [12] * 4 + [13] * 4


def test_ties_are_in_one_bin_and_their_other_bins_are_empty():
    confidence = jnp.array([0.5] * 9 + [0.7])
    edges = calibration.equal_mass_edges(confidence, 5)
    bins = calibration.reliability(confidence, jnp.ones(10), edges)
    assert np.asarray(bins.weight).tolist() == [0, 0, 0, 0, 10]
    assert calibration.expected_error(bins) == pytest.approx(0.48, abs=1e-6)


def test_zero_and_one_have_their_bins_and_edges_are_of_the_upper_one():
    confidence = jnp.array([0.0, 0.2, 0.2, 1.0, 1.0, 1.0])
    bins = calibration.reliability(confidence, jnp.ones(6), jnp.float32(FEW))
    assert np.asarray(bins.weight).tolist() == [1, 2, 0, 0, 3]


def test_nan_is_not_lost_and_rows_without_weight_are():
    confidence = jnp.array([0.5, jnp.nan])
    bins = jax.jit(lambda c: calibration.reliability(c, jnp.ones(2), FEW))(confidence)
    assert np.isnan(calibration.expected_error(bins))
    with pytest.raises(ValueError, match="confidence: row 1 has nan"):
        calibration.reliability(confidence, jnp.ones(2), FEW)
    bins = calibration.reliability(confidence, jnp.ones(2), FEW, jnp.array([1.0, 0.0]))
    assert calibration.expected_error(bins) == 0.5


def test_of_a_calibrated_model_the_debiased_error_is_zero_in_the_mean():
    key = jax.random.key(0)
    weights = jnp.tile(jnp.array([1.0, 2.0]), 100)

    @jax.jit
    def one(i):
        c_key, y_key = jax.random.split(jax.random.fold_in(key, i))
        c = jax.random.uniform(c_key, (200,))
        y = jax.random.uniform(y_key, (200,)) < c
        return calibration.reliability(c, y, jnp.float32(FEW), weights)

    bins = jax.lax.map(one, jnp.arange(4000))
    squares = calibration.debiased_squared_error(bins)
    standard_error = squares.std() / np.sqrt(len(squares))
    assert abs(squares.mean()) < standard_error
    # What it takes off is not nothing. Of |N(0, 1)| the other estimator leaves 2 - sqrt(2).
    assert (calibration.rms_error(bins) ** 2).mean() > 50 * standard_error
    plain, debiased = calibration.expected_error(bins), calibration.debiased_expected_error(bins)
    assert debiased.mean() / plain.mean() == pytest.approx(2 - np.sqrt(2), abs=0.02)


def test_of_a_model_that_is_not_calibrated_the_debiased_error_is_the_true_one():
    key = jax.random.key(1)

    @jax.jit
    def one(i):
        c = jnp.full(50, 0.5)
        y = jax.random.uniform(jax.random.fold_in(key, i), (50,)) < 0.8
        return calibration.reliability(c, y, jnp.float32(FEW))

    bins = jax.lax.map(one, jnp.arange(4000))
    squares = calibration.debiased_squared_error(bins)
    assert squares.mean() == pytest.approx(0.09, abs=3 * squares.std() / np.sqrt(4000))
    assert calibration.debiased_expected_error(bins).mean() == pytest.approx(0.3, abs=0.01)


@pytest.mark.slow
@SETTINGS
@hypothesis.given(seed=st.integers(0, 10**6), soft=st.booleans(), weighted=st.booleans())
def test_the_parts_of_the_brier_score_make_the_whole(seed, soft, weighted):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(40, 3))
    targets = rng.dirichlet(np.ones(3), 40) if soft else rng.integers(3, size=40)
    weights = rng.uniform(size=40) if weighted else np.ones(40)
    with jax.enable_x64(True):
        logits, targets, weights = map(jnp.asarray, (logits, targets, weights))
        bins = calibration.reliability(*calibration.class_wise(logits, targets), FEW, weights)
        score = metrics.summarize(metrics.measure(logits, targets, weights, k=1))["brier"]
    parts = calibration.brier(bins)
    assert parts.score == pytest.approx(score, rel=1e-12)
    whole = parts.reliability - parts.resolution + parts.uncertainty + parts.within_bins
    assert whole == pytest.approx(parts.score, rel=1e-12)
    assert min(parts.reliability, parts.resolution, parts.uncertainty) >= 0


def test_murphys_terms_of_a_forecast_of_few_values():
    # Of values that are each in a bin of their own nothing is hidden.
    confidence = jnp.array([0.1] * 5 + [0.5] * 4 + [0.9] * 3)
    outcome = jnp.array([0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0])
    parts = calibration.brier(calibration.reliability(confidence, outcome, FEW))
    assert parts.within_bins == pytest.approx(0, abs=1e-6)
    assert parts.uncertainty == pytest.approx(5 / 12 * 7 / 12, rel=1e-5)
    expected = (5 * 0.1**2 + 3 * (0.9 - 2 / 3) ** 2) / 12
    assert parts.reliability == pytest.approx(expected, rel=1e-5)


def calibrated(n=2000, seed=0, power=1.0):
    c_key, y_key = jax.random.split(jax.random.key(seed))
    c = jax.random.uniform(c_key, (n,))
    return c, (jax.random.uniform(y_key, (n,)) < c**power).astype(jnp.float32)


def test_p_values_of_calibrated_models_are_spread_evenly():
    values = [
        calibration.consistency(
            jax.random.key(9), *calibrated(300, seed), jnp.float32(FEW), draws=200
        ).p_value
        for seed in range(60)
    ]
    assert 0.35 < np.mean(values) < 0.65
    assert np.mean(np.array(values) <= 0.1) < 0.25
    assert np.mean(np.array(values) >= 0.5) > 0.3


def test_a_model_that_is_not_calibrated_is_found_out():
    found = calibration.consistency(jax.random.key(9), *calibrated(power=1.5), jnp.float32(FEW))
    assert found.p_value == pytest.approx(1 / 1001)


def test_the_band_of_consistency_holds_what_is_calibrated():
    c, y = calibrated()
    edges = jnp.float32(FEW)
    lower, upper = calibration.consistency(jax.random.key(0), c, y, edges, level=0.99).band
    bins = calibration.reliability(c, y, edges)
    mean = np.asarray(bins.outcome / bins.weight)
    assert (lower <= mean).all()
    assert (mean <= upper).all()
    # Of n outcomes of probability c: 2.58 standard deviations to each side.
    deviation = np.sqrt(np.asarray(bins.confidence - bins.confidence_squared)) / bins.weight
    np.testing.assert_allclose(upper - lower, 2 * 2.58 * deviation, rtol=0.15)


def test_the_bootstrap_band_is_as_wide_as_the_spread_of_means():
    c, y = calibrated()
    edges = jnp.float32(FEW)
    lower, upper = calibration.bootstrap_band(jax.random.key(0), c, y, edges, draws=2000)
    bins = calibration.reliability(c, y, edges)
    mean = np.asarray(bins.outcome / bins.weight)
    deviation = np.sqrt(mean * (1 - mean) / bins.weight)
    np.testing.assert_allclose(upper - lower, 2 * 1.96 * deviation, rtol=0.1)
    np.testing.assert_allclose((upper + lower) / 2, mean, atol=0.01)


@pytest.mark.slow
def test_bands_of_empty_bins_are_nan():
    c, y = jnp.full(20, 0.5), jnp.ones(20)
    for band in (
        calibration.bootstrap_band(jax.random.key(0), c, y, FEW, draws=10),
        calibration.consistency(jax.random.key(0), c, y, FEW, draws=10).band,
    ):
        assert np.isnan(band.lower).tolist() == [True, True, False, True, True]


def test_reliability_compiles_once(count_compilations):
    c, y = calibrated(64)
    calibration.reliability(c, y, jnp.float32(FEW))
    others = 1 - c, y, jnp.float32(FEW) ** 2
    assert count_compilations(lambda: calibration.reliability(*others)) == 0


def test_top_label_is_what_evaluate_counts():
    rng = np.random.default_rng(0)
    params = Params(*(jnp.asarray(a, jnp.float32) for a in (rng.normal(size=(3, 4)), np.zeros(4))))
    x, labels = (
        jnp.asarray(rng.normal(size=(50, 3)), jnp.float32),
        jnp.asarray(rng.integers(4, size=50)),
    )
    confidence, outcome = calibration.top_label(x @ params.w, labels)
    scores = metrics.summarize(evaluation.evaluate(params, Data(x, labels)))
    assert float(outcome.mean()) == pytest.approx(scores["accuracy"], rel=1e-6)
    assert float(confidence.min()) >= 1 / 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, y: calibration.equal_width_edges(0), "bins: 0; expected an integer"),
        (lambda c, y: calibration.equal_mass_edges(c, 0), "bins: 0; expected an integer"),
        (lambda c, y: calibration.equal_mass_edges(c[:0], 3), "no confidences"),
        (lambda c, y: calibration.reliability(c, y[1:], FEW), "both the same"),
        (lambda c, y: calibration.reliability(c, y, FEW, jnp.ones(3)), "one weight each"),
        (
            lambda c, y: calibration.expected_error(
                calibration.reliability(c, y, FEW, jnp.zeros(64))
            ),
            "total weight of zero",
        ),
        (lambda c, y: calibration.consistency(jax.random.key(0), c, y / 2, FEW), "no draws"),
        (
            lambda c, y: calibration.bootstrap_band(jax.random.key(0), c, y, FEW, level=1.0),
            "level must be",
        ),
        (
            lambda c, y: calibration.consistency(jax.random.key(0), c.at[0].set(jnp.nan), y, FEW),
            "confidence: row 0 has nan",
        ),
        (
            lambda c, y: calibration.bootstrap_band(jax.random.key(0), c, y, FEW, jnp.ones(3)),
            "for 64 rows",
        ),
        (
            lambda c, y: calibration.bootstrap_band(jax.random.key(0), c, y, FEW, draws=0),
            "draws: 0; expected an integer",
        ),
        (lambda c, y: calibration.reliability(c, y, FEW[::-1]), "expected to rise"),
        (lambda c, y: calibration.reliability(c, y, 100 * FEW), "rise from 0 to 1"),
        (
            lambda c, y: calibration.of_class(jnp.ones((2, 3)), [0, 1], 0.5),
            "j: 0.5; expected an integer",
        ),
        (
            lambda c, y: calibration.consistency(jax.random.key(0), c, y, FEW, draws=9.5),
            "draws: 9.5; expected an integer",
        ),
        (lambda c, y: calibration.equal_width_edges(2.5), "bins: 2.5; expected an integer"),
        (lambda c, y: calibration.reliability(c, y, [0.5]), r"edges of shape \(1,\)"),
        (lambda c, y: calibration.reliability(c, y, FEW[None]), r"edges of shape \(1, 6\)"),
        (lambda c, y: calibration.equal_mass_edges([0.3, np.nan], 2), "confidence: row 1 has nan"),
        (lambda c, y: calibration.of_class(jnp.ones((2, 3)), jnp.array([0, 1]), 3), "no class 3"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*calibrated(64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": [0.2, 3.25, -1.0, 0.5]}, "confidence: row 1 has 3.25.*take the softmax"),
        ({"confidence": [20, 31, 0, 50]}, "confidence: row 0 has 20.*percents"),
        ({"confidence": [0.2, 0.3, -0.1, 0.5]}, "confidence: row 2 has -0.1"),
        ({"confidence": [0.2, 0.3, np.inf, 0.5]}, "confidence: row 2 has inf"),
        ({"outcome": [0, 1, 7, 1]}, "outcome: row 2 has 7, which is no probability"),
        ({"outcome": [0, 1, np.nan, 1]}, "outcome: row 2 has nan"),
        ({"weights": [1, 1, -2, 1]}, "weights: "),
        ({"weights": [1, np.nan, 2, 1]}, "weights: "),
        ({"weights": [1, np.inf, 2, 1]}, "weights: "),
        ({"confidence": ["a", "b", "c", "d"]}, "confidence: type"),
    ],
)
@pytest.mark.parametrize("function", ["reliability", "consistency", "bootstrap_band"])
def test_what_is_no_probability_is_refused(function, change, message):
    arguments = {"confidence": [0.2, 0.3, 0.1, 0.5], "outcome": [0, 1, 0, 1], "weights": None}
    key = () if function == "reliability" else (jax.random.key(0),)
    with pytest.raises(ValueError, match=message):
        getattr(calibration, function)(*key, **(arguments | change), edges=FEW)


@pytest.mark.parametrize("function", ["top_label", "class_wise"])
@pytest.mark.parametrize("row", [[50, 30, 20], [1, 1, 0], [1.5, -0.5, 0], [np.nan, 0.5, 0.5]])
def test_targets_that_are_no_probabilities_are_refused(function, row):
    targets = np.array([[1, 0, 0], row], float)
    with pytest.raises(ValueError, match="the targets of row 1 are not probabilities"):
        getattr(calibration, function)(jnp.zeros((2, 3)), targets)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_probabilities_are_taken_as_their_type_rounds_them(dtype):
    above = 1 + jnp.finfo(dtype).eps
    bins = calibration.reliability(jnp.array([above, 0.25], dtype), jnp.ones(2, dtype), FEW)
    np.testing.assert_array_equal(bins.weight, [0, 1, 0, 0, 1])
    assert bins.weight.dtype == jnp.float32


@pytest.mark.parametrize(
    "given", [list, lambda a: a.astype(">f8"), np.longdouble, np.float16, jnp.bfloat16]
)
def test_confidences_may_be_of_any_type(given):
    confidence, outcome = np.array([0.25, 0.75, 0.5, 1]), np.array([0, 1, 1, 1])
    expected = calibration.reliability(confidence, outcome, FEW)
    found = calibration.reliability(given(confidence), given(outcome), FEW, given(np.ones(4)))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    edges = calibration.equal_mass_edges(given(confidence), 2)
    np.testing.assert_array_equal(edges, [0, 0.75, 1])
