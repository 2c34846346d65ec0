"""The examples in the library's docstrings run, and print what they say."""

import doctest
import importlib
import inspect
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "softmax_jax").rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_print_what_they_say(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    # An example that no docstring holds, or one of a function that doctest overlooks, never runs.
    assert result.attempted == inspect.getsource(module).count(">>> ")
    assert result.failed == 0
