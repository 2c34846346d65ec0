"""The persistent compilation cache: what one process compiled, the next one reads from disk."""

import os
import pathlib

import jax

MAX_BYTES = 2**30
"""Size above which the programs that were not used for the longest time are dropped."""


def use_cache(*, max_bytes: int = MAX_BYTES) -> None:
    """Makes JAX keep all compiled programs on disk, unless its own settings say where or whether.

    The folder is ``$XDG_CACHE_HOME/softmax_jax/compiled``, by default that in ``~/.cache``.
    """
    folder = cache_folder()
    given = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if given or folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", max_bytes)
    # Most programs of a small run compile faster than JAX finds worth keeping.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cache_folder() -> pathlib.Path | None:
    """Returns the folder of the cache, or None where there is no home."""
    given = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        root = given if given.is_absolute() else pathlib.Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "softmax_jax" / "compiled"
