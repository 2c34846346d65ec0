"""Where the experiments keep what TFDS prepares, and the small runs that several tests look at."""

import pytest

import settings


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """Where TFDS keeps what it prepares in this session; the default for subprocesses too."""
    folder = tmp_path_factory.getbasetemp() / "tensorflow_datasets"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        yield str(folder)


@pytest.fixture(scope="session")
def digits(data_dir):
    """A function from some settings to those of a short run on the digits."""

    def make(**changes):
        data = settings.Data(name="digits", data_dir=data_dir)
        return settings.Train(**{"data": data, "epochs": 2, "batch_size": 128, **changes})

    return make
