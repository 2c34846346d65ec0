import dataclasses
import pathlib
import re
import runpy
import sys

import pytest

import settings
import train

CONFIGS = sorted((pathlib.Path(settings.__file__).parent / "configs").glob("*.py"))

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def get_config(path, variant):
    return runpy.run_path(str(path))["get_config"](variant)


@each_config
@pytest.mark.parametrize("variant", ["", "smoke"])
def test_a_shipped_config_makes_valid_settings(path, variant):
    made = settings.from_config(get_config(path, variant))
    assert isinstance(made, settings.Train)
    assert made.data.name == path.stem


@each_config
def test_smoke_is_short(path):
    assert settings.from_config(get_config(path, "smoke")).epochs <= 2


@each_config
def test_a_shipped_config_says_what_it_is(path):
    assert runpy.run_path(str(path))["__doc__"].strip()


@each_config
def test_an_unknown_variant_is_refused_with_the_known_ones(path):
    with pytest.raises(ValueError, match="no variant 'smok'; there is smoke"):
        get_config(path, "smok")


def test_there_are_configs():
    assert {"classroom", "digits", "mnist", "fashion_mnist"} <= {path.stem for path in CONFIGS}


def test_settings_survive_the_config():
    made = settings.Train(
        data=settings.Data(name="mnist", folder="somewhere", data_dir="elsewhere"),
        seed=3,
        epochs=4,
        batch_size=5,
        optimizer="adam",
        learning_rate=0.25,
        schedule="cosine",
        l2=0.5,
        label_smoothing=0.125,
    )
    assert settings.from_config(settings.to_config(made)) == made


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.Train().epochs = 3


def test_what_a_config_leaves_out_has_its_default():
    assert settings.from_config({"epochs": 7}) == settings.Train(epochs=7)


def test_an_integer_serves_as_a_float():
    made = settings.from_config({"learning_rate": 1})
    assert made.learning_rate == 1
    assert type(made.learning_rate) is float


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epoch": 3}, "config.epoch: there is no such key; did you mean 'epochs'?"),
        ({"learning_rat": 3}, "did you mean 'learning_rate'?"),
        ({"xyz": 3}, "config.xyz: there is no such key; known keys: data, seed, epochs"),
        ({"data": {"foldr": ""}}, "config.data.foldr: there is no such key; did you mean 'folder'"),
        ({"epochs": 2.0}, "config.epochs=2.0 is of type float; expected int"),
        ({"epochs": True}, "config.epochs=True is of type bool; expected int"),
        ({"learning_rate": "0.1"}, "config.learning_rate='0.1' is of type str; expected float"),
        ({"learning_rate": True}, "config.learning_rate=True is of type bool; expected float"),
        ({"optimizer": None}, "config.optimizer=None is of type NoneType; expected str"),
        ({"data": {"name": 3}}, "config.data.name=3 is of type int; expected str"),
        ({"data": "digits"}, "config.data='digits' is of type str"),
        ({"seed": -1}, "config.seed=-1: it must be 0 or more"),
        ({"epochs": 0}, "config.epochs=0: it must be 1 or more"),
        ({"batch_size": 0}, "config.batch_size=0: it must be 1 or more"),
        ({"learning_rate": 0}, "config.learning_rate=0.0: it must be positive"),
        ({"learning_rate": -1}, "config.learning_rate=-1.0: it must be positive"),
        ({"learning_rate": float("nan")}, "config.learning_rate=nan: it must be positive"),
        (
            {"learning_rate": float("inf")},
            "config.learning_rate=inf: it must be positive and finite",
        ),
        ({"l2": -1e-9}, "config.l2=-1e-09: it must be 0 or more"),
        ({"l2": float("nan")}, "config.l2=nan: it must be 0 or more"),
        ({"l2": float("inf")}, "config.l2=inf: it must be 0 or more, and below 1e30"),
        ({"label_smoothing": 1}, "config.label_smoothing=1.0: it must be in [0, 1)"),
        ({"label_smoothing": -0.1}, "config.label_smoothing=-0.1: it must be in [0, 1)"),
        ({"optimizer": "adm"}, "choose one of sgd, momentum, adam (did you mean 'adam'?)"),
        ({"optimizer": "xyz"}, "config.optimizer='xyz': choose one of sgd, momentum, adam"),
        ({"schedule": "cosin"}, "choose one of constant, cosine (did you mean 'cosine'?)"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_bad_config_is_refused_with_a_hint(config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.from_config(config)


def recording(cls, reads):
    """A subclass of a dataclass that notes which fields ``train`` reads."""

    class Recording(cls):
        def __getattribute__(self, name):
            if sys._getframe(1).f_globals["__name__"] == "train":
                reads.add(f"{cls.__name__}.{name}")
            return super().__getattribute__(name)

    return Recording


def test_every_setting_is_read(tmp_path):
    reads = set()
    data = recording(settings.Data, reads)(name="classroom")
    config = recording(settings.Train, reads)(data=data, epochs=1, schedule="cosine")
    train.train(config, tmp_path / "run")
    for cls in (settings.Train, settings.Data):
        assert {f"{cls.__name__}.{field.name}" for field in dataclasses.fields(cls)} <= reads


def test_a_seed_that_would_be_cut_off_is_refused():
    with pytest.raises(ValueError, match="below 2"):
        settings.Train(seed=2**32)
