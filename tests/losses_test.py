from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from softmax_jax import head, losses, model
from softmax_jax.losses import cross_entropy

pytestmark = pytest.mark.exact

INF = np.inf


def reference(logits, targets, label_smoothing=0.0):
    """Cross-entropy in float64 NumPy."""
    logits = np.asarray(logits, np.float64)
    q = logits.shape[-1]
    y = np.asarray(targets)
    y = np.eye(q)[y] if y.ndim < logits.ndim else y.astype(np.float64)
    y = (1 - label_smoothing) * y + label_smoothing / q
    return -np.sum(y * scipy.special.log_softmax(logits, axis=-1), axis=-1)


@pytest.fixture
def logits():
    return 3 * jax.random.normal(jax.random.key(0), (8, 5))


@pytest.fixture
def labels():
    return jax.random.randint(jax.random.key(1), (8,), 0, 5)


@pytest.fixture
def soft():
    return jax.nn.softmax(jax.random.normal(jax.random.key(2), (8, 5)))


@pytest.fixture(params=["labels", "soft"])
def targets(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
def test_value(logits, targets, label_smoothing):
    actual = cross_entropy(logits, targets, label_smoothing=label_smoothing)
    expected = reference(logits, targets, label_smoothing)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_one_hot_targets_are_the_special_case_of_labels(logits, labels):
    np.testing.assert_array_equal(
        cross_entropy(logits, labels), cross_entropy(logits, jax.nn.one_hot(labels, 5))
    )


def test_a_textbook_target():
    loss = cross_entropy(jnp.zeros(3), jnp.array([0.1, 0.2, 0.7]))
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-7)


