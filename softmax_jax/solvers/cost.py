"""A model of what work costs, by which the solvers choose between ways to do it.

Costs are floating-point operations at the speed of large products. A byte from memory takes as
long as some of them, which bounds work that does little with each number.
"""

BYTE = 6.0
"""FLOP that take as long as a byte from memory: 100 GFLOP/s and 16 GB/s on two cores."""
EIGH = 10.0
"""FLOP that take as long as an eigendecomposition of order ``m`` in float32, as a multiple of
``m³``."""
FLOAT64 = 2.0
"""FLOP of float32 that take as long as one of float64."""
LOGIT = 2000.0
"""FLOP that take as long as what a step does with a logit: exponentials of the line search, the
residual, its share of the dual. 20 ns."""
GATHER = 18.0
"""FLOP that take as long as one of a product with sparse rows, which gathers its numbers."""
LATENCY = 5e6
"""FLOP that take as long as the overhead of a step's loops: 50 µs."""


def step(rows: int, numbers: int, q: int) -> float:
    """Returns the cost of a step: a pass forward and back over so many numbers in float32.

    Example:
      >>> step(1000, 1000 * 100, 10)  # bound by memory: features are read twice
      29800000.0
      >>> step(1000, 1000 * 100, 1000)
      2405000000.0
    """
    return LATENCY + LOGIT * rows * q + max(4 * numbers * q, BYTE * 8 * numbers)


def sparse_step(rows: int, entries: int, q: int) -> float:
    """Returns the cost of a step over so many entries of sparse rows.

    Each is a gather of ``q`` numbers, which takes as long as one of eight at least.

    Example:
      >>> sparse_step(1, 1000, 10)
      5740000.0
    """
    return LATENCY + LOGIT * rows * q + GATHER * 4.0 * entries * max(q, 8)


def inverse_hessian(rows: int, order: int) -> float:
    """Returns the cost of a Hessian of so many parameters, and of its inverse by Cholesky.

    Example:
      >>> inverse_hessian(1000, 100)
      24000000.0
    """
    return 2.0 * rows * order**2 + 4.0 * order**3


def orthonormal(rows: int, columns: int) -> float:
    """Returns the cost of making columns orthonormal, by two products with their Gram matrix.

    Example:
      >>> orthonormal(1000, 10)
      800000.0
    """
    return 8.0 * rows * columns**2


def eigenvectors(order: int) -> float:
    """Returns the cost of all eigenvectors of a symmetric matrix in float32.

    Example:
      >>> eigenvectors(100)
      10000000.0
    """
    return EIGH * order**3
