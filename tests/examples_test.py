"""The examples in the library's docstrings run, and print what they say."""

import doctest
import enum
import importlib
import inspect
import pathlib
import re

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


def api_pages():
    """Yields the directives of the API page: what they are, of what, and with which options."""
    text = (ROOT / "docs" / "api.md").read_text()
    for kind, name, options in re.findall(r"^\.\. auto(\w+):: (\S+)\n((?: +:.*\n)*)", text, re.M):
        yield kind, name, dict(re.findall(r":([\w-]+): *(.*)", options))


def on_the_page(kind, name, options):
    """Yields what autodoc shows for a directive, by its name."""
    if kind != "module":
        module, _, member = name.rpartition(".")
        yield name, getattr(importlib.import_module(module), member)
    elif "members" in options:
        left_out = options.get("exclude-members", "").split(", ")
        for member, value in vars(importlib.import_module(name)).items():
            imported = getattr(value, "__module__", None) != name
            if member.startswith("_") or member in left_out or inspect.ismodule(value):
                continue
            if inspect.getdoc(value) and ("imported-members" in options or not imported):
                yield f"{name}.{member}", value


def has_behaviour(value):
    """Returns whether it is a function or a class that is no mere NamedTuple, enum or protocol."""
    if inspect.isclass(value):
        is_data = hasattr(value, "_fields") or issubclass(value, enum.Enum)
        return not is_data and not getattr(value, "_is_protocol", False)
    return callable(value)


def functions_by_module():
    found = {}
    for directive in api_pages():
        module = directive[1] if directive[0] == "module" else directive[1].rpartition(".")[0]
        shown = [(name, value) for name, value in on_the_page(*directive) if has_behaviour(value)]
        if shown:
            found.setdefault(module, []).extend(shown)
    return found


FUNCTIONS = functions_by_module()


@pytest.mark.parametrize("module", FUNCTIONS)
def test_every_function_of_the_api_page_has_an_example(module):
    assert [name for name, value in FUNCTIONS[module] if ">>>" not in (value.__doc__ or "")] == []
