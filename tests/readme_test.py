import contextlib
import io
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("number", range(4))
def test_the_python_examples_run_as_printed(data_dir, number):
    code = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)[number]
    # TFDS reads its variable once, when it is imported; the argument says the same at any time.
    code = code.replace('data.load("digits")', f'data.load("digits", data_dir={data_dir!r})')
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    if number == 0:
        assert float(re.search(r"'accuracy': ([\d.]+)", printed.getvalue())[1]) >= 0.95
    elif number == 1:
        assert printed.getvalue().startswith("certified 0.0")
        assert "not certified" not in printed.getvalue()


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"(?:experiments|docs|tests)/[\w/.]+\w", TEXT)))
)
def test_the_files_it_names_exist(path):
    assert (ROOT / path).exists()