def test_soft_losses_are_accurate_at_a_common_offset():
    rng = np.random.default_rng(0)
    shifted = (3 * rng.normal(size=(1000, 10)) + 1e6).astype(np.float32)
    y = rng.dirichlet(np.ones(10), size=1000).astype(np.float32)
    np.testing.assert_allclose(
        cross_entropy(jnp.asarray(shifted), jnp.asarray(y)),
        # Targets rounded to float32 do not quite sum to one, hence the product form.
        -np.sum(y * scipy.special.log_softmax(shifted.astype(np.float64), -1), -1),
        rtol=4e-7,
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_widened(logits, targets, dtype):
    narrow = logits.astype(dtype)
    loss = cross_entropy(narrow, targets)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, cross_entropy(narrow.astype(jnp.float32), targets))


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(jax.jit, id="jit"),
        pytest.param(jax.vmap, id="vmap"),
        pytest.param(lambda f: jax.jit(jax.vmap(f)), id="jit of vmap"),
    ],
)
@pytest.mark.parametrize(
    "function", [cross_entropy, losses.cross_entropy_gradient], ids=["loss", "gradient"]
)
def test_transformations_change_nothing_but_rounding(logits, targets, function, transform):
    np.testing.assert_allclose(
        transform(function)(logits, targets), function(logits, targets), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_closed_gradient_is_softmax_minus_target(logits, targets, label_smoothing):
    f = partial(cross_entropy, label_smoothing=label_smoothing)
    closed = losses.cross_entropy_gradient(logits, targets, label_smoothing=label_smoothing)
    np.testing.assert_allclose(jax.vmap(jax.grad(f))(logits, targets), closed, atol=3e-7)
    y = jax.nn.one_hot(targets, 5) if targets.ndim == 1 else targets
    y = (1 - label_smoothing) * y + label_smoothing / 5
    np.testing.assert_allclose(closed, jax.nn.softmax(logits) - y, atol=3e-7)


def test_gradient_for_targets_that_do_not_sum_to_one(logits, soft):
    automatic = jax.vmap(jax.grad(cross_entropy))(logits, 3 * soft)
    np.testing.assert_allclose(
        losses.cross_entropy_gradient(logits, 3 * soft), automatic, atol=1e-6
    )


def test_closed_hessian(logits, targets):
    automatic = jax.vmap(jax.hessian(cross_entropy))(logits, targets)
    np.testing.assert_allclose(losses.cross_entropy_hessian(logits), automatic, atol=3e-7)


def test_the_hessian_is_positive_semi_definite_with_the_offset_in_its_kernel(logits):
    hessian = np.asarray(losses.cross_entropy_hessian(logits))
    assert np.linalg.eigvalsh(hessian).min() > -1e-6
    np.testing.assert_allclose(hessian.sum(axis=-1), 0, atol=1e-6)


@pytest.mark.slow
def test_every_order_of_modes_gives_the_same_second_derivative(logits, labels):
    o, y = logits[0], labels[0]
    hessians = [
        outer(inner(cross_entropy))(o, y)
        for outer in (jax.jacfwd, jax.jacrev)
        for inner in (jax.jacfwd, jax.jacrev)
    ]
    for hessian in hessians[1:]:
        np.testing.assert_allclose(hessian, hessians[0], atol=1e-6)


def test_the_derivative_in_the_targets_is_the_surprisal(logits, soft):
    slope = jax.vmap(jax.grad(cross_entropy, argnums=1))(logits, soft)
    np.testing.assert_allclose(slope, -jax.nn.log_softmax(logits), rtol=2e-6)


@pytest.mark.slow
def test_derivatives_agree_with_finite_differences(logits, soft):
    with jax.enable_x64(True):
        check_grads(
            cross_entropy,
            (jnp.asarray(logits, jnp.float64), jnp.asarray(soft, jnp.float64)),
            order=2,
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("logits", "target", "expected"),
    [
        ([1e30, -1e30, 0.0], 0, 0.0),
        ([1e30, -1e30, 0.0], 1, 2e30),
        ([-1e30, -1e30, -1e30], 2, np.log(3)),
        ([3e38, -3e38, 0.0], 1, INF),
        ([0.0, 0.0, -INF], 1, np.log(2)),
        ([0.0, 0.0, -INF], 2, INF),
        ([0.0, -INF, -INF], 0, 0.0),
        ([0.0, 0.0, -INF], [0.5, 0.5, 0.0], np.log(2)),
        ([0.0, 0.0, -INF], [0.5, 0.0, 0.5], INF),
        ([1e30, 0.0, -INF], [1.0, 0.0, 0.0], 0.0),
    ],
)
def test_extreme_logits_give_the_right_value_and_finite_gradients(logits, target, expected):
    o = jnp.array(logits, jnp.float32)
    y = jnp.array(target)
    np.testing.assert_allclose(cross_entropy(o, y), expected, rtol=1e-6)
    for gradient in (jax.grad(cross_entropy), jax.jit(jax.grad(cross_entropy))):
        assert np.isfinite(gradient(o, y)).all()
    assert np.isfinite(losses.cross_entropy_gradient(o, y)).all()
    assert np.isfinite(jax.hessian(cross_entropy)(o, y)).all()
    assert np.isfinite(jax.jvp(lambda o: cross_entropy(o, y), (o,), (jnp.ones(3),))[1])


def test_label_smoothing_puts_infinite_loss_on_an_impossible_class():
    logits = jnp.array([0.0, 0.0, -INF])
    assert cross_entropy(logits, jnp.array(0), label_smoothing=0.1) == INF
    traced = jax.jit(lambda e: cross_entropy(logits, jnp.array(0), label_smoothing=e))
    np.testing.assert_allclose(traced(0.0), np.log(2), rtol=1e-7)


@pytest.mark.parametrize("bad", [INF, np.nan])
def test_logits_without_a_softmax_give_nan(bad):
    assert np.isnan(cross_entropy(jnp.array([bad, 0.0]), jnp.array(1)))


def test_one_class_costs_nothing():
    assert cross_entropy(jnp.array([5.0]), jnp.array(0)) == 0


@settings(deadline=None, max_examples=30)
@given(st.floats(-100, 100, width=32), st.integers(0, 2**32 - 1))
def test_a_common_offset_that_is_representable_changes_nothing(offset, seed):
    logits = np.random.default_rng(seed).integers(-20, 20, size=6).astype(np.float32)
    offset = np.float32(round(offset))
    np.testing.assert_array_equal(
        cross_entropy(jnp.asarray(logits), jnp.array(2)),
        cross_entropy(jnp.asarray(logits + offset), jnp.array(2)),
    )


def test_gibbs_inequality(logits, soft):
    own = cross_entropy(jnp.log(soft), soft)
    assert (cross_entropy(logits, soft) >= own).all()


@pytest.mark.parametrize("label", [-1, 5, 100])
def test_a_label_out_of_range_is_an_error_outside_and_nan_inside_a_transformation(logits, label):
    labels = jnp.array([0, label, 1], jnp.int32)
    with pytest.raises(ValueError, match=f"row 1 has class id {label}, but there are 5"):
        cross_entropy(logits[:3], labels)
    loss = jax.jit(cross_entropy)(logits[:3], labels)
    np.testing.assert_array_equal(np.isnan(loss), [False, True, False])
    gradient = jax.jit(jax.vmap(jax.grad(cross_entropy)))(logits[:3], labels)
    np.testing.assert_array_equal(np.isnan(gradient).all(axis=1), [False, True, False])
    np.testing.assert_array_equal(np.isnan(gradient).any(axis=1), [False, True, False])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
@pytest.mark.parametrize("q", [127, 200, 256, 300])
def test_ids_of_every_integer_type(dtype, q):
    largest = min(q - 1, np.iinfo(dtype).max)
    labels = jnp.array([0, largest], dtype)
    np.testing.assert_allclose(cross_entropy(jnp.zeros((2, q)), labels), np.log(q), rtol=1e-6)
    gradient = losses.cross_entropy_gradient(jnp.zeros((2, q)), labels)
    np.testing.assert_allclose(gradient[1, largest], 1 / q - 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((7,), jnp.int32, "fit logits"),
        ((8, 4), jnp.float32, "fit logits"),
        ((8,), jnp.float32, "class ids of type float32; expected integers"),
        ((8, 5, 1), jnp.float32, "fit logits"),
    ],
)
def test_targets_that_do_not_fit_are_refused(logits, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(logits, jnp.zeros(shape, dtype))


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.1, np.nan])
def test_label_smoothing_out_of_range_is_refused(logits, labels, label_smoothing):
    with pytest.raises(ValueError, match="label_smoothing"):
        cross_entropy(logits, labels, label_smoothing=label_smoothing)


