import functools
import gzip
import http.server
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from sklearn.datasets import load_digits

from softmax_jax import data
from softmax_jax.data import builders

MNIST_FILES = tuple(builders.SoftmaxJaxMnist.SHA256)


@pytest.fixture
def digits(data_dir):
    return data.load("digits", data_dir=data_dir)


@pytest.fixture
def idx_files(tmp_path, write_idx_folder, idx_arrays):
    return write_idx_folder(tmp_path / "idx", idx_arrays)


def changed(idx_arrays, name, array):
    return {**idx_arrays, name: array}


def publish(monkeypatch, folder):
    """Makes the files of the folder the published ones."""
    digests = builders.content_digests(builders.SoftmaxJaxMnist.read_folder(folder))
    monkeypatch.setattr(builders.SoftmaxJaxMnist, "SHA256", digests)


def is_prepared(data_dir):
    return any(data_dir.rglob("dataset_info.json"))


def test_digits_have_10_classes_of_8x8_images(digits):
    assert digits.train.x.shape == (1438, 64)
    assert digits.test.x.shape == (359, 64)
    assert digits.train.x.dtype == np.uint8
    assert digits.image_shape == (8, 8)
    assert digits.class_names == tuple("0123456789")


def test_the_scale_of_digits_takes_them_to_0_1(digits):
    assert (digits.train.x * digits.train.scale).max() == 1


def test_every_fifth_digit_of_scikit_learn_is_in_test(digits):
    original = load_digits()
    np.testing.assert_array_equal(digits.test.x, original.data[4::5])
    np.testing.assert_array_equal(digits.test.targets, original.target[4::5])


def test_the_other_digits_are_in_train_in_order(digits):
    original = load_digits()
    rest = np.arange(len(original.target)) % 5 != 4
    np.testing.assert_array_equal(digits.train.x, original.data[rest])
    np.testing.assert_array_equal(digits.train.targets, original.target[rest])


def test_digits_are_prepared_once(digits, data_dir, monkeypatch):
    def generate_again(*args):
        raise AssertionError("prepared again")

    monkeypatch.setattr(builders.SoftmaxJaxDigits, "_generate_examples", generate_again)
    again = data.load("digits", data_dir=data_dir)
    np.testing.assert_array_equal(again.train.x, digits.train.x)


