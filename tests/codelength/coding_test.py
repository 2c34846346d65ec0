import hashlib
import subprocess
import sys
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.sparse
import scipy.special

from softmax_jax import data, evaluation, metrics, solvers
from softmax_jax.codelength import coding, integer_softmax, quantized
from softmax_jax.data import Data
from softmax_jax.model import Params

pytestmark = pytest.mark.exact

NAT = quantized.LOG2_E * 2**integer_softmax.FRACTION


@pytest.fixture(scope="module")
def digits(data_dir):
    dataset = data.load("digits", data_dir=data_dir)
    params = solvers.fit(*dataset.train[:2], l2=1e-4, scale=dataset.train.scale, tol=1e-2).params
    return params, *dataset.test[:2], dataset.test.scale


@pytest.fixture(scope="module")
def small(digits):
    """A file of 40 labels, and what it was made from."""
    params, x, labels, scale = digits
    x, labels = x[:40], labels[:40]
    return coding.compress(params, x, labels, scale=scale), params, x, labels, scale


def model_of(seed, d, q, spread):
    rng = np.random.default_rng(seed)
    return Params(spread * rng.normal(size=(d, q)), spread * rng.normal(size=q))


def assert_comes_back(params, x, labels, **options):
    content = coding.compress(params, x, labels, **options)
    for block_size in (1, 7, 10**6):
        again = coding.decompress(content, params, x, block_size=block_size, **options)
        np.testing.assert_array_equal(again, labels)
        assert again.dtype == np.int32
    return content


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(
    seed=st.integers(0, 1000),
    n=st.integers(0, 50),
    d=st.integers(1, 5),
    q=st.integers(1, 9),
    spread=st.sampled_from([0.0, 0.1, 3.0, 100.0]),
    kind=st.sampled_from(["uint8", "int8", "bool", "float32", "float64"]),
)
def test_labels_come_back_in_the_size_of_their_codelength(seed, n, d, q, spread, kind):
    rng = np.random.default_rng(seed)
    x = (100 * rng.normal(size=(n, d))).astype(kind)
    params, labels = model_of(seed, d, q, spread), rng.integers(q, size=n)
    content = assert_comes_back(params, x, labels, scale=0.01)
    bits = coding.codelength(params, x, labels, scale=0.01)
    assert 8 * (len(content) - coding.HEADER_BYTES) == pytest.approx(bits, rel=1e-3, abs=64)


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(
    seed=st.integers(0, 1000), q=st.integers(1, 30), spread=st.sampled_from([0.1, 1.0, 10.0, 1e4])
)
def test_frequencies_are_those_of_softmax(seed, q, spread):
    nats = spread * np.random.default_rng(seed).normal(size=(20, q))
    table = integer_softmax.frequencies(np.rint(nats * NAT).astype(np.int64))
    assert table.dtype == np.int64
    assert table.min() >= 1
    np.testing.assert_array_equal(table.sum(axis=1), 2**24)
    p = np.exp(nats - nats.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(table / 2**24, p, rtol=2e-5, atol=(2 + q) / 2**24)


def test_floats_whose_rounding_would_move_logits_are_refused():
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(200, 3)), rng.integers(0, 3, 200)
    w = rng.normal(size=(3, 3))
    far, near = Params(w, -1e8 * w.sum(axis=0)), Params(w, np.zeros(3))
    for function in (coding.compress, coding.codelength):
        with pytest.raises(ValueError, match=r"x: features as large as 1e.08 lose .* subtract"):
            function(far, 1e8 + z, labels)
    bits = coding.codelength(near, z, labels)
    assert coding.codelength(near, (1e8 + z) - 1e8, labels) == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_tables_are_powers_of_two_rounded(bits):
    with mpmath.workdps(50):
        exact = [int(mpmath.nint(2 ** (30 - mpmath.mpf(i) / 2**bits))) for i in range(256)]
    np.testing.assert_array_equal(integer_softmax.exp2_table(bits), exact)


def test_a_file_has_the_size_that_frequencies_say():
    # 4,000 labels of each class cost what their frequency says; any other would show.
    x = np.zeros((4000, 1))
    for table in ([1, 2**24 - 1], [2**24 - 2, 1, 1], [5, 7, 2**24 - 12], [2**23, 3, 2**23 - 3]):
        # Frequencies are one more than what is rounded down.
        params = Params(np.zeros((1, len(table))), np.log(np.array(table) - 0.5))
        for label, frequency in enumerate(table):
            content = coding.compress(params, x, np.full(4000, label))
            bits = 8 * (len(content) - coding.HEADER_BYTES)
            assert bits == pytest.approx(4000 * (24 - np.log2(frequency)), abs=64)


