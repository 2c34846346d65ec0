import pickle
import socket
import time

import numpy as np
import pytest

from softmax_jax import data
from softmax_jax.data import builders
from softmax_jax.data.sources import load_npz

X = np.random.default_rng(0).uniform(size=(6, 4)).astype(np.float32)
IDS = np.array([0, 1, 2, 0, 1, 2])
ARRAYS = {"x_train": X, "y_train": IDS, "x_test": X[:3], "y_test": IDS[:3]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.npz"


def test_classroom_has_a_name():
    assert data.load("classroom").class_names == ("cat", "chicken", "dog")


@pytest.mark.parametrize("name", ["cifar10", "", "MNIST"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"unknown data set .*classroom, digits, mnist, fashion"):
        data.load(name)


def test_a_folder_that_tfds_did_not_prepare_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set .*prepared by TFDS"):
        data.load(str(tmp_path))


@pytest.mark.parametrize("name", ["classroom", "digits", "some.npz"])
def test_a_folder_for_data_that_has_none_is_refused(name, data_dir):
    with pytest.raises(ValueError, match=f"folder='somewhere' is for mnist.*{name}"):
        data.load(name, folder="somewhere", data_dir=data_dir)


def test_the_variable_names_the_folder(tmp_path, monkeypatch, write_idx_folder, idx_arrays):
    write_idx_folder(tmp_path / "mnist", idx_arrays)
    monkeypatch.setenv("SOFTMAX_JAX_DATA", str(tmp_path))
    dataset = data.load("mnist", data_dir=str(tmp_path / "tfds"))
    assert len(dataset.train.x) == 30


def test_an_argument_goes_before_the_variable(tmp_path, monkeypatch, write_idx_folder, idx_arrays):
    given = write_idx_folder(tmp_path / "given", idx_arrays)
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("SOFTMAX_JAX_DATA", str(tmp_path))
    dataset = data.load("mnist", folder=str(given), data_dir=str(tmp_path / "tfds"))
    assert len(dataset.train.x) == 30


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["refuses", "is silent"])
def test_a_host_out_of_reach_is_reported_within_seconds(tmp_path, monkeypatch, no_folder, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if answer == "refuses":
            server.close()
        monkeypatch.setattr(builders.SoftmaxJaxMnist, "URL", f"http://127.0.0.1:{port}/")
        start = time.perf_counter()
        with pytest.raises(ConnectionError, match="mnist is not prepared in") as e:
            data.load("mnist", data_dir=str(tmp_path))
        assert time.perf_counter() - start < 6
    assert "--config.data.folder=" in str(e.value)
    assert "$SOFTMAX_JAX_DATA" in str(e.value)


def test_npz_arrays_are_read(path):
    np.savez(path, **ARRAYS)
    dataset = data.load(path)
    np.testing.assert_array_equal(dataset.train.x, X)
    np.testing.assert_array_equal(dataset.train.targets, IDS)
    np.testing.assert_array_equal(dataset.test.x, X[:3])
    np.testing.assert_array_equal(dataset.test.targets, IDS[:3])


def test_npz_probabilities_are_read(path):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), size=6).astype(np.float32)
    np.savez(path, **{**ARRAYS, "y_train": probabilities, "y_test": probabilities[:3]})
    np.testing.assert_array_equal(load_npz(path).train.targets, probabilities)


def test_npz_class_names_are_read(path):
    np.savez(path, **ARRAYS, class_names=["cat", "chicken", "dog"])
    assert load_npz(path).class_names == ("cat", "chicken", "dog")


def test_an_npz_file_can_say_how_many_classes_there_are(path):
    np.savez(path, **{**ARRAYS, "y_train": 3 * IDS})
    with pytest.raises(ValueError, match=r"some\.npz: train: row 2 has .* num_classes=7 if"):
        load_npz(path)
    np.savez(path, **{**ARRAYS, "y_train": 3 * IDS}, num_classes=7)
    assert load_npz(path).class_names == tuple("0123456")


