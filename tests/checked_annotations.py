"""Annotations as tests of what they say: `conftest.py` has them checked in all of softmax_jax."""

import inspect
from typing import Any

import beartype


def checked_on_return(function):
    """Checks a call that returned: its arguments and its result are as annotated.

    A call that refuses its arguments has said so itself, with an error that the tests know. This is
    why `jaxtyping`, which also gives each function without its result, to be checked before it
    runs, gets that back unchecked. Functions within others are not public, and made anew each time.
    """
    before_it_runs = inspect.signature(function).return_annotation is Any
    if before_it_runs or "<locals>" in function.__qualname__:
        return function
    return beartype.beartype(function)
