"""The small runs that several tests look at."""

import pytest

import settings


@pytest.fixture(scope="session")
def digits(data_dir):
    """A function from some settings to those of a short run on the digits."""

    def make(**changes):
        data = settings.Data(name="digits", data_dir=data_dir)
        return settings.Train(**{"data": data, "epochs": 2, "batch_size": 128, **changes})

    return make
