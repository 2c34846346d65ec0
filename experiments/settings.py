"""The settings of an experiment: a frozen, validated dataclass, the only place of its defaults.

A file in `experiments/configs` overrides some of them and returns the whole as a `ConfigDict`, so
that ``--config.key=value`` can change any; `from_config` turns that back into the dataclass.
"""

import dataclasses
import difflib
import math
import pathlib
import sys
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

OPTIMIZERS = ("sgd", "momentum", "adam")
SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class Data:
    """What to train on; see `softmax_jax.data.load`."""

    name: str = "digits"
    folder: str = ""
    data_dir: str = ""


@dataclasses.dataclass(frozen=True)
class Train:
    """Settings of `experiments/train.py`."""

    data: Data = dataclasses.field(default_factory=Data)
    seed: int = 0
    epochs: int = 30
    batch_size: int = 256
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    schedule: str = "constant"
    """``constant``, or ``cosine`` from the learning rate to zero over the run."""
    l2: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        _require(0 <= self.seed < 2**32, "seed", self.seed, "0 or more and below 2**32")
        _require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        rate = self.learning_rate
        _require(0 < rate < math.inf, "learning_rate", rate, "positive and finite")
        _require(0 <= self.l2 < 1e30, "l2", self.l2, "0 or more, and below 1e30")
        _require(
            0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)"
        )
        _require_choice("optimizer", self.optimizer, OPTIMIZERS)
        _require_choice("schedule", self.schedule, SCHEDULES)


@dataclasses.dataclass(frozen=True)
class Fit:
    """Settings of `experiments/fit.py`. There is no seed, as an optimum depends on none."""

    data: Data = dataclasses.field(default_factory=Data)
    l2: tuple[float, ...] = (1e-4,)
    l1: tuple[float, ...] = (0.0,)
    """Each is paired with every ``l2``."""
    grouped: bool = False
    """Whether ``l1`` weighs the norm of a feature's weights in all classes, not each weight."""
    tol: float = 1e-4
    """The certified gap to stop at, relative to the objective."""
    max_passes: int = 2000
    """Over the training data, for each pair of strengths."""

    def __post_init__(self):
        for key in ("l2", "l1"):
            values = getattr(self, key)
            some = isinstance(values, tuple) and len(values) > 0
            _require(some, key, values, "a tuple of one number or more")
            in_range = all(0 <= value < 1e30 for value in values)
            _require(in_range, key, values, "of numbers that are 0 or more, and below 1e30")
            _require(len(set(values)) == len(values), key, values, "of numbers that differ")
        acts = max(self.l1) > 0
        _require(acts or not self.grouped, "grouped", self.grouped, "False, as there is no l1")
        _require(0 < self.tol < 1, "tol", self.tol, "above 0 and below 1")
        _require(self.max_passes >= 1, "max_passes", self.max_passes, "1 or more")


def log_grid(first: float, last: float, number: int) -> tuple[float, ...]:
    """Strengths with a constant ratio from one to the next."""
    return tuple(np.geomspace(first, last, number).tolist())


def to_config(settings: Train | Fit) -> ConfigDict:
    """The settings as nested `ConfigDict`, for ``--config.key=value``."""
    return ConfigDict(dataclasses.asdict(settings))


def from_config(config: Mapping[str, Any], cls: type = Train, prefix: str = "config") -> Any:
    """The settings of a config, with every key known and every value of its type.

    Raises:
      ValueError: names the key, and for a misspelt one the likeliest meaning.
    """
    try:
        items = dict(config).items()
    except TypeError as e:
        raise ValueError(f"{prefix} cannot be read: {config!r} is no ConfigDict") from e
    types = typing.get_type_hints(cls)
    values = {}
    for key, value in items:
        if key not in types:
            close = difflib.get_close_matches(key, types, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(types)}"
            raise ValueError(f"{prefix}.{key}: there is no such key; {hint}")
        values[key] = _of_type(types[key], value, f"{prefix}.{key}")
    return cls(**values)


def _of_type(expected: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(expected) and isinstance(value, (Mapping, ConfigDict)):
        return from_config(value, typing.cast(type, expected), where)
    name = expected.__name__
    if typing.get_origin(expected) is tuple:
        (item_type, _) = typing.get_args(expected)
        # JSON knows lists only.
        if isinstance(value, (tuple, list)):
            return tuple(_of_type(item_type, item, f"{where}[{i}]") for i, item in enumerate(value))
        name = f"tuple of {item_type.__name__}"
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        raise ValueError(f"{where}={value!r} is of type {type(value).__name__}; expected {name}")
    return value


def _require(condition: bool, key: str, value: Any, what: str) -> None:
    if not condition:
        raise ValueError(f"config.{key}={value!r}: it must be {what}")


def _require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        close = difflib.get_close_matches(value, choices, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ValueError(f"config.{key}={value!r}: choose one of {', '.join(choices)}{hint}")


def parse_flags(argv: list[str], *, default: str) -> list[str]:
    """For `absl.app.run`: without ``--config`` takes the config of the ``default`` name.

    An unknown ``--config.key`` ends in a line with the likeliest key, not in a traceback.
    """
    if not any(argument.split("=")[0] in ("--config", "-config") for argument in argv):
        path = pathlib.Path(__file__).parent / "configs" / f"{default}.py"
        argv = [argv[0], f"--config={path}", *argv[1:]]
    try:
        return flags.FLAGS(argv)
    except flags.Error as e:
        # Of an error in a config file, the last line says what it is.
        text = str(e).strip()
        sys.exit(f"error: {text.splitlines()[-1] if 'Traceback' in text else text}")
    except (AttributeError, KeyError) as e:
        # ConfigDict wraps one error in another; the innermost names the key and the nearest known.
        message: Any = e
        while isinstance(message, Exception):
            message = message.args[0]
        lines = str(message).splitlines()
        is_key = isinstance(e.args[0], KeyError)
        sys.exit(("error: there is no --config key " if is_key else "error: ") + ". ".join(lines))
    except (TypeError, SyntaxError, OSError) as e:
        sys.exit(f"error: the config cannot be read: {e}")


def vary(config: ConfigDict, variant: str, **variants: Mapping[str, Any]) -> ConfigDict:
    """Applies the named variant, as in ``--config=experiments/configs/digits.py:smoke``.

    Raises:
      ValueError: if there is no such variant.
    """
    if not variant:
        return config
    if variant not in variants:
        raise ValueError(f"no variant {variant!r}; there is {', '.join(variants)}")
    config.update(variants[variant])
    return config
