import pathlib
import subprocess
import sys
import zipfile
from io import BytesIO

import jax.numpy as jnp
import numpy as np
import pytest

import softmax_jax
from softmax_jax import io
from softmax_jax.model import Params

W = np.array([[1.0, -1.0, 0.25], [0.5, 2.0, -3.0]], np.float32)
B = np.array([0.1, 0.2, 0.3], np.float32)
NAMES = ("cat", "chicken", "dog")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.npz"


def softmax(scores):
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def test_what_is_loaded_is_what_was_saved(path):
    softmax_jax.save(
        path, Params(W, B), scale=0.5, shift=[1.0, 2.0], class_names=NAMES, dtype=np.uint8
    )
    saved = softmax_jax.load(str(path))
    np.testing.assert_array_equal(saved.params.w, W)
    np.testing.assert_array_equal(saved.params.b, B)
    assert (float(saved.scale), saved.shift.tolist()) == (0.5, [1.0, 2.0])
    assert (saved.class_names, saved.dtype, saved.about) == (NAMES, "uint8", {})


@pytest.mark.parametrize("dtype", [np.float64, np.float16, jnp.bfloat16, jnp.float32])
def test_parameters_of_every_precision_keep_their_digits(path, dtype):
    w = jnp.asarray(W, dtype) if dtype in (jnp.bfloat16, jnp.float32) else (W / 3).astype(dtype)
    softmax_jax.save(path, Params(w, B))
    np.testing.assert_array_equal(
        np.asarray(softmax_jax.load(path).params.w, np.float64), np.asarray(w, np.float64)
    )


@pytest.mark.slow
def test_predictions_are_in_the_unit_that_the_model_was_made_for(path):
    x = np.random.default_rng(0).integers(0, 256, (20, 2)).astype(np.uint8)
    softmax_jax.save(path, Params(W, B), scale=1 / 255, shift=-0.5, dtype="uint8")
    saved = softmax_jax.load(path)
    scores = (x / 255 - 0.5) @ W.astype(np.float64) + B
    np.testing.assert_allclose(io.features(saved, x), x / 255 - 0.5, rtol=0, atol=1e-7)
    np.testing.assert_allclose(io.probabilities(saved, x), softmax(scores), rtol=1e-5)
    np.testing.assert_array_equal(io.predict(saved, x), scores.argmax(axis=1))
    confidence = softmax(scores).max(axis=1)
    np.testing.assert_array_equal(io.predict(saved, x, threshold=0.6) == -1, confidence < 0.6)


def test_large_integers_are_the_numbers_that_they_are(path):
    softmax_jax.save(path, Params(W, B), scale=1e-12, dtype="int64")
    x = np.array([[1_600_000_000_000, 0]])
    np.testing.assert_allclose(io.features(softmax_jax.load(path), x), [[1.6, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "x", "message"),
    [
        ("uint8", [[0.1, 0.9]], r"type float64, but .* uint8 features, .* x \* 0\.00392157 \+ 0"),
        ("float32", np.array([[3, 250]], np.uint8), "type uint8, but the model was made for float"),
        (
            "uint8",
            [[0, 2550]],
            r"x: from 0 to 2550, but .* uint8 features, of which it sees x \* 0",
        ),
        ("uint8", jnp.array([[-1, 7]]), "x: from -1 to 7, but the model was made for uint8"),
        (None, [[1.0, 2.0, 3.0]], r"shape \(1, 3\); the model was made for 2 features"),
        (None, 3.0, "made for 2 features"),
    ],
)
def test_features_in_another_unit_are_refused(path, dtype, x, message):
    softmax_jax.save(path, Params(W, B), scale=1 / 255, dtype=dtype)
    saved = softmax_jax.load(path)
    for function in (io.features, io.predict, io.probabilities):
        with pytest.raises(ValueError, match=message):
            function(saved, x)


def test_of_stacked_models_the_best_is_loaded_and_others_on_demand(path):
    params = Params(np.stack([W, 2 * W]), np.stack([B, 2 * B]))
    softmax_jax.save(path, params, best=1, about={"l2": [0.5, 0.25], "tol": 1e-3})
    saved = softmax_jax.load(path)
    np.testing.assert_array_equal(saved.params.w, 2 * W)
    assert saved.about == {"l2": 0.25, "tol": 1e-3, "member": 1}
    saved = softmax_jax.load(path, member=0)
    np.testing.assert_array_equal(saved.params.b, B)
    assert saved.about == {"l2": 0.5, "tol": 1e-3, "member": 0}
    with pytest.raises(ValueError, match="model 2 of 2"):
        softmax_jax.load(path, member=2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"w": np.stack([W, W]), "b": np.stack([B, B]), "best": 1.5}, "best: .*1.5.*an integer"),
        (
            {"w": np.stack([W, W]), "b": np.stack([B, B]), "best": -1},
            "best: .*an integer, 0 or more",
        ),
        ({"w": W, "b": B, "scale": "x"}, "scale is <U1; expected numbers"),
        ({"w": W, "b": B, "dtype": "nonsense"}, "dtype is 'nonsense'; expected the name of a type"),
        ({"w": W, "b": B, "class_names": np.array([b"\xff", b"a", b"b"])}, "class_names: .*UTF-8"),
    ],
)
def test_a_file_that_is_no_model_is_named(path, arrays, message):
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=rf"{path.name}: {message}"):
        softmax_jax.load(path)


