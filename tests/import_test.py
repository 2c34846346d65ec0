import subprocess
import sys

import pytest

HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "matplotlib",
    "sklearn",
    "orbax",
    "ml_collections",
    "torch",
    "PIL",
    "pandas",
)


@pytest.mark.parametrize("module", ["softmax_jax", "softmax_jax.data"])
def test_import_is_light(module):
    code = f"import sys, {module}; print(*sorted(m.split('.')[0] for m in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not set(HEAVY) & set(loaded)
