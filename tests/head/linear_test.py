"""The head held to the same loss with all its logits, in float64."""

import doctest
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from softmax_jax import head, losses, model
from softmax_jax.head import SparseTargets, linear_cross_entropy
from softmax_jax.model import Params

DIFFERENTIABLE = ("nats", "logsumexp", "entropy", "collision")


def reference(x, w, b, temperature, y, *, uniform, weights, smoothing, z, cap, k):
    """All that is differentiable, from all the logits, in float64; ``y``: ``[n, v]``."""
    o = x @ w
    if b is not None:
        o = o + b[None]
    if cap is not None:
        o = cap * jnp.tanh(o / cap)  # biases are finite here
    o = o / temperature
    log_p = jax.nn.log_softmax(o)
    p, logsumexp = jnp.exp(log_p), jax.nn.logsumexp(o, axis=1)
    nats = -jnp.sum(y * log_p, axis=1)
    loss = (1 - smoothing) * nats - smoothing * log_p @ uniform + z * logsumexp**2
    top = jax.lax.top_k(o, k)[0]
    entropy = -jnp.sum(p * log_p, axis=1)
    return weights * loss, nats, logsumexp, entropy, jnp.sum(p * p, axis=1), top


@st.composite
def cases(draw):
    """Sizes, options and arrays; those with block sizes are often prime or one off."""
    n, d = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    v = draw(st.sampled_from([1, 2, 5, 7, 12, 13]))
    return {
        "sizes": (n, d, v),
        "rows": draw(st.sampled_from([None, 1, 2, 3, 7])),
        "classes": draw(st.sampled_from([None, 1, 3, 4, 6, 12])),
        "strategy": draw(st.sampled_from(["recompute", "fused"])),
        "dtype": draw(st.sampled_from(["float32", "bfloat16"])),
        "targets": draw(st.sampled_from(["ids", "dense", "sparse"])),
        "weights": draw(st.booleans()),
        "class_weights": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "smoothing": draw(st.sampled_from([0.0, 0.1])),
        "z": draw(st.sampled_from([0.0, 0.01])),
        "cap": draw(st.sampled_from([None, 2.0, 30.0])),
        "temperature": draw(st.sampled_from([1.0, 0.7])),
        "seed": draw(st.integers(0, 2**31)),
    }


def made(case):
    """``inputs``, as ``(x, w, b, temperature)``, targets, keyword arguments, and the reference."""
    n, d, v = case["sizes"]
    rng = np.random.default_rng(case["seed"])
    dtype = jnp.dtype(case["dtype"])
    inputs = (
        jnp.asarray(rng.normal(size=(n, d)), dtype),
        jnp.asarray(rng.normal(size=(d, v)), dtype),
        jnp.asarray(rng.normal(size=v), dtype) if case["bias"] else None,
        jnp.float32(case["temperature"]),
    )
    if case["targets"] == "ids":
        targets = rng.integers(v, size=n)
        y = np.eye(v)[targets]
    elif case["targets"] == "dense":
        targets = y = rng.dirichlet(np.full(v, 0.5), size=n).astype(np.float32)
    else:
        ids = rng.integers(v, size=(n, 3))
        weights = rng.uniform(size=(n, 3)).astype(np.float32)
        targets = SparseTargets(jnp.asarray(ids), jnp.asarray(weights))
        y = np.zeros((n, v))
        np.add.at(y, (np.arange(n)[:, None], ids), weights)
    weights = rng.integers(0, 3, size=n).astype(np.float32) if case["weights"] else np.ones(n)
    factors = rng.uniform(size=v).astype(np.float32) if case["class_weights"] else np.ones(v)
    options = {
        "weights": jnp.asarray(weights, jnp.float32) if case["weights"] else None,
        "class_weights": jnp.asarray(factors, jnp.float32) if case["class_weights"] else None,
        "label_smoothing": case["smoothing"],
        "z_loss": case["z"],
        "soft_cap": case["cap"],
        "strategy": case["strategy"],
        "block_rows": case["rows"],
        "block_classes": case["classes"],
        "k": 3,
    }
    expected = functools.partial(
        reference,
        y=np.float64(y) * factors,
        uniform=np.float64(factors) / v,
        weights=np.float64(weights),
        smoothing=case["smoothing"],
        z=case["z"],
        cap=case["cap"],
        k=min(3, v),
    )
    return inputs, targets, options, expected


def ours(inputs, targets, options):
    """Returns losses and statistics in the order of `reference`."""
    x, w, b, temperature = inputs
    extras = (*DIFFERENTIABLE, "top_k")
    out = linear_cross_entropy(x, w, b, targets, temperature=temperature, extras=extras, **options)
    return out.loss, *(getattr(out, name) for name in DIFFERENTIABLE), out.top_values


