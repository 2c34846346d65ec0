import pathlib

import numpy as np
import pytest

from runs import datasets, files, hints, settings


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("older")
    files.write_atomically(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_older_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    path.write_text("older")

    def fail_halfway(temporary, content):
        temporary.open("wb").close()
        raise OSError("disk full")

    monkeypatch.setattr(pathlib.Path, "write_bytes", fail_halfway)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, b"newer")
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_compressed_data_are_unpacked_as_far_as_config_data_memory_says(tmp_path, capsys):
    path, x, labels = tmp_path / "zeros.npz", np.zeros((1000, 100)), np.arange(1000) % 2
    np.savez_compressed(path, x_train=x, y_train=labels, x_test=x, y_test=labels)
    with pytest.raises(ValueError, match=r"zeros\.npz .* a larger max_bytes allows it"):
        datasets.load(settings.Data(name=str(path), memory=1e-3))
    assert len(datasets.load(settings.Data(name=str(path))).train.x) == 1000
    assert "1,000 training and 1,000 test examples" in capsys.readouterr().out


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_json_has_null_for_what_is_not_finite(value):
    assert files.finite_or_none(value) is None
    assert files.finite_or_none(np.float64(0.5)) == 0.5


def test_a_misspelt_name_is_guessed():
    assert hints.closest("learning_rat", ["seed", "learning_rate"]) == "learning_rate"
    assert hints.did_you_mean("adm", ["adam", "sgd"]) == " (did you mean 'adam'?)"
    assert hints.did_you_mean("xyz", ["adam", "sgd"]) == ""