def test_the_product_is_exact():
    rng = np.random.default_rng(0)
    params, x = model_of(0, 50, 6, 1.0), rng.integers(0, 256, (9, 50), np.uint8)
    model, _ = quantized.Quantized.of(params, x, 1 / 255, None)
    exact = [
        [sum(int(a) * int(b) for a, b in zip(row, column, strict=True)) for column in model.w.T]
        for row in x
    ]
    assert max(abs(value) for row in exact for value in row) > 2**40
    np.testing.assert_array_equal((x.astype(np.float64) @ model.w).astype(object), exact)
    # And is the logits, in bits.
    ours = np.array([[float(Fraction(v, 2**model.power)) for v in row] for row in exact])
    np.testing.assert_allclose(ours, x / 255 @ params.w * quantized.LOG2_E, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_of_any_range_are_coded_by_their_model(dtype):
    rng = np.random.default_rng(0)
    times = rng.uniform(1.6e9, 1.7e9, size=2000)
    x = np.column_stack([times, 1e-7 * rng.normal(size=2000), rng.normal(size=2000)]).astype(dtype)
    scale = 1 / x.std(axis=0).astype(np.float64)
    w = 2 * rng.normal(size=(3, 4))
    params = Params(w, -(x.mean(axis=0) * scale) @ w)
    logits = (x * scale) @ params.w + params.b
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    exact = -scipy.special.log_softmax(logits, axis=1)[np.arange(2000), labels].sum() / np.log(2)
    assert coding.codelength(params, x, labels, scale=scale) == pytest.approx(exact, rel=1e-4)
    assert_comes_back(params, x, labels, scale=scale)


@pytest.mark.parametrize("bits", [31, 45, 62])
def test_large_integers_are_coded_by_their_model(bits):
    rng = np.random.default_rng(0)
    x, scale = rng.integers(-(2**bits), 2**bits, (300, 3)), 2.0**-bits
    params = model_of(0, 3, 4, 2.0)
    logits = x * scale @ params.w + params.b
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    exact = -scipy.special.log_softmax(logits, axis=1)[np.arange(300), labels].sum() / np.log(2)
    assert coding.codelength(params, x, labels, scale=scale) == pytest.approx(exact, rel=1e-4)
    assert_comes_back(params, x, labels, scale=scale)


def test_tiny_weights_are_coded():
    x, labels = np.ones((30, 2)), np.arange(30) % 3
    for scale in (1e-30, 1e-300):
        assert_comes_back(model_of(0, 2, 3, scale), x, labels)


@pytest.mark.slow
def test_every_flipped_bit_is_detected(small):
    content, params, x, _, scale = small
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="file of labels"):
            coding.decompress(bytes(damaged), params, x, scale=scale)


@pytest.mark.slow
def test_what_is_missing_or_too_much_is_detected(small):
    content, params, x, _, scale = small
    for damaged in (*(content[:size] for size in range(len(content))), content + b"\0"):
        with pytest.raises(ValueError, match="file of labels"):
            coding.decompress(damaged, params, x, scale=scale)


@pytest.mark.parametrize("change", ["w", "b", "x", "scale", "order"])
def test_another_model_or_other_features_are_detected(digits, change):
    params, x, labels, scale = digits
    content = coding.compress(params, x, labels, scale=scale)
    if change in ("w", "b"):
        params = params._replace(**{change: 1.1 * np.asarray(getattr(params, change))})
    x = {"x": np.maximum(x, 1), "order": x[::-1]}.get(change, x)
    with pytest.raises(ValueError, match="with other parameters, features or scale"):
        coding.decompress(content, params, x, scale=scale / 2 if change == "scale" else scale)


def test_another_version_is_refused(small):
    content, params, x, _, scale = small
    changed = bytearray(content)
    changed[4] = 2
    at = slice(coding.HEADER_BYTES - 8, coding.HEADER_BYTES)
    rest = changed[: at.start] + changed[at.stop :]
    changed[at] = hashlib.blake2b(rest, digest_size=8).digest()
    with pytest.raises(ValueError, match="is of version 2"):
        coding.decompress(bytes(changed), params, x, scale=scale)


def test_other_shapes_are_refused(small):
    content, params, x, _, scale = small
    with pytest.raises(ValueError, match="has 40 labels"):
        coding.decompress(content, params, x[1:], scale=scale)


