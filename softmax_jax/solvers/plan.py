"""The choices made for a problem, and why: the figures of the `cost` model that it follows from."""

from typing import NamedTuple

import numpy as np
from jax.typing import DTypeLike

from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.methods.components import step_of
from softmax_jax.solvers.methods.method import Method
from softmax_jax.solvers.streamed import StreamedRows


class Plan(NamedTuple):
    """The choices made for a problem; as a string, with the reasons.

    Each choice can be made by the caller: the method and its constants by ``method`` and
    ``l1_method``, such as ``QuasiNewton(few=None, float64_below=0, in_row_space=False)``, blocks by
    ``block_size``.

    Example:
      >>> import numpy as np
      >>> from softmax_jax.solvers import fit
      >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
      >>> print(fit(x, y, l2=0.1).plan)
      Newton in float64 on 64 rows x 4 features x 4 classes, 5.5e+06 FLOP a step
      Newton: the Hessian takes 8.3e+04 FLOP, the rest of a step 5.5e+06
      float64: a pass takes 1.6e+01 multiplications, no more than 1e+07
    """

    method: Method
    """Method and its constants, as decided for this problem."""
    dtype: str
    """Type that it worked in at last: float32 or float64."""
    rows: int
    """Number of rows that programs are compiled for, with those of padding."""
    features: int
    """Number of features, likewise; that of rows where it was solved in their space."""
    classes: int
    """Number of classes, likewise."""
    blocks: int
    """Number of blocks that the rows lie in."""
    flop: float
    """Cost of a step in FLOP, by the model of `cost`."""
    reasons: tuple[str, ...]
    """Reasons for the method, the type, the space if it is that of the rows, and for reading."""

    def __str__(self) -> str:
        name, shape = (
            type(self.method).__name__,
            [
                _counted(number, unit)
                for number, unit in (
                    (self.rows, "row"),
                    (self.features, "feature"),
                    (self.classes, "class"),
                )
            ],
        )
        of_blocks = f" in {self.blocks} blocks" if self.blocks > 1 else ""
        first = (
            f"{name} in {self.dtype} on {' x '.join(shape)}{of_blocks}, {self.flop:.1e} FLOP a step"
        )
        return "\n".join([first, *self.reasons])


def plan_of(inputs: Inputs, method: Method, dtype: DTypeLike, *, is_small: bool) -> Plan:
    """Returns what was chosen.

    Args:
      inputs: the rows.
      method: the one that solved the problem.
      dtype: type that it worked in.
      is_small: whether so little work is in float64 from the start.
    """
    problem, q, name = inputs.problem, inputs.q, np.dtype(dtype).name
    work = inputs.n * inputs.d * q
    if name == "float32":
        why = f"a pass takes {work:.1e} multiplications, more than {method.float64_below:.0e}"
    elif is_small:
        why = f"a pass takes {work:.1e} multiplications, no more than {method.float64_below:.0e}"
    elif inputs.needs_float64:
        why = "offsets are large, or penalties of features differ by orders"
    elif method.always_float64:
        why = "the method always works in it"
    else:
        why = "float32 did not suffice"
    return Plan(
        method=method,
        dtype=name,
        rows=problem.blocks * problem.rows,
        features=problem.d,
        classes=q,
        blocks=problem.blocks,
        flop=step_of(problem, q),
        reasons=(
            f"{type(method).__name__}: {method.reason(inputs)}",
            f"{name}: {why}",
            *([_STORED] if isinstance(problem.x, StreamedRows) else []),
        ),
    )


_STORED = "stored: features take more than max_bytes, and are read in each pass"


def _counted(number: int, unit: str) -> str:
    plural = unit + ("es" if unit.endswith("s") else "s")
    return f"{number:,} {unit if number == 1 else plural}"