@pytest.mark.slow
def test_tensorflow_is_not_imported(tmp_path):
    script = (
        "import sys; from softmax_jax import data;"
        f"data.load('digits', data_dir={str(tmp_path)!r});"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_preparation_that_broke_off_is_not_read(tmp_path, monkeypatch):
    whole = builders.SoftmaxJaxDigits._generate_examples

    def break_off(self, images, labels):
        yield from list(whole(self, images, labels))[:100]
        raise RuntimeError("out of power")

    with monkeypatch.context() as patch:
        patch.setattr(builders.SoftmaxJaxDigits, "_generate_examples", break_off)
        with pytest.raises(RuntimeError, match="out of power"):
            data.load("digits", data_dir=str(tmp_path))
    assert not is_prepared(tmp_path)
    assert len(data.load("digits", data_dir=str(tmp_path)).train.x) == 1438


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("zipped", [True, False], ids=["gz", "plain"])
def test_idx_files_become_a_data_set(tmp_path, write_idx_folder, idx_arrays, name, zipped):
    folder = write_idx_folder(tmp_path / "idx", idx_arrays, zipped=zipped)
    dataset = data.load(name, folder=str(folder), data_dir=str(tmp_path / "tfds"))
    for split, prefix in ((dataset.train, "train"), (dataset.test, "t10k")):
        images = idx_arrays[f"{prefix}-images-idx3-ubyte"]
        np.testing.assert_array_equal(split.x, images.reshape(len(images), 784))
        np.testing.assert_array_equal(split.targets, idx_arrays[f"{prefix}-labels-idx1-ubyte"])
    assert dataset.image_shape == (28, 28)
    assert dataset.train.scale == 1 / 255
    assert len(dataset.class_names) == 10


def test_fashion_has_the_names_of_clothes(tmp_path, idx_files):
    dataset = data.load("fashion_mnist", folder=str(idx_files), data_dir=str(tmp_path))
    assert dataset.class_names[0] == "T-shirt/top"
    assert dataset.class_names[9] == "Ankle boot"


def test_what_is_prepared_needs_no_folder_any_more(tmp_path, idx_files, no_folder, monkeypatch):
    publish(monkeypatch, idx_files)
    first = data.load("mnist", folder=str(idx_files), data_dir=str(tmp_path))
    for file in idx_files.iterdir():
        file.unlink()
    again = data.load("mnist", data_dir=str(tmp_path))
    np.testing.assert_array_equal(again.train.x, first.train.x)


def test_other_data_than_the_published_is_read_only_where_its_folder_is_named(
    tmp_path, idx_files, no_folder
):
    data.load("mnist", folder=str(idx_files), data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="from other data than the published"):
        data.load("mnist", data_dir=str(tmp_path))


def test_the_same_content_compressed_otherwise_is_accepted(
    tmp_path, idx_files, idx_arrays, write_idx_folder
):
    first = data.load("mnist", folder=str(idx_files), data_dir=str(tmp_path))
    plain = write_idx_folder(tmp_path / "plain", idx_arrays, zipped=False)
    again = data.load("mnist", folder=str(plain), data_dir=str(tmp_path))
    np.testing.assert_array_equal(again.test.x, first.test.x)


def test_a_folder_of_other_content_than_prepared_is_refused(
    tmp_path, idx_files, idx_arrays, write_idx_folder
):
    data.load("mnist", folder=str(idx_files), data_dir=str(tmp_path))
    name = "train-images-idx3-ubyte"
    other = write_idx_folder(tmp_path / "other", changed(idx_arrays, name, 255 - idx_arrays[name]))
    with pytest.raises(ValueError, match=r"prepared from other data than .*other"):
        data.load("mnist", folder=str(other), data_dir=str(tmp_path))


@pytest.mark.parametrize("name", MNIST_FILES)
def test_a_missing_file_is_named(tmp_path, idx_files, name):
    (idx_files / f"{name}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"idx has neither {name}.gz nor {name}"):
        data.load("mnist", folder=str(idx_files), data_dir=str(tmp_path / "tfds"))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.load("mnist", folder=str(tmp_path / "nowhere"), data_dir=str(tmp_path))


@pytest.mark.parametrize("prefix", ["train", "t10k"])
def test_more_images_than_labels_are_refused(tmp_path, idx_arrays, write_idx_folder, prefix):
    name = f"{prefix}-labels-idx1-ubyte"
    folder = write_idx_folder(tmp_path / "idx", changed(idx_arrays, name, idx_arrays[name][1:]))
    with pytest.raises(ValueError, match=f"idx: {prefix} images of shape .* and labels"):
        data.load("mnist", folder=str(folder), data_dir=str(tmp_path / "tfds"))


def test_images_of_another_size_are_refused(tmp_path, idx_arrays, write_idx_folder):
    name = "t10k-images-idx3-ubyte"
    arrays = changed(idx_arrays, name, idx_arrays[name][:, :27])
    folder = write_idx_folder(tmp_path / "idx", arrays)
    with pytest.raises(ValueError, match=r"idx: t10k images of shape \(20, 27, 28\)"):
        data.load("mnist", folder=str(folder), data_dir=str(tmp_path / "tfds"))


@pytest.mark.parametrize("prefix", ["train", "t10k"])
def test_a_label_out_of_range_is_refused(tmp_path, idx_arrays, write_idx_folder, prefix):
    name = f"{prefix}-labels-idx1-ubyte"
    labels = idx_arrays[name].copy()
    labels[7] = 10
    folder = write_idx_folder(tmp_path / "idx", changed(idx_arrays, name, labels))
    with pytest.raises(ValueError, match=f"idx: {prefix} row 7 has label 10"):
        data.load("mnist", folder=str(folder), data_dir=str(tmp_path / "tfds"))


def test_no_rows_are_refused(tmp_path, idx_arrays, write_idx_folder):
    arrays = {name: array[:0] for name, array in idx_arrays.items()}
    folder = write_idx_folder(tmp_path / "idx", arrays)
    with pytest.raises(ValueError, match="idx"):
        data.load("mnist", folder=str(folder), data_dir=str(tmp_path / "tfds"))
    assert not is_prepared(tmp_path)


def test_a_damaged_file_is_named_and_nothing_prepared(tmp_path, idx_files):
    file = idx_files / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=re.escape(file.name) + ".*damaged"):
        data.load("mnist", folder=str(idx_files), data_dir=str(tmp_path / "tfds"))
    assert not is_prepared(tmp_path)


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mnist_host(idx_files, monkeypatch, no_folder):
    """A server on this machine in place of MNIST's; the folder that it serves."""
    handler = functools.partial(_QuietHandler, directory=str(idx_files))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serve = functools.partial(server.serve_forever, poll_interval=0.01)
        threading.Thread(target=serve, daemon=True).start()
        publish(monkeypatch, idx_files)
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(builders.SoftmaxJaxMnist, "URL", url)
        yield idx_files
        server.shutdown()


def test_without_a_folder_files_are_downloaded(tmp_path, mnist_host, idx_arrays):
    dataset = data.load("mnist", data_dir=str(tmp_path / "tfds"))
    images = idx_arrays["train-images-idx3-ubyte"]
    np.testing.assert_array_equal(dataset.train.x, images.reshape(len(images), 784))


def test_a_download_and_its_folder_are_the_same_data(tmp_path, mnist_host):
    downloaded = data.load("mnist", data_dir=str(tmp_path / "tfds"))
    again = data.load("mnist", folder=str(mnist_host), data_dir=str(tmp_path / "tfds"))
    np.testing.assert_array_equal(again.train.x, downloaded.train.x)


def test_a_download_of_other_content_is_refused(tmp_path, mnist_host):
    name = "t10k-labels-idx1-ubyte"
    (mnist_host / f"{name}.gz").write_bytes(b"please log in")
    with pytest.raises(ValueError, match=f"{name}.gz: .*not an IDX file"):
        data.load("mnist", data_dir=str(tmp_path / "tfds"))
    assert not is_prepared(tmp_path)


def test_a_download_is_not_unpacked_beyond_the_size_of_the_published_one(tmp_path, mnist_host):
    name = "t10k-images-idx3-ubyte"
    header = bytes([0, 0, 8, 3]) + np.array([10**5, 28, 28], ">u4").tobytes()
    (mnist_host / f"{name}.gz").write_bytes(gzip.compress(header + bytes(10**5 * 28 * 28)))
    with pytest.raises(ValueError, match=f"{name}.gz: .*78,400,000 bytes; with max_bytes"):
        data.load("mnist", data_dir=str(tmp_path / "tfds"))


def test_the_budget_for_files_of_a_folder_can_be_raised(tmp_path, idx_files, write_idx_folder):
    name = "train-images-idx3-ubyte"
    write_idx_folder(idx_files, {name: np.zeros((30, 28, 28), np.uint8)})
    options = {"folder": str(idx_files), "data_dir": str(tmp_path / "tfds")}
    with pytest.raises(ValueError, match="23,520 bytes; with max_bytes=23520 they are unpacked"):
        data.load("mnist", max_bytes=23_519, **options)
    assert not is_prepared(tmp_path)
    assert len(data.load("mnist", max_bytes=23_520, **options).train.x) == 30


@pytest.mark.parametrize("builder", [builders.SoftmaxJaxMnist, builders.SoftmaxJaxFashionMnist])
def test_published_files_are_fetched_by_https(builder):
    assert builder.URL.startswith("https://")


def test_a_sound_file_that_is_not_the_published_one_is_refused(
    tmp_path, mnist_host, idx_arrays, write_idx_folder
):
    name = "t10k-images-idx3-ubyte"
    write_idx_folder(mnist_host, {name: 255 - idx_arrays[name]})
    with pytest.raises(ValueError, match="not the published one"):
        data.load("mnist", data_dir=str(tmp_path / "tfds"))
    assert not is_prepared(tmp_path)


def test_a_host_that_refuses_the_file_is_an_answer_at_once(tmp_path, mnist_host):
    (mnist_host / "train-images-idx3-ubyte.gz").unlink()
    with pytest.raises(ConnectionError, match="HTTP Error 404"):
        data.load("mnist", data_dir=str(tmp_path / "tfds"))


def test_a_bad_download_is_not_kept(tmp_path, mnist_host):
    file = mnist_host / "train-labels-idx1-ubyte.gz"
    good = file.read_bytes()
    file.write_bytes(b"please log in")
    with pytest.raises(ValueError, match="removed again"):
        data.load("mnist", data_dir=str(tmp_path / "tfds"))
    file.write_bytes(good)
    assert len(data.load("mnist", data_dir=str(tmp_path / "tfds")).train.x) == 30


# Mean and standard deviation of all training pixels on the scale 0..1, as commonly published.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)],
)
def test_the_published_data_is_read(idx_folder, data_dir, name, mean, deviation):
    dataset = data.load(name, folder=str(idx_folder(name)), data_dir=data_dir)
    assert dataset.train.x.shape == (60_000, 784)
    assert dataset.test.x.shape == (10_000, 784)
    assert dataset.train.x.mean() * dataset.train.scale == pytest.approx(mean, abs=1e-4)
    assert dataset.train.x.std() * dataset.train.scale == pytest.approx(deviation, abs=1e-4)