def test_a_class_that_should_not_occur_costs_24_bits():
    params = Params(np.zeros((1, 3)), np.array([0.0, -np.inf, 0.0]))
    x = np.zeros((4, 1))
    labels = np.array([0, 1, 2, 0])
    assert_comes_back(params, x, labels)
    assert coding.codelength(params, x, labels) == pytest.approx(24 + 3, abs=1e-5)


def test_one_class_costs_nothing():
    content = assert_comes_back(model_of(0, 2, 1, 1.0), np.ones((9, 2)), np.zeros(9, np.int64))
    assert len(content) == coding.HEADER_BYTES


def test_confident_and_large_logits_are_coded():
    params = Params(np.array([[1e4, -1e4]]), np.zeros(2))
    x = np.array([[1.0], [-1.0]] * 500)
    right = np.array([0, 1] * 500)
    assert_comes_back(params, x, right)
    assert coding.codelength(params, x, right) < 1e-3
    assert coding.codelength(params, x, 1 - right) == pytest.approx(24_000, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 3]}, "row 1 has class id 3, but there are 3 classes"),
        ({"labels": [0, -1]}, "row 1 has class id -1"),
        ({"labels": [0.0, 1.0]}, "expected integers"),
        ({"labels": [0]}, r"labels: targets of shape \(1,\) for 2 rows"),
        ({"labels": [[1.0, 0.0, 0.0]] * 2}, "expected class ids"),
        ({"x": [1.0, 2.0]}, r"x: shape \(2,\)"),
        ({"x": [[1j], [2.0]]}, "x: type complex128"),
        ({"scale": [1.0, 2.0]}, "scale: expected a finite number, or 1"),
        ({"x": [[np.nan], [1.0]]}, "x: row 0, feature 0 is nan"),
        ({"x": [[1.0, 2.0]] * 2}, r"expected \[n, d\], \[d, q\] and \[q\]"),
        ({"x": [[1e12], [1.0]]}, "reach beyond 2"),
        ({"w": [[np.inf, 0.0, 0.0]]}, "NaN or infinities"),
        ({"b": [np.inf, 0.0, 0.0]}, "NaN or infinities"),
        ({"scale": np.nan}, "scale: expected a finite number"),
        ({"block_size": 0}, "block_size: 0; expected an integer, 1 or more"),
        ({"block_size": 2.5}, r"block_size: 2\.5; expected an integer"),
        ({"labels": np.array([2**32, 1])}, f"row 0 has class id {2**32}, above"),
        ({"labels": np.array([0, 2**64 - 1], np.uint64)}, f"row 1 has class id {2**64 - 1}"),
    ],
)
def test_bad_input_is_refused(changes, message):
    inputs = {"w": np.ones((1, 3)), "b": np.zeros(3), "x": np.ones((2, 1)), "labels": [0, 2]}
    inputs |= changes
    params = Params(np.asarray(inputs.pop("w")), np.asarray(inputs.pop("b")))
    with pytest.raises(ValueError, match=message):
        coding.compress(params, np.asarray(inputs.pop("x")), **inputs)


@pytest.mark.parametrize("given", [list, lambda a: a.astype(">f8"), np.longdouble])
def test_features_of_any_kind_are_coded_alike(given):
    x = np.random.default_rng(0).normal(size=(9, 2))
    params, labels = model_of(0, 2, 3, 1.0), np.arange(9) % 3
    expected = coding.compress(params, x, labels)
    assert coding.compress(params, given(x), labels.astype(">i8")) == expected
    np.testing.assert_array_equal(coding.decompress(expected, params, given(x)), labels)


DECODE = """
import sys, numpy as np
from softmax_jax.codelength import coding, integer_softmax, quantized
from softmax_jax.model import Params
with np.load(sys.argv[1]) as a:
    labels = coding.decompress(
        open(sys.argv[2], "rb").read(),
        Params(a["w"], a["b"]),
        a["x"],
        scale=a["scale"],
        block_size=17,
    )
    assert (labels == a["labels"]).all()
print(len(labels))
"""


def decoded_elsewhere(folder, content, params, x, labels, scale):
    """The number of labels that another process decodes, with another size of blocks."""
    np.savez(folder / "in.npz", w=params.w, b=params.b, x=x, labels=labels, scale=scale)
    (folder / "labels.smxl").write_bytes(content)
    words = [sys.executable, "-c", DECODE, str(folder / "in.npz"), str(folder / "labels.smxl")]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_another_process_decodes(digits, tmp_path):
    params, x, labels, scale = digits
    content = coding.compress(params, x, labels, scale=scale)
    assert decoded_elsewhere(tmp_path, content, params, x, labels, scale) == len(labels)


