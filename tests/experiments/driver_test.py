import pathlib

import pytest

import driver


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("older")
    driver.write_atomically(path, b"newer")
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
        driver.write_atomically(path, b"newer")
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]
