"""Algorithms of the solvers, one a module; see `Method` for their duties."""

from softmax_jax.solvers.methods.components import Sizes as Sizes
from softmax_jax.solvers.methods.lbfgs import LBFGS as LBFGS
from softmax_jax.solvers.methods.logits_free import LogitsFree as LogitsFree
from softmax_jax.solvers.methods.method import IterativeMethod as IterativeMethod
from softmax_jax.solvers.methods.method import Method as Method
from softmax_jax.solvers.methods.method import PathMethod as PathMethod
from softmax_jax.solvers.methods.method import Setup as Setup
from softmax_jax.solvers.methods.newton import Newton as Newton
from softmax_jax.solvers.methods.orthant_newton import OrthantNewton as OrthantNewton
from softmax_jax.solvers.methods.proximal import Proximal as Proximal
from softmax_jax.solvers.methods.proximal_newton import ProximalNewton as ProximalNewton
from softmax_jax.solvers.methods.quasi_newton import QuasiNewton as QuasiNewton

METHODS: dict[str, Method] = {
    "quasi-newton": QuasiNewton(),
    "newton": Newton(),
    "lbfgs": LBFGS(),
    "logits-free": LogitsFree(),
    "orthant-newton": OrthantNewton(),
    "proximal": Proximal(),
    "proximal-newton": ProximalNewton(),
}
"""Methods by name, with the constants they come with."""
SMOOTH = ("quasi-newton", "newton", "lbfgs", "logits-free")
"""Names of those for l1 = 0."""
SHARP = ("orthant-newton", "proximal", "proximal-newton")
"""Names of those for l1 > 0."""
DEFAULT, DEFAULT_L1 = SMOOTH[0], SHARP[0]


def method_of(method: "str | Method", names: tuple[str, ...], argument: str) -> Method:
    """Returns a method by name, or the one that is given.

    Raises:
      ValueError: if the name is none of ``names``.
    """
    if isinstance(method, Method):
        return method
    if method not in names:
        raise ValueError(f"{argument}: {method!r}; expected one of {', '.join(names)}")
    return METHODS[method]
