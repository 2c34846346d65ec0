"""Settings and versions that the numbers of a run depend on."""

import importlib.metadata
import os
import warnings
from collections.abc import Mapping

import jax

# Settings of JAX that change the numbers of a run, or those that it draws.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
# Packages whose version may change the last digits.
_PACKAGES = ("jax", "jaxlib", "optax")


def settings() -> dict[str, object]:
    """Returns the settings of JAX that change numbers."""
    return {name: getattr(jax.config, name, None) for name in _SETTINGS}


def versions() -> dict[str, str]:
    """Returns versions of packages, with the device and the flags of the compiler."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    flags = os.environ.get("XLA_FLAGS", "")
    return versions | {"device": jax.devices()[0].device_kind, "XLA_FLAGS": repr(flags)}


def refuse_other_settings(saved: Mapping[str, object], step: int, folder: os.PathLike[str]) -> None:
    """Raises a ValueError if a checkpoint was saved under other settings."""
    here = settings()
    other = [name for name in here if here[name] != saved.get(name)]
    if other:
        there = ", ".join(f"{name}={saved.get(name)}" for name in other)
        now = ", ".join(f"{name}={here[name]}" for name in other)
        raise ValueError(
            f"the checkpoint of step {step} in {folder} was saved with {there}, and now it is "
            f"{now}, with which the run would end with other numbers: set it back to go on"
        )


def warn_of_other_versions(saved: Mapping[str, str], step: int, folder: os.PathLike[str]) -> None:
    """Warns if a checkpoint was saved with other versions."""
    here = versions()
    other = [
        f"{name} {saved.get(name, 'unknown')} and now {here[name]}"
        for name in here
        if here[name] != saved.get(name)
    ]
    if other:
        warnings.warn(
            f"the checkpoint of step {step} in {folder} was saved with {'; '.join(other)}: the "
            "last digits may differ from those of a run that was not interrupted",
            stacklevel=3,
        )
