"""Annotations as tests of what they say: `conftest.py` has them checked in all of softmax_jax."""

import inspect
from typing import Any, Self

import beartype

# An int is a float, as type checkers have it.
CHECKED_BY = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def checked_on_return(function):
    """Checks a call that returned: its arguments and its result are as annotated.

    A call that refuses its arguments has said so itself, with an error that the tests know. This is
    why `jaxtyping`, which also gives each function without its result, to be checked before it
    runs, gets that back unchecked. Functions within others are not public, and made anew each time.
    """
    returned = inspect.signature(function).return_annotation
    # While JAX maps over a pytree, its fields hold anything.
    of_a_pytree = function.__name__ == "__init__"
    if returned in (Any, Self) or of_a_pytree or "<locals>" in function.__qualname__:
        return function
    return CHECKED_BY(function)