def test_npz_names_in_bytes_are_text(path):
    np.savez(path, **ARRAYS, class_names=np.array(["Käse".encode(), b"b", b"c"]))
    assert load_npz(path).class_names == ("Käse", "b", "c")
    np.savez(path, **ARRAYS, class_names=np.array([b"\xff", b"b", b"c"]))
    with pytest.raises(ValueError, match=r"some\.npz: class_names: b'\\xff' is not UTF-8"):
        load_npz(path)


def test_npz_classes_without_names_take_what_the_file_or_the_budget_has(path):
    np.savez(path, **ARRAYS, num_classes=2**24)
    with pytest.raises(ValueError, match=r"some\.npz: the names of 16,777,216 classes take 1,073,"):
        load_npz(path, max_bytes=2**30 - 1)
    np.savez(path, **ARRAYS, num_classes=2**10)
    assert len(load_npz(path, max_bytes=2**16).class_names) == 2**10
    np.savez(path, **ARRAYS, num_classes=2**40)
    with pytest.raises(ValueError, match=r"some\.npz: num_classes: 1099511627776; class ids are"):
        load_npz(path, max_bytes=2**50)


def test_npz_pixels_are_scaled(path):
    pixels = (255 * X).astype(np.uint8)
    np.savez(path, **{**ARRAYS, "x_train": pixels, "x_test": pixels[:3]})
    assert load_npz(path).train.scale == 1 / 255


def test_npz_floats_are_not_scaled(path):
    np.savez(path, **ARRAYS)
    assert load_npz(path).train.scale == 1


def test_npz_pixels_in_one_split_and_floats_in_the_other_are_refused(path):
    np.savez(path, **{**ARRAYS, "x_train": (255 * X).astype(np.uint8)})
    with pytest.raises(ValueError, match=path.name):
        load_npz(path)


def test_a_missing_npz_file_is_not_found(path):
    with pytest.raises(FileNotFoundError, match=path.name):
        data.load(str(path))


@pytest.mark.parametrize("key", ARRAYS)
def test_a_missing_npz_array_is_named(path, key):
    np.savez(path, **{k: v for k, v in ARRAYS.items() if k != key})
    with pytest.raises(
        ValueError, match=f"some.npz .* lacks {key}, of .*; it has ([xy]_t[a-z]+(, )?){{3}}"
    ):
        load_npz(path)


def saved(**arrays):
    def write(path):
        np.savez(path, **arrays)

    return write


def save_array(path):
    with path.open("wb") as file:
        np.save(file, X)


def save_truncated(path):
    np.savez(path, **ARRAYS)
    path.write_bytes(path.read_bytes()[:-30])


def save_with_a_flipped_byte(path):
    np.savez(path, **ARRAYS)
    content = bytearray(path.read_bytes())
    content[content.find(X.tobytes()) + 8] ^= 0xFF
    path.write_bytes(content)


def save_compressed_with_flipped_bytes(path):
    np.savez_compressed(path, **ARRAYS)
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "write",
    {
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("x_train,y_train"),
        "pickle": lambda path: path.write_bytes(pickle.dumps(ARRAYS)),
        "npy": save_array,
        "truncated": save_truncated,
        "flipped byte": save_with_a_flipped_byte,
        "flipped bytes": save_compressed_with_flipped_bytes,
        "no arrays": saved(),
        "object features": saved(**{**ARRAYS, "x_train": X.astype(object)}),
        "object ids": saved(**{**ARRAYS, "y_test": IDS.astype(object)}),
        "object names": saved(**ARRAYS, class_names=np.array(["a", "b", "c"], object)),
        "one name": saved(**ARRAYS, class_names="abc"),
        "classes in fractions": saved(**ARRAYS, num_classes=3.5),
        "classes by class": saved(**ARRAYS, num_classes=[3, 3, 3]),
        "too few names": saved(**ARRAYS, class_names=["a", "b"]),
        "NaN": saved(**{**ARRAYS, "x_test": X[:3] * np.nan}),
        "float ids": saved(**{**ARRAYS, "y_train": X[:, 0]}),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_bad_npz_file_is_refused_by_name(path, write):
    write[1](path)
    with pytest.raises(ValueError, match=path.name):
        load_npz(path)
