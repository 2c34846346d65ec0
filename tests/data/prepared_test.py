import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from softmax_jax import data
from softmax_jax.data import builders
from softmax_jax.data.prepared import DIGESTS, load_prepared, write_digests


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


def test_a_folder_prepared_by_tfds_is_read(prepare):
    dataset = data.load(prepare(image_and_class, ROWS))
    np.testing.assert_array_equal(dataset.train.x, [[i] * 3 for i in range(4)])
    assert dataset.test.targets.tolist() == [0, 1, 0, 1]
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train.scale == 1


def test_prepared_digits_are_read_by_their_folder(prepared_digits, data_dir):
    dataset = data.load(str(prepared_digits))
    np.testing.assert_array_equal(dataset.train.x, data.load("digits", data_dir=data_dir).train.x)
    assert dataset.train.scale == 1 / 16


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


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_prepared_data_that_needs_tensorflow_is_refused(prepare):
    folder = pathlib.Path(prepare(image_and_class, ROWS))
    change_json(folder / "dataset_info.json", lambda info: info.update(fileFormat="tfrecord"))
    with pytest.raises(ValueError, match=r"rows.*stored as tfrecord.*file_format='array_record'"):
        load_prepared(folder)


def damages(content, generator, number):
    """Flipped bits, pieces cut out and put in, and ends cut off."""
    for i in range(number):
        at = int(generator.integers(len(content)))
        if i % 3 == 0:
            bit = 1 << int(generator.integers(8))
            yield content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
        elif i % 3 == 1:
            other = int(generator.integers(len(content)))
            yield content[:at] + content[other : other + 8] + content[at + 3 :] + b"\n"
        else:
            yield content[:at]


def test_every_change_of_a_file_of_prepared_digits_is_an_error_that_names_it(prepared_digits):
    """Flips every bit of metadata.json, in which a digit scales the pixels."""
    generator = np.random.default_rng(0)
    files = sorted(prepared_digits.iterdir())
    assert len(files) == 7
    for path in files:
        content = path.read_bytes()
        changed = list(damages(content, generator, 60))
        if path.name == "metadata.json":
            for at in range(8 * len(content)):
                number = int.from_bytes(content, "little") ^ (1 << at)
                changed.append(number.to_bytes(len(content), "little"))
        for damaged in changed:
            path.write_bytes(damaged)
            # Of digests, one that is changed or lacks is that of another file.
            name = "" if path.name == DIGESTS else path.name
            with pytest.raises(ValueError, match=re.escape(str(prepared_digits / name))):
                load_prepared(prepared_digits)
        path.unlink()
        with pytest.raises((ValueError, OSError), match=f"prepared.*{re.escape(path.name)}"):
            load_prepared(prepared_digits)
        path.write_bytes(content)
    assert load_prepared(prepared_digits).train.scale == 1 / 16


def test_files_of_prepared_digits_that_change_places_are_an_error(prepared_digits):
    train, test = sorted(prepared_digits.glob("*.array_record*"))
    contents = train.read_bytes(), test.read_bytes()
    train.write_bytes(contents[1])
    test.write_bytes(contents[0])
    with pytest.raises(ValueError, match=r"array_record-00000-of-00001 is not the file whose"):
        load_prepared(prepared_digits)


def test_a_file_more_among_prepared_data_is_an_error(prepared_digits):
    (prepared_digits / ".hidden").touch()
    load_prepared(prepared_digits)
    (prepared_digits / "image.labels.txt").touch()
    with pytest.raises(ValueError, match=r"image\.labels\.txt has no digest in SHA256SUMS"):
        load_prepared(prepared_digits)


def test_prepared_digits_without_digests_are_refused(prepared_digits):
    (prepared_digits / DIGESTS).unlink()
    with pytest.raises(ValueError, match=r"prepared: there is no SHA256SUMS, .* prepared again"):
        load_prepared(prepared_digits)


