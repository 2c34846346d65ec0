import dataclasses
import itertools
import json
import pathlib
import re
import runpy
import sys

import pytest

from runs import codelength_run, fit_run, flags, script, settings, train_run

CONFIGS = sorted((pathlib.Path(settings.__file__).parents[1] / "configs").glob("*.py"))

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def get_config(path, variant):
    return runpy.run_path(str(path))["get_config"](variant)


def kind(path):
    if path.stem == "head":
        return settings.Head
    if path.stem.startswith("codelength_"):
        return settings.Codelength
    return settings.Fit if path.stem.startswith(("fit_", "path_")) else settings.Train


@each_config
@pytest.mark.parametrize("variant", ["", "smoke"])
def test_a_shipped_config_makes_valid_settings(path, variant):
    made = flags.from_config(get_config(path, variant), kind(path))
    assert isinstance(made, kind(path))
    name = re.sub("^(fit|path)_", "", path.stem).replace("codelength_", "codelength-")
    assert made.title.startswith(name)


@each_config
def test_smoke_is_short(path):
    made = flags.from_config(get_config(path, "smoke"), kind(path))
    if isinstance(made, settings.Train):
        assert made.duration in ("1 epoch", "2 epochs")
    elif isinstance(made, settings.Head):
        assert made.steps <= 20
        assert made.levels**made.features <= 4096
    elif isinstance(made, settings.Codelength):
        assert made.tol >= 0.1
        assert len(made.percent) <= 2
    else:
        assert made.tol >= 0.1
        assert len(made.l2) * len(made.l1) <= 2


@each_config
def test_a_shipped_config_says_what_it_is(path):
    assert runpy.run_path(str(path))["__doc__"].strip()


@each_config
def test_an_unknown_variant_is_refused_with_the_known_ones(path):
    with pytest.raises(ValueError, match="no variant 'smok'; there is smoke"):
        get_config(path, "smok")


def test_there_are_configs():
    stems = {path.stem for path in CONFIGS}
    assert {"classroom", "digits", "mnist", "fashion_mnist"} <= stems
    assert {"fit_digits", "fit_fashion_mnist", "path_fashion_mnist"} <= stems


def test_settings_survive_the_config():
    made = settings.Train(
        data=settings.Data(name="mnist", folder="somewhere", data_dir="elsewhere", memory=0.5),
        seed=3,
        duration="4 epochs",
        batch_size=5,
        optimizer="adam(b1=0.8)",
        learning_rate=0.25,
        schedule="cosine",
        l2=0.5,
        label_smoothing=0.125,
        evaluate_every="10%",
        save_every="7 steps",
        keep_last=3,
        keep_best=0,
        sweep=settings.Sweep(l2=(0.0, 0.5), init_seed=(1, 2), mode="zip", memory=0.5),
    )
    assert flags.from_config(flags.to_config(made)) == made


def test_settings_of_a_fit_survive_the_config():
    made = settings.Fit(
        data=settings.Data(name="mnist", folder="somewhere", data_dir="elsewhere", memory=0.5),
        l2=(0.0, 0.5),
        l1=(0.25,),
        grouped=True,
        tol=1e-6,
        max_passes=7,
    )
    assert flags.from_config(flags.to_config(made), settings.Fit) == made


def test_settings_of_a_codelength_survive_the_config():
    made = settings.Codelength(
        data=settings.Data(name="mnist"), seed=3, l2=0.5, percent=(10, 100), optimizer="sgd"
    )
    assert flags.from_config(flags.to_config(made), settings.Codelength) == made


def test_settings_of_a_fit_survive_json():
    made = settings.Fit(l2=(0.5, 0.25))
    written = json.loads(json.dumps(dataclasses.asdict(made)))
    assert flags.from_config(written, settings.Fit) == made


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.Train().seed = 3


def test_what_a_config_leaves_out_has_its_default():
    assert flags.from_config({"seed": 7}) == settings.Train(seed=7)


