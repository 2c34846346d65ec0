"""Guesses what a misspelt name was meant to be."""

import difflib
from collections.abc import Iterable


def closest(name: str, choices: Iterable[str]) -> str | None:
    """Returns the choice that is spelt most like ``name``, or None if none is."""
    found = difflib.get_close_matches(name, list(choices), n=1)
    return found[0] if found else None


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns the guess in parentheses, to follow a list of the choices; empty without one."""
    guess = closest(name, choices)
    return "" if guess is None else f" (did you mean {guess!r}?)"