def test_other_records_under_the_metadata_of_mnist_are_refused(
    tmp_path, idx_arrays, write_idx_folder
):
    """Also where the whole folder is another's, with its own digests."""
    other = {name: array[::-1].copy() for name, array in idx_arrays.items()}
    folders = {}
    for name, arrays in (("one", idx_arrays), ("other", other)):
        source = write_idx_folder(tmp_path / name, arrays)
        data.load("mnist", folder=str(source), data_dir=str(tmp_path / f"{name}_tfds"))
        [folders[name]] = (tmp_path / f"{name}_tfds" / "softmax_jax_mnist").iterdir()
    for path in folders["other"].glob("*array_record*"):
        shutil.copy(path, folders["one"])
    with pytest.raises(ValueError, match="array_record-00000-of-00001 is not the file whose dig"):
        data.load("mnist", folder=str(tmp_path / "one"), data_dir=str(tmp_path / "one_tfds"))
    shutil.copytree(folders["other"], folders["one"], dirs_exist_ok=True)
    with pytest.raises(ValueError, match="prepared from other data than"):
        data.load("mnist", folder=str(tmp_path / "one"), data_dir=str(tmp_path / "one_tfds"))


def test_other_data_in_the_place_of_digits_is_refused(tmp_path, idx_arrays, write_idx_folder):
    data.load("digits", data_dir=str(tmp_path / "tfds"))
    source = write_idx_folder(tmp_path / "idx", idx_arrays)
    data.load("mnist", folder=str(source), data_dir=str(tmp_path / "tfds"))
    [digits], [mnist] = (
        (tmp_path / "tfds" / f"softmax_jax_{name}").iterdir() for name in ("digits", "mnist")
    )
    shutil.rmtree(digits)
    shutil.copytree(mnist, digits)
    with pytest.raises(ValueError, match=r"softmax_jax_digits.* prepared from other data"):
        data.load("digits", data_dir=str(tmp_path / "tfds"))


def test_what_tfds_itself_prepares_is_taken(tmp_path):
    builders.SoftmaxJaxDigits(
        data_dir=str(tmp_path), file_format="array_record"
    ).download_and_prepare()
    assert len(data.load("digits", data_dir=tmp_path).train.x) == 1438


def test_digests_are_those_of_sha256sum(prepared_digits):
    for line in (prepared_digits / DIGESTS).read_text().splitlines():
        digest, name = line.split("  ")
        assert digest == hashlib.sha256((prepared_digits / name).read_bytes()).hexdigest()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_digests_of_sha256sum_are_taken(prepare):
    folder = pathlib.Path(prepare(image_and_class, ROWS))
    for _ in range(2):
        subprocess.run(f"sha256sum * > {DIGESTS}", shell=True, check=True, cwd=folder)
        assert load_prepared(folder).class_names == ("cat", "dog")


def test_a_folder_of_others_is_checked_once_it_has_digests(prepare):
    folder = pathlib.Path(prepare(image_and_class, ROWS))
    write_digests(folder)
    assert load_prepared(folder).class_names == ("cat", "dog")
    (folder / "label.labels.txt").write_text("dog\ncat\n")
    with pytest.raises(ValueError, match=r"label\.labels\.txt is not the file whose digest"):
        load_prepared(folder)


def test_a_scale_that_no_digest_vouches_for_is_refused(prepare):
    folder = pathlib.Path(prepare(image_and_class, ROWS))
    (folder / "metadata.json").write_text('{"largest_pixel": 16}')
    with pytest.raises(ValueError, match="largest_pixel, but there is no SHA256SUMS"):
        load_prepared(folder)


def test_a_flipped_bit_of_records_without_digests_is_an_error_that_names_their_file(prepare):
    folder = pathlib.Path(prepare(image_and_class, ROWS))
    expected = load_prepared(folder)
    path = folder / "rows-train.array_record-00000-of-00001"
    content = path.read_bytes()
    # The rest of a block of 64 KiB is padding.
    [used] = np.flatnonzero(np.frombuffer(content[:2048], np.uint8))[-1:]
    for at in range(0, int(used), 17):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            found = load_prepared(folder)
        except ValueError as e:
            message, found = str(e), expected
        else:
            message = str(path)
        assert str(path) in message
        np.testing.assert_array_equal(found.train.x, expected.train.x)
        np.testing.assert_array_equal(found.train.targets, expected.train.targets)


@pytest.mark.parametrize("rows", [3, 5, 10**12, 2**62])
def test_rows_that_are_not_in_the_files_are_refused(prepare, rows):
    folder = pathlib.Path(prepare(image_and_class, ROWS))

    def announce(info):
        info["splits"][0]["shardLengths"] = [str(rows)]

    change_json(folder / "dataset_info.json", announce)
    with pytest.raises(ValueError, match=rf"rows-.*00001: it has 4 records; .* says {rows:,}"):
        load_prepared(folder)