def test_class_names_in_bytes_are_text(path):
    softmax_jax.save(path, Params(W, B), class_names=np.array([b"cat", b"dog", "größe".encode()]))
    assert softmax_jax.load(path).class_names == ("cat", "dog", "größe")


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (Params(W, B[:2]), {}, r"w has shape \(2, 3\) and b \(2,\)"),
        (Params(W[None], B[None]), {}, "does not say which is the best"),
        (Params(W, B), {"scale": [1.0, 2.0, 3.0]}, "scale: expected a finite number, or 2"),
        (Params(W, B), {"shift": np.nan}, "shift: expected a finite number"),
        (Params(W, B), {"class_names": ["a"]}, r"class_names of shape \(1,\) for 3 classes"),
        (Params(W, B), {"class_names": ["a", "b", "c\0"]}, "ends with a NUL"),
        (Params(W, B), {"about": {"w": 1}}, "w: such names are taken"),
        (Params(W, B), {"about": {"a": object()}}, "a: expected numbers or text"),
        (Params(W.astype(int), B), {}, "expected floating point"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(path, params, options, message):
    with pytest.raises(ValueError, match=message):
        softmax_jax.save(path, params, **options)
    assert list(path.parent.iterdir()) == []


def test_a_save_that_fails_leaves_the_older_file(path, monkeypatch):
    softmax_jax.save(path, Params(W, B))

    def fail_halfway(temporary, content):
        temporary.open("wb").close()
        raise OSError("disk full")

    monkeypatch.setattr(pathlib.Path, "write_bytes", fail_halfway)
    with pytest.raises(OSError, match="disk full"):
        softmax_jax.save(path, Params(2 * W, B))
    np.testing.assert_array_equal(softmax_jax.load(path).params.w, W)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
def test_a_damaged_file_is_named(path, cut):
    softmax_jax.save(path, Params(W, B))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"model\.npz cannot be read as an \.npz file"):
        softmax_jax.load(path)


def test_a_changed_byte_is_noticed_or_changes_nothing(path):
    softmax_jax.save(path, Params(W, B), scale=0.5, class_names=NAMES, dtype="uint8")
    content = path.read_bytes()
    expected = repr(softmax_jax.load(path))
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        messages = []
        try:
            found = repr(softmax_jax.load(path))
        except ValueError as e:
            messages.append(str(e))
        assert "model.npz" in messages[0] if messages else found == expected


def test_files_of_other_arrays_are_refused(path):
    np.savez(path, x=W)
    with pytest.raises(ValueError, match=r"model\.npz: there is no w and no b"):
        softmax_jax.load(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("w.npy", b"text")
    with pytest.raises(ValueError, match=r"model\.npz"):
        softmax_jax.load(path)


@pytest.mark.parametrize(
    ("name", "descr", "shape"),
    [("w", "<f4", (10**15, 3)), ("class_names", "<U0", (2 * 10**8,)), ("b", "|O", (3,))],
)
def test_sizes_are_looked_at_before_anything_is_allocated(path, name, descr, shape):
    stream = BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.npy", stream.getvalue() + bytes(48))
    with pytest.raises(ValueError, match=r"model\.npz cannot be read as an \.npz file"):
        softmax_jax.load(path)


def test_compressed_files_are_read_within_the_budget(path):
    np.savez_compressed(path, w=np.zeros((10_000, 3)), b=B)
    assert softmax_jax.load(path).params.w.shape == (10_000, 3)
    with pytest.raises(ValueError, match=r"model\.npz .* a larger max_bytes allows it"):
        softmax_jax.load(path, max_bytes=100_000)


def test_a_missing_file_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"params\.npz is not there"):
        softmax_jax.load(tmp_path)


@pytest.mark.slow
def test_loading_needs_no_more_than_the_package_itself(path):
    softmax_jax.save(path, Params(W, B))
    code = (
        f"import sys, softmax_jax; softmax_jax.load({str(path)!r})\n"
        "assert not {'orbax', 'tensorflow_datasets', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_saved_fit_is_used_with_the_digits_it_was_certified_with(tmp_path):
    x = 1.6e9 + np.random.default_rng(0).normal(size=(50, 2))
    w = np.array([[1.0, -1], [0.5, 2]])
    params = Params(w, np.array([0.0, 0.1]) - 1.6e9 * w.sum(axis=0))
    softmax_jax.save(tmp_path / "model.npz", params)
    saved = softmax_jax.load(tmp_path / "model.npz")
    logits = x.astype(np.longdouble) @ w + params.b
    expected = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(io.probabilities(saved, x), expected, atol=1e-5)
    np.testing.assert_array_equal(io.predict(saved, x), expected.argmax(axis=1))
