"""Settings to and from `ConfigDict`, so that ``--config.key=value`` can change any of them."""

import dataclasses
import pathlib
import sys
import typing
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from runs import hints
from runs.settings import Codelength, Fit, Head, Train


def to_config(settings: Train | Fit | Codelength | Head) -> ConfigDict:
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
            guess = hints.closest(key, types)
            hint = f"did you mean {guess!r}?" if guess else f"known keys: {', '.join(types)}"
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
        try:
            value = float(value)
        except OverflowError as e:
            raise ValueError(f"{where}: an integer of {len(hex(value))} digits is too large") from e
    if type(value) is not expected:
        raise ValueError(f"{where}={value!r} is of type {type(value).__name__}; expected {name}")
    return value


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


def parse(argv: list[str], *, default: str) -> list[str]:
    """Parses flags for `absl.app.run`; without ``--config`` takes the config named ``default``.

    An unknown ``--config.key`` ends in a line with the likeliest key, not in a traceback.
    """
    if not any(argument.split("=")[0] in ("--config", "-config") for argument in argv):
        path = pathlib.Path(__file__).parents[1] / "configs" / f"{default}.py"
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