def test_an_integer_serves_as_a_float():
    made = flags.from_config({"learning_rate": 1})
    assert made.learning_rate == 1
    assert type(made.learning_rate) is float


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"durations": 3}, "config.durations: there is no such key; did you mean 'duration'?"),
        ({"learning_rat": 3}, "did you mean 'learning_rate'?"),
        ({"xyz": 3}, "config.xyz: there is no such key; known keys: data, mesh, seed, duration"),
        ({"data": {"foldr": ""}}, "config.data.foldr: there is no such key; did you mean 'folder'"),
        ({"seed": 2.0}, "config.seed=2.0 is of type float; expected int"),
        ({"seed": True}, "config.seed=True is of type bool; expected int"),
        ({"duration": 30}, "config.duration=30 is of type int; expected str"),
        ({"duration": "30"}, "config.duration: '30' is no duration"),
        ({"duration": "30 days"}, "give a number and one of steps, epochs, examples, %, seconds"),
        ({"duration": "0 steps"}, "config.duration='0 steps': it must be positive"),
        ({"duration": "50%"}, "must be positive, in steps, epochs, examples"),
        ({"evaluate_every": "5 seconds"}, "must be positive, in steps, epochs, examples, %"),
        ({"save_every": "often"}, "config.save_every: 'often' is no duration"),
        ({"keep_last": 0}, "config.keep_last=0: it must be 1 or more"),
        ({"keep_best": -1}, "config.keep_best=-1: it must be 0 or more"),
        (
            {"sweep": {"l2": (1, 1)}},
            "config.sweep.l2=(1.0, 1.0): it must be of numbers that differ",
        ),
        ({"sweep": {"l2": (-1,)}}, "config.sweep.l2=-1.0: it must be 0 or more"),
        ({"sweep": {"init_seed": (-1,)}}, "config.sweep.init_seed=-1: it must be 0 or more"),
        ({"sweep": {"mode": "zap"}}, "choose one of product, zip (did you mean 'zip'?)"),
        ({"data": {"memory": -1}}, "config.data.memory=-1.0: it must be 0 or more"),
        ({"sweep": {"memory": 0}}, "config.sweep.memory=0.0: it must be positive"),
        (
            {"sweep": {"mode": "zip", "l2": (0, 1), "init_seed": (0, 1, 2)}},
            "to zip them, give equally many of each: {'l2': 2, 'init_seed': 3}",
        ),
        ({"learning_rate": "0.1"}, "config.learning_rate='0.1' is of type str; expected float"),
        ({"learning_rate": True}, "config.learning_rate=True is of type bool; expected float"),
        ({"optimizer": None}, "config.optimizer=None is of type NoneType; expected str"),
        ({"data": {"name": 3}}, "config.data.name=3 is of type int; expected str"),
        ({"data": "digits"}, "config.data='digits' is of type str"),
        ({"seed": -1}, "config.seed=-1: it must be 0 or more"),
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
        ({"label_smoothing": 2}, "config.label_smoothing=2.0: it must be in [0, 1]"),
        ({"label_smoothing": -0.1}, "config.label_smoothing=-0.1: it must be in [0, 1]"),
        ({"optimizer": "adm"}, "yogi (did you mean 'adam'?)"),
        ({"optimizer": "xyz"}, "config.optimizer='xyz': choose one of adabelief, adadelta"),
        ({"optimizer": "adam(beta1=0.5)"}, "adam has the options b1, b2"),
        ({"optimizer": "adam(0.5)"}, "give a name, or name(option=value, ...)"),
        ({"optimizer": "adam(b1=open('x'))"}, "give a name, or name(option=value, ...)"),
        ({"optimizer": "adam("}, "give a name, or name(option=value, ...)"),
        ({"schedule": "cosin"}, "warmup_exponential (did you mean 'cosine'?)"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_bad_config_is_refused_with_a_hint(config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        flags.from_config(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"epochs": 3}, "config.epochs: there is no such key; known keys: data, mesh, l2, l1"),
        ({"max_pases": 3}, "config.max_pases: there is no such key; did you mean 'max_passes'?"),
        ({"l2": 0.1}, "config.l2=0.1 is of type float; expected tuple of float"),
        ({"l2": "many"}, "config.l2='many' is of type str; expected tuple of float"),
        ({"l2": ("many",)}, "config.l2[0]='many' is of type str; expected float"),
        ({"l1": (1, True)}, "config.l1[1]=True is of type bool; expected float"),
        ({"l2": ()}, "config.l2=(): it must be a tuple of one number or more"),
        ({"l2": (1, -1)}, "config.l2=(1.0, -1.0): it must be of numbers that are 0 or more"),
        ({"l2": (float("nan"),)}, "config.l2=(nan,): it must be of numbers that are 0 or more"),
        (
            {"l1": (1e30,)},
            "config.l1=(1e+30,): it must be of numbers that are 0 or more",
        ),
        ({"l2": (1, 2, 1)}, "config.l2=(1.0, 2.0, 1.0): it must be of numbers that differ"),
        ({"grouped": True}, "config.grouped=True: it must be False, as there is no l1"),
        ({"grouped": 1}, "config.grouped=1 is of type int; expected bool"),
        ({"tol": 0}, "config.tol=0.0: it must be above 0 and below 1"),
        ({"tol": 1}, "config.tol=1.0: it must be above 0 and below 1"),
        ({"tol": float("nan")}, "config.tol=nan: it must be above 0"),
        ({"max_passes": 0}, "config.max_passes=0: it must be 1 or more"),
        ({"max_passes": 1e3}, "config.max_passes=1000.0 is of type float; expected int"),
        ({"data": {"foldr": ""}}, "config.data.foldr: there is no such key; did you mean 'folder'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_bad_config_of_a_fit_is_refused_with_a_hint(config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        flags.from_config(config, settings.Fit)


def test_a_strength_that_is_no_tuple_is_refused():
    with pytest.raises(ValueError, match=r"config\.l2=0\.1: it must be a tuple"):
        settings.Fit(l2=0.1)


def test_integers_serve_as_strengths():
    assert flags.from_config({"l2": (1, 0)}, settings.Fit).l2 == (1.0, 0.0)


def test_a_log_grid_has_its_ends_and_one_ratio():
    grid = settings.log_grid(1e-6, 1e-1, 16)
    assert len(grid) == 16
    assert (grid[0], grid[-1]) == (1e-6, 1e-1)
    assert all(type(strength) is float for strength in grid)
    ratios = [after / before for before, after in itertools.pairwise(grid)]
    assert ratios == pytest.approx([10 ** (1 / 3)] * 15)


def recording(cls, reads):
    """A subclass of a dataclass that notes which fields a driver reads."""

    class Recording(cls):
        def __getattribute__(self, name):
            caller = sys._getframe(1).f_code
            path = pathlib.PurePath(caller.co_filename)
            is_reader = path.parent.name == "runs" and path.stem != "settings"
            if is_reader or caller.co_name == "members":
                reads.add(f"{cls.__name__}.{name}")
            return super().__getattribute__(name)

    return Recording


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "experiment", "changes"),
    [
        (settings.Train, train_run.train, {"duration": "1 epoch"}),
        (settings.Fit, fit_run.fit, {"tol": 0.1}),
        (settings.Codelength, codelength_run.codelength, {"tol": 0.1, "percent": (50.0, 100.0)}),
    ],
)
def test_every_setting_is_read(tmp_path, cls, experiment, changes):
    reads = set()
    data = recording(settings.Data, reads)(name="classroom")
    config = recording(cls, reads)(data=data, **changes)
    with script.devices(config):
        experiment(config, tmp_path / "run")
    for group in (cls, settings.Data):
        assert {f"{group.__name__}.{field.name}" for field in dataclasses.fields(group)} <= reads


def test_a_seed_that_would_be_cut_off_is_refused():
    with pytest.raises(ValueError, match="below 2"):
        settings.Train(seed=2**32)
