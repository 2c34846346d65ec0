"""README and docs: their code runs, and the files and functions that they name are there."""

import ast
import contextlib
import io
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SLOW = {"solvers", "cross_validation", "extending", "head", "calibration", "checkpoints"}


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if page.stem in SLOW else [], id=page.stem)
        for page in PAGES
        if blocks(page)
    ],
)
def test_the_python_examples_run_as_printed(data_dir, page):
    names, printed = {}, io.StringIO()
    for code in blocks(page):
        # TFDS reads its variable once, when it is imported; the argument says so at any time.
        code = code.replace('data.load("digits")', f'data.load("digits", data_dir={data_dir!r})')
        with contextlib.redirect_stdout(printed):
            exec(code, names)
    if page.stem == "README":
        assert printed.getvalue().startswith("certified 0.0")
        assert "not certified" not in printed.getvalue()


def named_files():
    for page in PAGES:
        text = page.read_text()
        yield from re.findall(r"(?:experiments|docs|tests|softmax_jax)/[\w/.]+\.\w+", text)
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if "://" not in target:
                yield str((page.parent / target).resolve().relative_to(ROOT))


@pytest.mark.parametrize("path", sorted(set(named_files())))
def test_the_files_they_name_exist(path):
    assert (ROOT / path).exists()


def named_places():
    for page in PAGES:
        yield from re.findall(r"`([\w/]+\.py:\w+)`", page.read_text())


@pytest.mark.parametrize("place", sorted(set(named_places())))
def test_the_functions_they_name_exist(place):
    path, name = place.split(":")
    root = ROOT if path.startswith("experiments/") else ROOT / "softmax_jax"
    tree = ast.parse((root / path).read_text())
    assert name in {getattr(node, "name", None) for node in tree.body}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
