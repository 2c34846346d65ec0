"""Codelength: labels in bits, as a file that is decoded exactly, and while the model is learned.

`coding` makes the file, which needs constriction; `online` says how many bits labels take if sender
and receiver learn the model from the labels before.
"""

import importlib
import types
from typing import TYPE_CHECKING

from softmax_jax.codelength.online import Codelength as Codelength
from softmax_jax.codelength.online import block_ends as block_ends
from softmax_jax.codelength.online import control_labels as control_labels
from softmax_jax.codelength.online import refit as refit
from softmax_jax.codelength.online import stream as stream

if TYPE_CHECKING:
    from softmax_jax.codelength import coding as coding


def __getattr__(name: str) -> types.ModuleType:
    if name == "coding":
        return importlib.import_module("softmax_jax.codelength.coding")
    raise AttributeError(f"module 'softmax_jax.codelength' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "coding"})