@pytest.mark.slow
def test_the_labels_of_fashion_mnist_have_the_size_of_the_loss(idx_folder, data_dir, tmp_path):
    dataset = data.load("fashion_mnist", folder=str(idx_folder("fashion_mnist")), data_dir=data_dir)
    x, labels, scale = dataset.test.x, dataset.test.targets, dataset.test.scale
    part = slice(0, 6000)
    train = dataset.train
    params = solvers.fit(train.x[part], train.targets[part], l2=1e-3, scale=scale, tol=0.1).params
    content = coding.compress(params, x, labels, scale=scale)
    # The loss that everybody measures: float32 logits, no integers.
    model = Params(*(jnp.asarray(a, jnp.float32) for a in params))
    batch = Data(jnp.asarray(x), jnp.asarray(labels), scale=scale)
    bits = metrics.summarize(evaluation.evaluate(model, batch))["bits"] * len(labels)
    assert len(labels) == 10_000
    assert len(content) <= 1.001 * bits / 8 + 64
    assert len(content) >= bits / 8
    assert decoded_elsewhere(tmp_path, content, params, x, labels, scale) == 10_000
    for bit in np.random.default_rng(0).integers(8 * len(content), size=200):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="file of labels"):
            coding.decompress(bytes(damaged), params, x, scale=scale)


@pytest.mark.parametrize("layout", ["csr_array", "csc_matrix", "coo_array"])
@pytest.mark.parametrize("kind", ["float64", "float32", "uint8", "int8"])
def test_sparse_features_make_the_file_of_dense_ones(layout, kind):
    rng = np.random.default_rng(0)
    x = (rng.integers(-128, 128, size=(50, 9)) * (rng.uniform(size=(50, 9)) < 0.3)).astype(kind)
    x[:, 4], x[0, 5] = 0, 100
    params, labels = model_of(1, 9, 5, 0.05), rng.integers(5, size=50)
    sparse = getattr(scipy.sparse, layout)(x)
    content = assert_comes_back(params, x, labels, scale=0.5)
    assert coding.compress(params, sparse, labels, scale=0.5, block_size=7) == content
    again = coding.decompress(content, params, sparse, scale=0.5)
    np.testing.assert_array_equal(again, labels)
    bits = coding.codelength(params, x, labels, scale=0.5)
    assert coding.codelength(params, sparse, labels, scale=0.5) == bits


def test_sparse_features_with_entries_in_parts_are_summed_and_left_alone():
    parts = scipy.sparse.csr_array(
        (np.array([1.0, 2.0, -4.0]), np.array([0, 0, 1]), np.array([0, 2, 3])), shape=(2, 2)
    )
    params, labels = model_of(0, 2, 3, 1.0), np.array([0, 2])
    content = coding.compress(params, np.array([[3.0, 0.0], [0.0, -4.0]]), labels)
    assert coding.compress(params, parts, labels) == content
    assert parts.nnz == 3
    parts.data[2] = np.nan
    with pytest.raises(ValueError, match=r"x: row 1, feature 1 is nan"):
        coding.compress(params, parts, labels)


def test_features_of_other_types_are_the_numbers_they_are():
    params, labels = model_of(0, 1, 2, 1e-12), np.array([0, 1])
    x = np.array([[1_600_000_000_000], [-1_700_000_000_000]])
    content = coding.compress(params, x, labels)
    others = (x.astype(">i8"), x.tolist(), x.astype(object))
    assert all(coding.compress(params, other, labels) == content for other in others)
    assert (coding.decompress(content, params, x.tolist()) == labels).all()
    assert coding.codelength(params, x.astype(np.longdouble), labels) == pytest.approx(
        coding.codelength(params, x, labels), abs=1e-3
    )


def test_a_shift_is_part_of_the_unit():
    params, x, labels = model_of(0, 3, 4, 1.0), np.arange(60).reshape(20, 3), np.arange(20) % 4
    scale, shift = np.array([0.5, 0.25, 0.125]), np.array([-2.0, 1.0, 0.5])
    bits = coding.codelength(params, x, labels, scale=scale, shift=shift)
    assert bits == pytest.approx(coding.codelength(params, x * scale + shift, labels), rel=1e-4)
    assert_comes_back(params, x, labels, scale=scale, shift=shift)
