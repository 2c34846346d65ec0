"""Data sets: where they come from and the checks at the door.

Modules that only prepare data sets, `builders` and `idx`, are imported when they are looked up.
"""

import importlib
from types import ModuleType as _ModuleType

from softmax_jax.data.classroom import classroom as classroom
from softmax_jax.data.dataset import Dataset as Dataset
from softmax_jax.data.dataset import from_arrays as from_arrays
from softmax_jax.data.prepared import load_prepared as load_prepared
from softmax_jax.data.shards import open_rows as open_rows
from softmax_jax.data.sources import NAMES as NAMES
from softmax_jax.data.sources import load as load
from softmax_jax.data.sources import load_npz as load_npz
from softmax_jax.data.stored import StoredRows as StoredRows
from softmax_jax.data.stored import concatenated as concatenated
from softmax_jax.data.stored import rows_of_array as rows_of_array
from softmax_jax.data.stored import rows_of_records as rows_of_records
from softmax_jax.data.targets import SparseTargets as SparseTargets
from softmax_jax.data.types import Data as Data
from softmax_jax.data.types import features as features

_MODULES = ("builders", "idx")


def __getattr__(name: str) -> _ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"softmax_jax.data.{name}")
    raise AttributeError(f"module 'softmax_jax.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