class TestObjective:
    @pytest.fixture
    def params(self):
        return model.init(jax.random.key(3), num_features=4, num_classes=5, scale=1.0)

    @pytest.fixture
    def x(self):
        return jax.random.normal(jax.random.key(4), (8, 4))

    def test_value(self, params, x, targets):
        weights = jnp.arange(1.0, 9.0)
        value = losses.objective(params, x, targets, weights=weights, l2=0.3, l1=0.2)
        w = np.asarray(params.w, np.float64)
        loss = reference(np.asarray(x, np.float64) @ w, targets)
        mean = np.sum(np.arange(1, 9) * loss) / 36
        expected = mean + 0.15 * np.sum(w**2) + 0.2 * np.sum(np.abs(w))
        np.testing.assert_allclose(value, expected, rtol=1e-6)

    def test_it_is_minus_the_log_likelihood_per_example(self, params, x, labels):
        p = model.probabilities(params, x)
        likelihood = np.prod(np.take_along_axis(np.asarray(p, np.float64), labels[:, None], 1))
        value = losses.objective(params, x, labels)
        np.testing.assert_allclose(8 * value, -np.log(likelihood), rtol=1e-5)

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    def test_closed_gradient(self, params, x, targets, weighted, label_smoothing):
        options = {
            "weights": jnp.arange(8.0) if weighted else None,
            "l2": 0.3,
            "l1": 0.2,
            "label_smoothing": label_smoothing,
        }
        automatic = jax.grad(losses.objective)(params, x, targets, **options)
        closed = losses.objective_gradient(params, x, targets, **options)
        for a, c in zip(automatic, closed, strict=True):
            np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)

    def test_a_weight_of_two_is_the_example_twice(self, params, x, labels):
        twice = losses.objective(
            params, jnp.concatenate([x, x[:1]]), jnp.concatenate([labels, labels[:1]])
        )
        weighted = losses.objective(params, x, labels, weights=jnp.ones(8).at[0].set(2))
        np.testing.assert_allclose(weighted, twice, rtol=1e-6)

    def test_no_weight_at_all_leaves_the_penalty(self, params, x, labels):
        options = {"weights": jnp.zeros(8), "l2": 0.5}
        value = losses.objective(params, x, labels, **options)
        np.testing.assert_allclose(value, 0.25 * np.sum(np.square(params.w)), rtol=1e-6)
        gradient = losses.objective_gradient(params, x, labels, **options)
        np.testing.assert_allclose(gradient.w, 0.5 * params.w, rtol=1e-6)
        np.testing.assert_array_equal(gradient.b, 0)

    @pytest.mark.parametrize("shape", [(), (1,), (8, 1), (7,)])
    def test_weights_that_do_not_fit_are_refused(self, params, x, labels, shape):
        with pytest.raises(ValueError, match="one weight each"):
            losses.objective(params, x, labels, weights=jnp.ones(shape))
        with pytest.raises(ValueError, match="one weight each"):
            losses.objective_gradient(params, x, labels, weights=jnp.ones(shape))

    @pytest.mark.slow
    def test_many_weights_of_a_narrow_type_are_summed_in_float32(self, params):
        n = 70_000
        x, labels = jnp.ones((n, 4)), jnp.zeros(n, jnp.int32)
        narrow = losses.objective_gradient(params, x, labels, weights=jnp.ones(n, jnp.float16))
        plain = losses.objective_gradient(params, x, labels)
        np.testing.assert_allclose(narrow.w, plain.w, rtol=1e-5)

    def test_no_rows_are_refused(self, params):
        with pytest.raises(ValueError, match="no examples"):
            losses.objective(params, jnp.ones((0, 4)), jnp.zeros(0, jnp.int32))

    def test_the_bias_is_not_penalised(self, params, x, labels):
        moved = params._replace(b=params.b + 7)
        difference = losses.objective(moved, x, labels, l2=1.0, l1=1.0) - losses.objective(
            params, x, labels, l2=1.0, l1=1.0
        )
        np.testing.assert_allclose(difference, 0, atol=2e-6)

    def test_the_gradient_has_the_types_of_the_parameters(self, x, labels):
        params = model.init(jax.random.key(0), num_features=4, num_classes=5, dtype=jnp.bfloat16)
        gradient = losses.objective_gradient(params, x.astype(jnp.bfloat16), labels, l2=0.1)
        assert gradient.w.dtype == gradient.b.dtype == jnp.bfloat16

    def test_convexity_along_a_line(self, params, x, targets):
        other = model.init(jax.random.key(9), num_features=4, num_classes=5, scale=2.0)

        def at(t):
            return losses.objective(
                jax.tree.map(lambda a, b: (1 - t) * a + t * b, params, other), x, targets
            )

        assert at(0.5) <= 0.5 * (at(0.0) + at(1.0)) + 1e-6


