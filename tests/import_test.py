import inspect
import pathlib
import subprocess
import sys
import types

import pytest

import softmax_jax

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


@pytest.mark.slow
def test_annotations_do_without_jaxtyping():
    code = """
import sys
sys.modules["jaxtyping"] = None
import importlib, pkgutil, softmax_jax
for module in pkgutil.walk_packages(softmax_jax.__path__, "softmax_jax."):
    importlib.import_module(module.name)
x, y = [[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1]
print(softmax_jax.fit(x, y, l2=0.1).status)
"""
    run = [sys.executable, "-W", "error", "-c", code]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert printed == "certified\n"


def test_every_public_module_is_reachable_from_the_package():
    folder = pathlib.Path(softmax_jax.__file__).parent
    names = {path.stem for path in folder.iterdir() if path.suffix in ("", ".py")}
    for name in sorted(names):
        if not name.startswith("_"):
            assert isinstance(getattr(softmax_jax, name), types.ModuleType), name
            assert name in dir(softmax_jax)


@pytest.mark.parametrize("name", ["builders", "idx"])
def test_what_prepares_data_is_reachable(name):
    assert isinstance(getattr(softmax_jax.data, name), types.ModuleType)
    assert name in dir(softmax_jax.data)


def test_the_front_doors_are_functions_of_the_package():
    doors = ("fit", "fit_many", "fit_path", "cross_validate", "linear_cross_entropy", "evaluate")
    for name in doors:
        assert inspect.isfunction(inspect.unwrap(getattr(softmax_jax, name))), name
    assert softmax_jax.codelength.coding.compress is not None
    for module in (softmax_jax, softmax_jax.codelength):
        with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
            _ = module.fitt
