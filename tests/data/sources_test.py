import json
import pickle
import shutil
import socket
import time

import numpy as np
import pytest

from softmax_jax import data
from softmax_jax.data import builders
from softmax_jax.data.sources import load_npz, load_prepared

X = np.random.default_rng(0).uniform(size=(6, 4)).astype(np.float32)
IDS = np.array([0, 1, 2, 0, 1, 2])
ARRAYS = {"x_train": X, "y_train": IDS, "x_test": X[:3], "y_test": IDS[:3]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.npz"


@pytest.fixture
def prepared_digits(data_dir, tmp_path):
    """A copy of the prepared digits, to damage."""
    data.load("digits", data_dir=data_dir)
    source = builders.SoftmaxJaxDigits(data_dir=data_dir, file_format="array_record").data_path
    return shutil.copytree(source, tmp_path / "prepared")


@pytest.fixture
def prepare(tmp_path):
    """A function that has TFDS prepare rows of the given features in both splits or in train."""
    import tensorflow_datasets as tfds

    def run(features, rows, splits=("train", "test")):
        with tfds.core.registered.skip_registration():

            class Rows(tfds.core.GeneratorBasedBuilder):
                """Rows as given."""

                VERSION = tfds.core.Version("1.0.0")

                def _info(self):
                    return tfds.core.DatasetInfo(
                        builder=self,
                        features=tfds.features.FeaturesDict(features(tfds.features)),
                        disable_shuffling=True,
                    )

                def _split_generators(self, dl_manager):
                    return {split: self._generate_examples() for split in splits}

                def _generate_examples(self):
                    yield from enumerate(rows)

        builder = Rows(data_dir=str(tmp_path), file_format="array_record")
        builder.download_and_prepare()
        return str(builder.data_path)

    return run


def image_and_class(features):
    image = features.Tensor(shape=(3,), dtype=np.float32)
    return {"image": image, "label": features.ClassLabel(names=["cat", "dog"])}


ROWS = [{"image": np.full(3, i, np.float32), "label": i % 2} for i in range(4)]


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
    dataset = data.load(str(path))
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


def test_npz_pixels_are_scaled(path):
    pixels = (255 * X).astype(np.uint8)
    np.savez(path, **{**ARRAYS, "x_train": pixels, "x_test": pixels[:3]})
    assert load_npz(path).scale == 1 / 255


def test_npz_floats_are_not_scaled(path):
    np.savez(path, **ARRAYS)
    assert load_npz(path).scale == 1


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


def test_a_folder_prepared_by_tfds_is_read(prepare):
    dataset = data.load(prepare(image_and_class, ROWS))
    np.testing.assert_array_equal(dataset.train.x, [[i] * 3 for i in range(4)])
    assert dataset.test.targets.tolist() == [0, 1, 0, 1]
    assert dataset.class_names == ("cat", "dog")
    assert dataset.scale == 1


def test_prepared_digits_are_read_by_their_folder(prepared_digits, data_dir):
    dataset = data.load(str(prepared_digits))
    np.testing.assert_array_equal(dataset.train.x, data.load("digits", data_dir=data_dir).train.x)
    assert dataset.scale == 1 / 16


def test_prepared_data_without_image_or_label_is_refused(prepare):
    folder = prepare(lambda features: {"text": np.int32}, [{"text": 1}])
    with pytest.raises(ValueError, match="has the features text; expected 'image' and 'label'"):
        load_prepared(folder)


def test_prepared_data_without_a_test_split_is_refused(prepare):
    folder = prepare(image_and_class, ROWS, splits=("train",))
    with pytest.raises(ValueError, match="no split 'test'"):
        load_prepared(folder)


def test_prepared_labels_that_are_no_classes_are_refused(prepare):
    folder = prepare(lambda features: {**image_and_class(features), "label": np.int64}, ROWS)
    with pytest.raises(ValueError, match="label"):
        load_prepared(folder)


def test_prepared_images_of_several_shapes_are_refused(prepare):
    def features_of_any_length(features):
        image = features.Tensor(shape=(None,), dtype=np.float32)
        return {**image_and_class(features), "image": image}

    rows = [{"image": np.zeros(i + 1, np.float32), "label": i % 2} for i in range(4)]
    folder = prepare(features_of_any_length, rows)
    with pytest.raises(ValueError, match=r"rows.*image"):
        load_prepared(folder)


def test_prepared_data_that_needs_tensorflow_is_refused(prepared_digits):
    info = prepared_digits / "dataset_info.json"
    content = json.loads(info.read_text())
    content["fileFormat"] = "tfrecord"
    info.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"stored as tfrecord.*file_format='array_record'"):
        load_prepared(prepared_digits)
