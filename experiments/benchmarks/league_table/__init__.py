"""Parts of `league.py`, one idea a module; the docstring of that script says how it measures."""
