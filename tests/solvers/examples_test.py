"""The examples in the docstrings of the solvers run, and print what they say."""

import doctest

import numpy as np
import pytest

from softmax_jax import model, solvers


@pytest.mark.parametrize("name", ["fit", "fit_path", "cross_validate"])
def test_examples(name):
    globs = {"np": np, "model": model, **{n: getattr(solvers, n) for n in solvers.__dict__}}
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(solvers, name), name, globs=globs)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
