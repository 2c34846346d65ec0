"""The machine, the packages and the revision of the code that a result may depend on."""

import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
import sys

import jax

PACKAGES = ("softmax_jax", "jax", "jaxlib", "optax", "numpy", "orbax-checkpoint")


def describe() -> dict[str, str]:
    """Returns what a result may depend on besides the config, by name."""
    devices = jax.devices()
    return {
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: version(name) for name in PACKAGES},
        "git revision": revision(),
        "command": shlex.join([pathlib.Path(sys.executable).name, *sys.argv]),
    }


def version(package: str) -> str:
    """Returns the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def revision() -> str:
    """Returns the commit of the code, with a mark if there are changes beside it."""
    folder = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        found = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return found.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
