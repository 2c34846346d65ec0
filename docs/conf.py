"""Sphinx settings. Neither the build nor the pages need a network."""

import re

import softmax_jax

project = "softmax_jax"
author = "The softmax_jax authors"
version = release = softmax_jax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "softmax_jax"
# Single backquotes in docstrings are names of functions and types.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
myst_heading_anchors = 3


def without_aliases(app, what, name, obj, options, lines):
    """Empties the text that Python gives the fields of a NamedTuple: "Alias for field number 0".

    A field without words of its own has them in the docstring of its type.
    """
    if re.fullmatch(r"Alias for field number \d+", "\n".join(lines).strip()):
        lines.clear()


def setup(app):
    """Registers what changes the docstrings."""
    app.connect("autodoc-process-docstring", without_aliases)