def numpy_loss(logits, targets, v, ignore, epsilon, z, cap, where):
    """Row by row in float64, as torch has it: losses, and the weights of a mean."""
    values, weights = [], []
    for o, y, keep in zip(logits.astype(np.float64), targets, where, strict=True):
        o = cap * np.tanh(o / cap) if cap else o
        target = np.zeros(len(o)) if np.ndim(y) == 0 else np.array(y, np.float64)
        if np.ndim(y) == 0:
            if y == ignore:
                values.append(0.0)
                weights.append(0.0)
                continue
            target[y] = 1
        o, target, v_kept = o[keep], target[keep], v[keep]
        lse = np.log(np.sum(np.exp(o - o.max()))) + o.max()
        smoothed = (1 - epsilon) * target + epsilon / len(o)
        values.append(np.sum(v_kept * smoothed * (lse - o)) + z * lse**2)
        weights.append(np.sum(v_kept * target))
    return np.array(values), np.array(weights)


class TestVocabulary:
    """The options of the head, for logits in hand."""

    V = np.array([0.5, 2.0, 1.0, 0.0, 3.0])

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"ignore_id": -100},
            {"class_weights": V},
            {"label_smoothing": 1.0},
            {"soft_cap": 2.5},
            {"z_loss": 0.01},
            {"where": np.arange(5) != 3},
            {"class_weights": V, "ignore_id": 2, "label_smoothing": 0.3, "z_loss": 0.1},
            {
                "class_weights": V,
                "label_smoothing": 0.2,
                "z_loss": 0.1,
                "soft_cap": 5.0,
                "where": np.arange(5) != 3,
            },
        ],
    )
    def test_value_and_reductions(self, logits, soft, options):
        labels = np.array([0, 1, 2, 4, 2, 0, 1, 4])
        if options.get("ignore_id") == -100:
            labels[3] = -100
        s = np.arange(1.0, 9)
        where = np.broadcast_to(options.get("where", np.ones(5, bool)), (8, 5))
        targets_of_both = [labels] if "ignore_id" in options else [labels, np.asarray(soft)]
        for targets in targets_of_both:
            values, weights = numpy_loss(
                np.asarray(logits),
                targets,
                options.get("class_weights", np.ones(5)),
                options.get("ignore_id"),
                options.get("label_smoothing", 0.0),
                options.get("z_loss", 0.0),
                options.get("soft_cap"),
                where,
            )
            expected = {
                "none": s * values,
                "sum": np.sum(s * values),
                "mean": np.sum(s * values) / np.sum(s * weights),
            }
            for reduction, value in expected.items():
                f = partial(cross_entropy, reduction=reduction, **options)
                f = jax.jit(f) if len(options) > 4 and reduction == "mean" else f
                actual = f(logits, targets, weights=s)
                np.testing.assert_allclose(actual, value, rtol=2e-6, err_msg=reduction)

    @pytest.mark.parametrize("axis", [0, -2, -1])
    def test_axis_of_the_classes(self, axis):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(3, 4, 5))
        where = rng.random((3, 4, 5)) < 0.8
        soft = rng.dirichlet(np.ones(5), size=(3, 4))
        labels = where.argmax(axis=2)
        moved = [np.moveaxis(a, -1, axis) for a in (logits, soft, where)]
        for targets, as_given in ((soft, moved[1]), (labels, labels)):
            actual = cross_entropy(moved[0], as_given, where=moved[2], axis=axis)
            expected = cross_entropy(logits, targets, where=where)
            np.testing.assert_allclose(actual, expected, rtol=1e-6)
            alone = cross_entropy(
                logits[1, 2][where[1, 2]],
                targets[1, 2][where[1, 2]] if targets.ndim == 3 else 0,
            )
            np.testing.assert_allclose(actual[1, 2], alone, rtol=1e-6)

    def test_an_id_that_is_cut_off_is_out_of_range(self, logits, labels):
        where = jnp.arange(5) != labels[0]
        loss = cross_entropy(logits, labels, where=where)
        np.testing.assert_array_equal(np.isnan(loss), labels == labels[0])

    @pytest.mark.slow
    def test_gradients_are_those_of_the_head(self, logits):
        labels = np.array([[0, 1, 2, 4, -1, 0, 1, 4]]).T
        options = {
            "class_weights": jnp.asarray(self.V, jnp.float32),
            "ignore_id": -1,
            "label_smoothing": 0.2,
            "z_loss": 0.05,
            "soft_cap": 4.0,
            "temperature": 0.7,
            "weights": jnp.arange(8.0),
        }

        def by_head(o):
            out = head.linear_cross_entropy(o, jnp.eye(5), None, labels[:, 0], **options)
            return jnp.sum(out.loss)

        def in_hand(o):
            return cross_entropy(o, labels, reduction="sum", **options)

        np.testing.assert_allclose(in_hand(logits), by_head(logits), rtol=2e-6)
        gradient = jax.grad(in_hand)(logits)
        np.testing.assert_allclose(gradient, jax.grad(by_head)(logits), atol=2e-5)
        assert not gradient[4].any()

    def test_a_temperature_divides_the_logits(self, logits, labels):
        def at(temperature, bias=0.0):
            return cross_entropy(logits + bias, labels, temperature=temperature, reduction="mean")

        for temperature in (0.5, jnp.float32(3.0)):
            expected = cross_entropy(logits / temperature, labels, reduction="mean")
            np.testing.assert_allclose(at(temperature), expected, rtol=1e-6)

        def by_head(temperature):
            return head.linear_cross_entropy(
                logits, jnp.eye(5), None, labels, temperature=temperature, reduction="mean"
            ).loss

        slopes = (jax.grad(f)(jnp.float32(0.7)) for f in (at, by_head))
        np.testing.assert_allclose(*slopes, rtol=1e-5)
        # An impossible class is as impossible at any temperature.
        impossible = jnp.where(jnp.arange(5) == 4, -INF, 0)[None]
        assert np.isfinite(jax.grad(lambda t: at(t, impossible))(jnp.float32(0.7)))

    def test_all_rows_ignored_have_a_mean_of_zero(self, logits):
        labels = np.full(8, -1)
        assert cross_entropy(logits, labels, ignore_id=-1, reduction="mean") == 0
        gradient = jax.grad(partial(cross_entropy, ignore_id=-1, reduction="mean"))(logits, labels)
        assert not gradient.any()

    def test_no_rows_have_no_losses(self):
        assert cross_entropy(jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32)).shape == (0,)

    def test_impossible_classes_stay_so_under_a_cap(self):
        loss = cross_entropy(jnp.array([0.0, 0.0, -INF]), jnp.array(1), soft_cap=1.0)
        np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"reduction": "average"}, "choose one of none, sum, mean, got 'average'"),
            ({"soft_cap": 0.0}, "soft_cap must be positive"),
            ({"class_weights": np.ones(4)}, r"class_weights of shape \(4,\) for 5 classes"),
            ({"weights": np.ones(7)}, "one weight each"),
            ({"label_smoothing": 1.1}, "label_smoothing must lie in"),
            ({"ignore_id": True}, "ignore_id: True; expected a class id"),
            ({"ignore_id": 1.0}, "ignore_id: 1.0; expected a class id"),
            ({"axis": 1.5}, r"axis: 1.5; expected an integer in \[-2, 2\)"),
            ({"axis": 2}, r"axis: 2; expected an integer in \[-2, 2\)"),
            ({"where": np.ones(7, bool)}, r"where: shape \(7,\); expected one that broadcasts"),
        ],
    )
    def test_options_that_do_not_fit_are_refused(self, logits, labels, options, message):
        with pytest.raises(ValueError, match=message):
            cross_entropy(logits, labels, **options)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.uint32, np.int32])
    @pytest.mark.parametrize("ignore_id", [-1, 1, 2**32])
    def test_only_the_id_itself_is_ignored_whatever_its_type(self, dtype, ignore_id):
        # Cut to so many bits, the last one is -1.
        ids = np.array([0, 1, np.iinfo(dtype).max], dtype)
        loss = jax.jit(partial(cross_entropy, ignore_id=ignore_id))(np.zeros((3, 3)), ids)
        expected = [np.log(3), 0 if ignore_id == 1 else np.log(3), np.nan]
        np.testing.assert_allclose(loss, expected, rtol=1e-6)

    def test_probabilities_have_no_ignored_id(self, logits, soft):
        with pytest.raises(ValueError, match="ignore_id is a class id"):
            cross_entropy(logits, soft, ignore_id=-1)


@pytest.mark.parametrize("function", [lambda f: f, jax.jit])
def test_impossible_classes_make_no_nan_on_the_way(function):
    logits = jnp.array([[0.0, 1.0, -INF], [-INF, 2.0, -INF]])
    labels = jnp.array([1, 1])
    with jax.debug_nans(True):
        loss = function(cross_entropy)(logits, labels)
        gradient = function(jax.grad(lambda o: jnp.sum(cross_entropy(o, labels))))(logits)
        closed = losses.cross_entropy_gradient(logits, labels)
    np.testing.assert_allclose(loss, [np.log1p(np.exp(-1)), 0], rtol=1e-6)
    np.testing.assert_allclose(gradient, closed, atol=1e-7)