def test_images_that_are_not_in_the_files_are_refused(prepare):
    folder = pathlib.Path(prepare(image_and_class, ROWS))

    def announce(info):
        info["featuresDict"]["features"]["image"]["tensor"]["shape"]["dimensions"] = [str(10**12)]

    change_json(folder / "features.json", announce)
    with pytest.raises(ValueError, match=r"announce 4 x \(1000000000000,\) of float32, 16,0"):
        load_prepared(folder)


def test_classes_that_have_no_names_are_refused(prepare):
    folder = pathlib.Path(prepare(image_and_class, ROWS))

    def announce(info):
        info["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = str(10**12)

    change_json(folder / "features.json", announce)
    (folder / "label.labels.txt").unlink()
    with pytest.raises(ValueError, match="'label' has 1,000,000,000,000 classes, but there are 4"):
        load_prepared(folder)


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize("place", ["above", "image"])
def test_no_module_that_features_name_is_imported(prepare, tmp_path, monkeypatch, key, place):
    folder = pathlib.Path(prepare(image_and_class, ROWS))
    (tmp_path / "named_by_a_file.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(str(tmp_path))

    def name(info):
        node = info if place == "above" else info["featuresDict"]["features"]["image"]
        node.pop("pythonClassName")
        node[key] = "named_by_a_file.Feature"

    change_json(folder / "features.json", name)
    with pytest.raises(ValueError, match=r"features\.json: a feature is of the class 'named_by"):
        load_prepared(folder)


@pytest.mark.parametrize("content", ["", "[", "[" * 10**5, '{"splits": 3}', "\xff", "null"])
@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
def test_json_that_is_none_is_named(prepare, name, content):
    folder = pathlib.Path(prepare(image_and_class, ROWS))
    (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        load_prepared(folder)


def test_a_missing_file_of_records_is_named(prepare):
    folder = pathlib.Path(prepare(image_and_class, ROWS))
    (folder / "rows-test.array_record-00000-of-00001").unlink()
    with pytest.raises(OSError, match=r"rows-test\.array_record-00000-of-00001"):
        load_prepared(folder)


@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_more_rows_than_are_read_at_once_are_read(prepare, block_size):
    found = load_prepared(prepare(image_and_class, ROWS), block_size=block_size)
    np.testing.assert_array_equal(found.test.x, [[i] * 3 for i in range(4)])


def test_images_within_the_budget_are_read(prepare):
    def wide(features):
        image = features.Tensor(shape=(50_000,), dtype=np.float32)
        return {**image_and_class(features), "image": image}

    folder = prepare(wide, [{"image": np.zeros(50_000, np.float32), "label": i} for i in (0, 1)])
    with pytest.raises(ValueError, match=r"float32, 400,000 bytes; with max_bytes=400000 they"):
        load_prepared(folder, max_bytes=300_000)
    assert load_prepared(folder, max_bytes=400_000).train.x.shape == (2, 50_000)


def test_what_another_process_prepared_meanwhile_is_taken(tmp_path, monkeypatch):
    def after_another(folder):
        monkeypatch.undo()
        data.load("digits", data_dir=str(tmp_path))
        (finished,) = (tmp_path / "softmax_jax_digits").iterdir()
        assert finished != folder
        (finished / ".mark").touch()
        write_digests(folder)

    monkeypatch.setattr(builders, "write_digests", after_another)
    assert len(data.load("digits", data_dir=str(tmp_path)).train.x) == 1438
    (finished,) = (tmp_path / "softmax_jax_digits").iterdir()
    assert (finished / ".mark").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"softmax_jax_digits", "downloads"}


@pytest.mark.slow
def test_processes_that_prepare_at_the_same_time_have_the_same_data(tmp_path):
    """None of the three fails, and what one has finished is kept."""
    script = (
        "import sys; from softmax_jax import data\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"dataset = data.load('digits', data_dir={str(tmp_path)!r})\n"
        "print(dataset.train.x.sum(), flush=True)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", script], **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    sums = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sums == {f"{data.load('digits', data_dir=str(tmp_path)).train.x.sum()}\n"}
    assert {path.name for path in tmp_path.iterdir()} <= {"softmax_jax_digits", "downloads"}