def wide(tree):
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), tree)


def pulled_back(function, inputs, cotangents):
    """The values, and the derivatives for each of several cotangents."""
    values, back = jax.vjp(function, *inputs)
    return values, [back(each) for each in cotangents]


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry of each array, or to one, the size of the terms of its sums.

    In arrays of few entries these terms may cancel, and their rounding stays.
    """
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e)
        assert a.shape == e.shape
        scale = max(np.max(np.abs(e), initial=0), 1)
        np.testing.assert_allclose(a / scale, e / scale, rtol=0, atol=tolerance)


def examples(number):
    """So many of them; no shrinking, as each is a compilation."""
    phases = [hypothesis.Phase.generate]
    return hypothesis.settings(
        max_examples=number, deadline=None, phases=phases, derandomize=True, database=None
    )


@pytest.mark.slow
@pytest.mark.exact
@hypothesis.given(case=cases())
@examples(4)
def test_everything_is_what_all_the_logits_give(case):
    assert_everything(case)


@pytest.mark.slow
@hypothesis.given(case=cases())
@examples(60)
def test_everything_is_what_all_the_logits_give_in_many_cases(case):
    assert_everything(case)


def assert_everything(case):
    inputs, targets, options, expected = made(case)
    # The gradient of the mean, as the fused strategy expects it, and one of all that is returned.
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: ours(inputs, targets, options))
    mean = tuple(jnp.full(a.shape, i == 0, jnp.float32) for i, a in enumerate(shapes))
    others = tuple(jnp.asarray(rng.normal(size=a.shape), jnp.float32) for a in shapes)
    actual, gradients = pulled_back(
        lambda *inputs: ours(inputs, targets, options), inputs, (mean, others)
    )
    with jax.enable_x64(True):
        values, wanted = pulled_back(expected, wide(inputs), (wide(mean), wide(others)))
    exact_sums = case["dtype"] == "float32"
    assert_close(actual, values, 2e-6 if exact_sums else 1e-4)
    # The gradient of bfloat16 logits is rounded to 8 bits for its products, and so are results.
    assert_close(gradients, wanted, 1e-5 if exact_sums else 3e-2)


@pytest.mark.slow
@pytest.mark.exact
@hypothesis.given(case=cases())
@examples(3)
def test_hessian_products_are_those_of_all_the_logits(case):
    assert_hessian_product(case)


@pytest.mark.slow
@hypothesis.given(case=cases())
@examples(30)
def test_hessian_products_are_those_of_all_the_logits_in_many_cases(case):
    assert_hessian_product(case)


def assert_hessian_product(case):
    inputs, targets, options, expected = made({**case, "dtype": "float32"})
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), inputs)
    argnums = tuple(i for i, a in enumerate(inputs) if a is not None)

    def product(function, inputs, direction):
        def total(*some):
            every = list(inputs)
            for i, a in zip(argnums, some, strict=True):
                every[i] = a
            out = function(*every)
            return jnp.sum(out[0]) + jnp.sum(jnp.sin(out[3]))

        some, along = (tuple(tree[i] for i in argnums) for tree in (inputs, direction))
        return jax.jvp(jax.grad(total, argnums=tuple(range(len(argnums)))), some, along)[1]

    actual = product(lambda *inputs: ours(inputs, targets, options), inputs, direction)
    with jax.enable_x64(True):
        exact = product(expected, wide(inputs), wide(direction))
    assert_close(actual, exact, 3e-5)


@pytest.fixture(scope="module")
def large():
    """3,000 classes, as float32 and as float64, with the exact logits and labels."""
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(40, 24)), rng.normal(size=(24, 3000)) / 3
    b, labels = rng.normal(size=3000), rng.integers(3000, size=40)
    x, w, b = (np.float32(a) for a in (x, w, b))
    return x, w, b, labels, np.float64(x) @ np.float64(w) + np.float64(b)


@pytest.mark.parametrize("classes", [1, 7, 1000, 1499, 1500, 1501, 2048, 2999, 3000])
def test_3000_classes_in_any_blocks(large, classes):
    x, w, b, labels, o = large
    out = linear_cross_entropy(
        x, w, b, labels, block_classes=classes, block_rows=17, extras=("argmax", "rank")
    )
    expected = scipy.special.logsumexp(o, axis=1) - o[np.arange(40), labels]
    np.testing.assert_allclose(out.loss, expected, rtol=1e-6)
    np.testing.assert_array_equal(out.argmax, np.argmax(o, axis=1))
    np.testing.assert_array_equal(out.rank, np.sum(o > o[np.arange(40), labels, None], axis=1))


def test_a_bfloat16_loss_is_that_of_its_inputs(large):
    x, w, b, labels, _ = large
    x, w, b = (jnp.asarray(a, jnp.bfloat16) for a in (x, w, b))
    actual = linear_cross_entropy(x, w, b, labels).loss
    assert actual.dtype == jnp.float32
    x, w, b = (np.asarray(a, np.float64) for a in (x, w, b))
    o = x @ w + b
    expected = scipy.special.logsumexp(o, axis=1) - o[np.arange(40), labels]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def as_head(logits):
    """A head and features whose logits these are, exactly."""
    return np.eye(len(logits), dtype=np.float32), np.float32(logits), None


@pytest.mark.parametrize("offset", [0, 1e6, -1e6])
@pytest.mark.parametrize("classes", [1, 3, 5])
def test_neither_offset_nor_confidence_costs_a_digit(offset, classes):
    rng = np.random.default_rng(0)
    o = np.float32(rng.normal(size=(30, 5)) * np.geomspace(0.01, 30, 30)[:, None])
    o = np.float32(o + offset)
    labels = np.where(np.arange(30) % 2, np.argmax(o, axis=1), 3)
    actual = linear_cross_entropy(*as_head(o), labels, block_classes=classes).loss
    wide = np.float64(o) - np.max(np.float64(o), axis=1, keepdims=True)
    below = -wide[np.arange(30), labels]
    others = np.sort(np.exp(wide), axis=1)[:, :-1].sum(axis=1)
    np.testing.assert_allclose(actual, below + np.log1p(others), rtol=1e-6)


INF = np.inf


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["recompute", "fused"])
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_impossible_classes_and_rows_without_a_prediction(classes, strategy):
    o = np.float32([
        [0, -INF, 1, -INF], [-INF, -INF, -INF, 2], [-INF] * 4, [0, INF, 0, 0], [np.nan, 1, 2, 3],
        [1e30, -1e30, 0, 0], [5, 5, 5, 5],
    ])  # fmt: skip
    labels = np.array([2, 0, 1, 1, 1, 1, 3])

    def out(b):
        # Each row has an own class-wise bias: a head for each.
        return linear_cross_entropy(
            np.zeros((1, 1), np.float32), np.zeros((1, 4), np.float32), b, np.array([0]),
            extras=(*DIFFERENTIABLE, "argmax", "top_k"), k=3, block_classes=classes,
        )  # fmt: skip

    for row, label in zip(o, labels, strict=True):

        def loss(b, label=label):
            return linear_cross_entropy(
                np.zeros((1, 1), np.float32), np.zeros((1, 4), np.float32), b,
                np.array([label]), block_classes=classes, strategy=strategy,
            ).loss[0]  # fmt: skip

        actual, gradient = jax.value_and_grad(loss)(jnp.asarray(row))
        np.testing.assert_allclose(actual, losses.cross_entropy(row, label), rtol=1e-6)
        expected = losses.cross_entropy_gradient(row, label)
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)
    assert [out(row).argmax[0] for row in o] == [2, 3, -1, -1, -1, 0, 0]
    assert out(o[0]).top_ids.tolist() == [[2, 0, 1]]
    assert out(o[0]).top_values.tolist() == [[1, 0, -INF]]
    expected = scipy.stats.entropy(scipy.special.softmax(o[0]))
    np.testing.assert_allclose(out(o[0]).entropy, [expected], rtol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 3, 6])
def test_of_equal_logits_the_lower_class_comes_first(classes):
    o = [[1, 3, 3, 0, 3, -0.0], [2, 2, 2, 2, 2, 2]]
    out = linear_cross_entropy(
        *as_head(o), np.array([4, 5]), extras=("argmax", "rank", "top_k"), k=6,
        block_classes=classes,
    )  # fmt: skip
    assert out.argmax.tolist() == [1, 0]
    assert out.rank.tolist() == [2, 5]
    assert out.top_ids.tolist() == [[1, 2, 4, 0, 3, 5], [0, 1, 2, 3, 4, 5]]


def test_it_is_the_cross_entropy_of_the_logits(small):
    x, w, b, labels = small
    expected = losses.cross_entropy(model.logits(Params(w, b), x), labels)
    np.testing.assert_allclose(linear_cross_entropy(x, w, b, labels).loss, expected, rtol=1e-6)


@pytest.mark.slow
def test_leading_axes_are_those_of_the_targets(small):
    x, w, b, labels = small
    flat = linear_cross_entropy(x, w, b, labels, extras=("top_k",), k=2)
    out = linear_cross_entropy(
        x.reshape(2, 3, 4), w, b, labels.reshape(2, 3), extras=("top_k",), k=2
    )
    np.testing.assert_array_equal(out.loss, flat.loss.reshape(2, 3))
    np.testing.assert_array_equal(out.top_ids, flat.top_ids.reshape(2, 3, 2))
    one = linear_cross_entropy(x[0], w, b, labels[0])
    np.testing.assert_allclose(one.loss, flat.loss[0], rtol=1e-6)


@pytest.mark.slow
def test_pixels_are_read_as_the_numbers_they_are(small):
    _, w, b, labels = small
    pixels = np.arange(24, dtype=np.uint8).reshape(6, 4) * 10
    for strategy in ("recompute", "fused"):

        def loss(w, x, strategy=strategy):
            return jnp.mean(linear_cross_entropy(x, w, b, labels, strategy=strategy).loss)

        for actual, expected in zip(
            jax.value_and_grad(loss)(w, pixels),
            jax.value_and_grad(loss)(w, pixels.astype(np.float32)),
            strict=True,
        ):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["recompute", "fused"])
def test_ignored_rows_take_no_part(small, strategy):
    x, w, b, labels = small

    def total(w, x, labels, **options):
        out = linear_cross_entropy(x, w, b, labels, strategy=strategy, **options)
        return jnp.sum(out.loss), out.loss

    ids = labels.at[2].set(-1)
    (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(w, x, ids, ignore_id=-1)
    assert loss[2] == 0
    keep = np.arange(6) != 2
    (_, expected), without = jax.value_and_grad(total, has_aux=True)(w, x[keep], labels[keep])
    np.testing.assert_allclose(loss[keep], expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, without, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", ["recompute", "fused"])
def test_under_jit_a_bad_id_spoils_its_own_row(small, strategy):
    x, w, b, labels = small
    bad = labels.at[1].set(5)

    @jax.jit
    def run(x, bad, weights):
        def total(x):
            out = linear_cross_entropy(x, w, b, bad, weights=weights, strategy=strategy)
            return jnp.sum(out.loss), out.loss

        return jax.grad(total, has_aux=True)(x)

    gradient, loss = run(x, bad, jnp.ones(6))
    np.testing.assert_array_equal(np.isnan(loss), np.arange(6) == 1)
    np.testing.assert_array_equal(np.isnan(gradient).all(axis=1), np.arange(6) == 1)
    assert np.isfinite(gradient[0]).all()
    gradient, loss = run(x, bad, jnp.ones(6).at[1].set(0))
    assert loss[1] == 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": np.array([0, 1, 2, 3, 4, 5])}, "row 5 has class id 5, but there are 5"),
        ({"targets": np.array([0, 1, 2, 3, 4, -1])}, "row 5 has class id -1, but there"),
        ({"targets": np.zeros(6)}, "class ids of type float64; expected integers"),
        ({"targets": np.zeros((6, 4))}, "neither as class ids"),
        ({"targets": SparseTargets(np.full((6, 2), 5), np.ones((6, 2)))}, r"row \[0, 0\] has"),
        ({"targets": SparseTargets(np.zeros((6, 2), int), np.ones((6, 3)))}, "sparse targets"),
        ({"x": np.zeros((6, 3))}, "4 features of w"),
        ({"w": np.zeros(4)}, r"w must have shape \[d, q\]"),
        ({"b": np.zeros(4)}, "5 classes of w"),
        ({"targets": np.array([0, 1, 2, 3, 4, 2**32])}, "row 5 has class id 4294967296"),
        ({"targets": np.array([-(2**32) + 1, 1, 2, 3, 4, 0])}, "row 0 has class id -4294967295"),
        ({"targets": SparseTargets(np.full((6, 2), 2**32), np.ones((6, 2)))}, "id 4294967296"),
        ({"x": np.full((6, 4), "a")}, "x: type"),
        ({"weights": np.ones(5)}, "weights of shape"),
        ({"class_weights": np.ones(4)}, "class_weights of shape"),
        ({"extras": ("perplexity",)}, "extras: choose some of nats"),
        ({"strategy": "fast"}, "strategy: choose one of auto"),
        ({"label_smoothing": 1.1}, "label_smoothing must lie"),
        ({"reduction": "median"}, "reduction: choose one of none, sum, mean, got 'median'"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"soft_cap": -1.0}, "soft_cap must be positive"),
        ({"k": 0}, "k: 0; expected an integer, 1 or more"),
        ({"k": 2.5}, "k: 2.5; expected an integer"),
        ({"ignore_id": 2.5}, "ignore_id: 2.5; expected a class id, an integer"),
        ({"memory": 0}, "memory: 0; expected an integer, 1 or more"),
        ({"block_rows": 2.5}, "block_rows: 2.5; expected an integer"),
        ({"block_classes": True}, "block_classes: True; expected an integer"),
        ({"targets": np.full((6, 5), 0.2), "extras": ("rank",)}, "the rank is that of a class id"),
        ({"targets": np.full((6, 5), 0.2), "ignore_id": -1}, "ignore_id is a class id"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_bad_input_is_refused(small, changes, message):
    x, w, b, labels = small
    arguments = {"x": x, "w": w, "b": b, "targets": labels, **changes}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["recompute", "fused"])
def test_several_heads_under_vmap(small, strategy):
    x, w, b, labels = small
    heads = jnp.stack([w, -w, 2 * w])

    def loss(w):
        return jnp.mean(linear_cross_entropy(x, w, b, labels, strategy=strategy).loss)

    actual = jax.vmap(jax.value_and_grad(loss))(heads)
    expected = jax.tree.map(lambda *a: jnp.stack(a), *map(jax.value_and_grad(loss), heads))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


def test_fused_takes_the_gradient_that_it_has(small):
    x, w, b, labels = small
    weights = jnp.array([0.0, 1, 2, 3, 4, 3])

    def gradient(strategy, reduce):
        def total(w):
            out = linear_cross_entropy(x, w, b, labels, weights=weights, strategy=strategy)
            return reduce(out.loss)

        return np.asarray(jax.grad(total)(w))

    scales = np.float32([0.3, -3.7])
    for scale in scales:
        # A multiple to the last bit is the gradient of the sum, multiplied; recomputed, it rounds
        # at every step.
        actual, again = (
            gradient(strategy, lambda loss, scale=scale: jnp.sum(scale * loss))
            for strategy in ("fused", "recompute")
        )
        np.testing.assert_array_equal(actual, scale * gradient("fused", jnp.sum))
        assert (again != scale * gradient("recompute", jnp.sum)).any()
        np.testing.assert_allclose(actual, again, rtol=1e-5, atol=1e-6)
    squares = (gradient(s, lambda loss: jnp.sum(loss**2)) for s in ("fused", "recompute"))
    np.testing.assert_allclose(*squares, rtol=1e-6)


def products_in(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text().count("stablehlo.dot_general")


def test_no_gradient_is_formed_that_nobody_wants(small):
    x, w, b, labels = small

    def loss(x, w):
        return jnp.mean(linear_cross_entropy(x, w, b, labels, strategy="recompute").loss)

    assert products_in(jax.grad(loss, argnums=(0, 1)), x, w) == 4
    assert products_in(jax.grad(loss, argnums=1), x, w) == 3


def test_the_second_call_compiles_nothing(small, count_compilations):
    x, w, b, labels = small

    def run():
        def total(w):
            return jnp.sum(linear_cross_entropy(x, w, b, labels, label_smoothing=0.1).loss)

        return jax.value_and_grad(total)(w)

    assert count_compilations(run) > 0
    assert count_compilations(run) == 0


MIB = 2**20


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the bounds are those of a CPU")
@pytest.mark.parametrize(
    ("strategy", "product", "bound"),
    [
        ("recompute", False, 80),
        ("fused", False, 128),
        ("recompute", True, 256),
        ("fused", True, 256),
    ],
)
def test_temporary_memory_is_bounded(temporary_memory, strategy, product, bound):
    n, d, v = 2048, 256, 65536

    def loss(x, w, b, labels):
        return jnp.mean(linear_cross_entropy(x, w, b, labels, strategy=strategy).loss)

    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2))

    def run(x, w, b, labels):
        if not product:
            return gradient(x, w, b, labels)
        along = jax.grad(lambda *a: loss(*a, labels), argnums=(0, 1, 2))
        return jax.jvp(along, (x, w, b), (x, w, b))[1]

    f32 = jnp.float32
    used = temporary_memory(run, ((n, d), f32), ((d, v), f32), ((v,), f32), ((n,), jnp.int32))
    assert used <= bound * MIB


@pytest.mark.parametrize("strategy", ["recompute", "fused"])
@pytest.mark.parametrize(
    ("d", "options"),
    [
        (1, {"soft_cap": 30.0, "temperature": 0.7}),
        *(
            pytest.param(d, options, marks=pytest.mark.slow)
            for d, options in (
                (1, {}),
                (3, {"soft_cap": 30.0}),
                (3, {"temperature": 0.7}),
                (3, {"soft_cap": 7.0, "temperature": 1.3}),
            )
        ),
    ],
)
def test_the_largest_logit_less_itself_is_zero(d, options, strategy):
    # Compilers fuse a product and a difference with one rounding, in some rows of many.
    rng = np.random.default_rng(0)
    x, w = np.float32(rng.normal(size=(300, d))), np.float32(rng.normal(size=(d, 301)))
    labels = rng.integers(301, size=300)

    def total(w):
        out = linear_cross_entropy(
            x, w, None, labels, strategy=strategy, block_classes=100, extras=("argmax",), **options
        )
        return jnp.mean(out.loss), out

    (_, out), gradient = jax.value_and_grad(total, has_aux=True)(w)
    o = np.float64(x) @ np.float64(w)
    if "soft_cap" in options:
        o = options["soft_cap"] * np.tanh(o / options["soft_cap"])
    o = o / options.get("temperature", 1)
    expected = scipy.special.logsumexp(o, axis=1) - o[np.arange(300), labels]
    np.testing.assert_allclose(out.loss, expected, rtol=3e-6)
    assert (out.argmax >= 0).all()
    assert np.isfinite(gradient).all()


def full_loss(w, x, labels, weights):
    return weights * losses.cross_entropy(model.logits(Params(w, jnp.zeros(w.shape[1])), x), labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reduce",
    [jax.nn.logsumexp, lambda loss: jnp.sum(loss**2), jnp.mean],
    ids=["logsumexp", "squares", "mean"],
)
def test_fused_is_right_around_the_cotangent_that_it_expected(small, reduce):
    # At w = 0 all losses are equal, so that the cotangents look as expected; along a direction or
    # along the weights they do not.
    x, w, _, labels = small
    ones = jnp.ones(6)

    def ours(w, weights):
        return reduce(
            linear_cross_entropy(x, w, None, labels, weights=weights, strategy="fused").loss
        )

    def reference(w, weights):
        return reduce(full_loss(w, x, labels, weights))

    def derivatives(f):
        zero = jnp.zeros_like(w)
        yield jax.jvp(lambda v: jax.grad(f)(v, ones), (zero,), (w,))[1]
        yield jax.jvp(lambda s: jax.grad(f)(w, s), (ones,), (ones.at[2].set(3.0),))[1]
        yield jax.grad(lambda s: jnp.sum(jnp.sin(jax.grad(f)(w, s))))(ones)

    for actual, expected in zip(derivatives(ours), derivatives(reference), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_reverse_over_reverse(small):
    x, w, b, labels = small

    def penalty(w):
        def inner(w):
            out = linear_cross_entropy(x, w, b, labels, extras=("entropy",), block_classes=2)
            return jnp.mean(out.loss) + jnp.sum(jnp.sin(out.entropy))

        return jnp.sum(jax.grad(inner)(w) ** 2)

    def expected(w):
        def inner(w):
            o = model.logits(Params(w, b), x)
            p = jax.nn.softmax(o)
            entropy = -jnp.sum(p * jnp.log(p), axis=1)
            return jnp.mean(losses.cross_entropy(o, labels)) + jnp.sum(jnp.sin(entropy))

        return jnp.sum(jax.grad(inner)(w) ** 2)

    np.testing.assert_allclose(jax.grad(penalty)(w), jax.grad(expected)(w), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64])
def test_ids_of_any_type(large, dtype):
    x, w, b, labels, _ = large
    labels = labels % 128
    expected = linear_cross_entropy(x, w, b, labels).loss
    actual = linear_cross_entropy(x, w, b, labels.astype(dtype)).loss
    np.testing.assert_array_equal(actual, expected)


def test_float64_is_exact_to_its_digits(large):
    x, w, b, labels, o = large
    with jax.enable_x64(True):
        x, w, b = (jnp.asarray(a, jnp.float64) for a in (x, w, b))
        out = linear_cross_entropy(
            x, w, b, labels, extras=("argmax", "top_k", "rank"), block_classes=700
        )
        expected = scipy.special.logsumexp(o, axis=1) - o[np.arange(40), labels]
        np.testing.assert_allclose(out.loss, expected, rtol=1e-13)
        np.testing.assert_array_equal(out.argmax, np.argmax(o, axis=1))
        assert out.top_ids.dtype == jnp.int32


def test_an_impossible_class_stays_impossible(small):
    x, w, b, labels = small
    b = b.at[2].set(-INF)
    labels = jnp.where(labels == 2, 1, labels)
    expected = losses.cross_entropy(model.logits(Params(w, b), x), labels)
    # As an array, nobody knows that the smoothing is 0 when it is compiled.
    loss = jax.jit(lambda s: linear_cross_entropy(x, w, b, labels, label_smoothing=s).loss)
    np.testing.assert_allclose(loss(0.0), expected, rtol=1e-6)
    capped = linear_cross_entropy(x, w, b, labels, soft_cap=30.0, extras=("top_k",))
    assert capped.top_values[:, -1].tolist() == [-INF] * 6
    assert capped.top_ids[:, -1].tolist() == [2] * 6


def test_the_gradient_in_a_weight_of_zero_is_the_loss(small):
    x, w, b, labels = small
    weights = jnp.array([1.0, 0, 0, 2, 0, 1])
    gradient = jax.grad(lambda s: jnp.sum(linear_cross_entropy(x, w, b, labels, weights=s).loss))(
        weights
    )
    expected = linear_cross_entropy(x, w, b, labels).loss
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_what_does_not_count_ranks_last(small):
    x, w, b, labels = small
    ranks = jax.jit(
        lambda t: linear_cross_entropy(x, w, b, t, ignore_id=-1, extras=("rank", "nats"))
    )(labels.at[0].set(-1).at[1].set(9))
    assert ranks.rank[:2].tolist() == [5, 5]
    assert ranks.nats[0] == 0
    assert np.isnan(ranks.nats[1])


@pytest.mark.parametrize(
    "options",
    [{"temperature": np.ones(6)}, {"label_smoothing": np.full(6, 0.1)}, {"z_loss": np.ones(1)}],
    ids=str,
)
def test_scalars_must_be_scalars(small, options):
    x, w, b, labels = small
    with pytest.raises(ValueError, match="must be a scalar"):
        linear_cross_entropy(x, w, b, labels, **options)


@pytest.mark.slow
def test_integers_of_64_bits_are_the_numbers_they_are():
    params = Params(np.array([[1e-12, 0.0]], np.float32), np.zeros(2, np.float32))
    x = np.array([[1_600_000_000_000], [-(2**62)]])
    expected = scipy.special.log_softmax(x @ np.array([[1e-12, 0.0]]), axis=1)
    out = linear_cross_entropy(x, *params, np.array([0, 1]))
    np.testing.assert_allclose(out.loss, -expected[[0, 1], [0, 1]], rtol=1e-6)
    np.testing.assert_array_equal(head.predict(params, x), [0, 1])
    best = head.top_k(params, x, k=1).probabilities[:, 0]
    np.testing.assert_allclose(best, np.exp(expected.max(axis=1)), rtol=1e-6)


def test_integers_keep_their_digits_beside_weights_in_bfloat16():
    x, w = np.array([[257, 1001]], np.int16), jnp.array([[1.0, 0.0], [-0.25, 0.0]], jnp.bfloat16)
    loss = linear_cross_entropy(x, w, None, np.array([1])).loss
    np.testing.assert_allclose(loss, np.log1p(np.exp(6.75)), rtol=1e-6)


def test_large_offsets_in_float64_are_taken_away_as_by_the_model():
    rng = np.random.default_rng(0)
    z, w, labels = rng.normal(size=(9, 2)), rng.normal(size=(2, 3)), rng.integers(3, size=9)
    expected = -scipy.special.log_softmax(z @ w, axis=1)[np.arange(9), labels]
    loss = linear_cross_entropy(1e9 + z, w, -1e9 * w.sum(axis=0), labels).loss
    np.testing.assert_allclose(loss, expected, atol=1e-5)
    shifted = linear_cross_entropy(1e3 + z, w, None, labels).loss
    without = -scipy.special.log_softmax((1e3 + z) @ w, axis=1)[np.arange(9), labels]
    np.testing.assert_allclose(shifted, without, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("given", [np.ndarray.tolist, lambda a: a.astype(">f8"), np.longdouble])
def test_arrays_of_any_kind_are_taken(small, given):
    x, w, b, labels = (np.asarray(a) for a in small)
    expected = linear_cross_entropy(x, w, b, labels).loss
    x, w, b = (given(a.astype(np.float64)) for a in (x, w, b))
    for ids in (labels.tolist(), labels.astype(">i8"), labels[:, None]):
        np.testing.assert_allclose(linear_cross_entropy(x, w, b, ids).loss, expected, rtol=1e-6)


@pytest.mark.parametrize("leading", [(0,), (3, 0)])
@pytest.mark.parametrize("targets", ["ids", "dense", "sparse"])
def test_no_rows_have_no_losses(leading, targets):
    w, b = jnp.ones((4, 5)), jnp.zeros(5)
    ids = np.zeros((*leading, 2), int)
    targets = {
        "ids": ids[..., 0],
        "dense": np.zeros((*leading, 5)),
        "sparse": SparseTargets(ids, np.zeros((*leading, 2))),
    }[targets]

    def total(x, w, b):
        out = linear_cross_entropy(x, w, b, targets, extras=("entropy", "top_k"), k=3)
        return jnp.sum(out.loss), out

    gradient, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(jnp.ones((*leading, 4)), w, b)
    assert out.loss.shape == out.entropy.shape == leading
    assert out.top_ids.shape == (*leading, 3)
    assert [g.shape for g in gradient] == [(*leading, 4), (4, 5), (5,)]
    assert not any(g.any() for g in gradient)
    assert head.predict(Params(w, b), jnp.ones((*leading, 4))).shape == leading
    assert head.top_k(Params(w, b), jnp.ones((*leading, 4)), k=2).ids.shape == (*leading, 2)


def test_impossible_classes_make_no_nan_on_the_way():
    x, w, b = jnp.ones((4, 2)), jnp.ones((2, 3)), jnp.array([0.0, -INF, 1.0])
    labels = np.array([0, 2, 2, 0])
    with jax.debug_nans(True):
        for options in ({}, {"block_classes": 1, "strategy": "fused", "soft_cap": 3.0}):
            for targets in (labels, np.eye(3)[labels]):

                def total(x, w, b, targets=targets, options=options):
                    out = linear_cross_entropy(x, w, b, targets, extras=("entropy",), **options)
                    return jnp.sum(out.loss)

                loss, gradient = jax.value_and_grad(total, argnums=(0, 1, 2))(x, w, b)
                assert np.isfinite(loss)
                assert all(np.isfinite(g).all() for g in gradient)
        assert head.predict(Params(w, b), x).tolist() == [2] * 4


@pytest.mark.parametrize("strategy", ["recompute", "fused"])
@pytest.mark.parametrize("impossible", [False, True])
def test_smoothing_of_one_takes_all_from_the_target(small, strategy, impossible):
    x, w, b, labels = small
    b = b.at[2].set(-INF) if impossible else b
    o = np.asarray(x, np.float64) @ np.asarray(w, np.float64) + np.asarray(b, np.float64)
    log_p = scipy.special.log_softmax(o, axis=1)
    out = linear_cross_entropy(x, w, b, labels, label_smoothing=1.0, strategy=strategy)
    np.testing.assert_allclose(out.loss, -log_p.mean(axis=1), rtol=1e-6)

    def mean(w):
        out = linear_cross_entropy(x, w, b, labels, label_smoothing=1.0, strategy=strategy)
        return jnp.mean(out.loss)

    if not impossible:
        expected = np.asarray(x).T @ (np.exp(log_p) - 1 / 5) / 6
        np.testing.assert_allclose(jax.grad(mean)(w), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("targets", ["ids", "dense", "sparse"])
def test_reductions_are_those_of_cross_entropy(small, reduction, targets):
    x, w, b, labels = small
    labels = labels.at[3].set(-1) if targets == "ids" else labels
    options = {
        "weights": jnp.array([1.0, 0, 2, 1, 3, 0.5]),
        "class_weights": jnp.linspace(0.5, 2, 5),
        "ignore_id": -1 if targets == "ids" else None,
        "label_smoothing": 0.1,
        "z_loss": 0.01,
        "soft_cap": 3.0,
        "reduction": reduction,
    }
    dense = 0.75 * jax.nn.one_hot(labels, 5) + jnp.tile(jnp.array([[0.5, 0, 0, 0, 0]]), (6, 1))
    few = SparseTargets(
        jnp.stack([labels, jnp.zeros_like(labels)], axis=1),
        jnp.tile(jnp.array([[0.75, 0.5]]), (6, 1)),
    )
    full, given = {"ids": (labels, labels), "dense": (dense, dense), "sparse": (dense, few)}[
        targets
    ]

    def expected(w):
        return losses.cross_entropy(model.logits(Params(w, b), x), full, **options)

    for strategy in ("recompute", "fused"):

        def ours(w, strategy=strategy):
            out = linear_cross_entropy(
                x, w, b, given, strategy=strategy, block_classes=2, **options
            )
            return out.loss

        assert ours(w).shape == expected(w).shape
        np.testing.assert_allclose(ours(w), expected(w), rtol=1e-5)
        gradients = (jax.grad(lambda w, f=f: jnp.sum(f(w)))(w) for f in (ours, expected))
        np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_the_mean_of_no_weight_is_0(small):
    x, w, b, labels = small
    for loss in (
        linear_cross_entropy(*small, weights=jnp.zeros(6), reduction="mean").loss,
        linear_cross_entropy(x[:0], w, b, labels[:0], reduction="mean").loss,
    ):
        assert loss == 0


def test_a_row_of_weight_0_does_not_count_in_the_mean_whatever_its_id(small):
    x, w, b, labels = small
    weights, bad = jnp.ones(6).at[1].set(0), labels.at[1].set(7)

    def by_head(labels):
        return linear_cross_entropy(x, w, b, labels, weights=weights, reduction="mean").loss

    def by_logits(labels):
        o = model.logits(Params(w, b), x)
        return losses.cross_entropy(o, labels, weights=weights, reduction="mean")

    for mean in (by_head, by_logits):
        np.testing.assert_allclose(jax.jit(mean)(bad), mean(labels), rtol=1e-6)


@pytest.mark.parametrize(
    "documented", [linear_cross_entropy, head.predict, head.top_k, head.Statistic]
)
def test_the_examples_print_what_they_say(documented):
    name = documented.__name__
    (test,) = doctest.DocTestFinder(recurse=False).find(documented, name, globs={})
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
