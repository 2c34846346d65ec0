"""JAX settings that solvers run under, whatever their caller has set."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

import jax

from softmax_jax import parallel

P = ParamSpec("P")
R = TypeVar("R")

# By their names in JAX. They are part of what a program is compiled for.
_HELD: dict[str, bool | str | None] = {
    # Certificates are float64.
    "enable_x64": True,
    # Float64 meets float32, and indices meet one another.
    "numpy_dtype_promotion": "standard",
    # The host looks at the slots and gives them what comes next.
    "transfer_guard_host_to_device": "allow",
    "transfer_guard_device_to_device": "allow",
    "transfer_guard_device_to_host": "allow",
    # Products that need more than the default ask for it.
    "default_matmul_precision": None,
    # Infinity stands for what is not known yet, and the bias of a class of no weight.
    "debug_nans": False,
    "debug_infs": False,
    # Loops are compiled; taken apart they would run for hours.
    "disable_jit": False,
}


@contextlib.contextmanager
def _set(settings: Mapping[str, bool | str | None]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Sets what solvers need, in this thread and until the block ends."""
    with _set(_HELD), parallel.automatic_mesh():
        yield


def under_present_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Returns ``function`` such that it runs under the settings of now, also in a `held` block."""
    present = {name: getattr(jax.config, f"jax_{name}") for name in _HELD}

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> R:
        with _set(present):
            return function(*args, **options)

    return run
