"""A model of what work costs, by which the solvers choose between ways to do it.

Costs are floating-point operations at the speed of large products. A byte from memory takes as
long as some of them, which bounds work that does little with each number. Sizes up to which one way
is better than another, and which no cost says, stand here too.
"""

SECOND = 1e11
"""FLOP of a second on two cores."""
BYTE = 6.0
"""FLOP that take as long as a byte from memory: at 16 GB/s."""
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
SMALL_STEP = 5 * LATENCY
"""Cost of a step that is little beside the second that its program takes to compile. Shapes are
rounded up, for problems to share programs, as long as steps cost no more."""
STEPS = 40
"""Steps that a problem takes from no weights."""
STEPS_FROM_NEIGHBOUR = 10
"""Steps that one takes from the solution for a strength nearby."""
STRENGTHS_AT_ONCE = 8
"""Strengths of a path that are solved at once: programs are compiled for multiples of so many."""
SIDE_BY_SIDE = 256
"""Small problems with rows of their own that an accelerator solves in the time of one."""
ON_HOST = 2**16
"""Numbers that stay on the host, where nothing is compiled to look at them: programs fetch as many
in less time than it takes to put the arrays on a device one by one."""
DENSE_PER_ENTRY = 8
"""Dense numbers that are better than a sparse entry. They take less than half the time, by
`GATHER`; and no more than twice the memory or so, as entries are stored by rows and by columns,
with their indices."""
ALWAYS_DENSE = 2**20
"""Dense numbers that are better than sparse entries, however few these are."""
LEAST_SPARSE_ROWS = 2**13
"""Sparse rows of a block at least: blocks should be few, as each adds to all parameters."""
MOST_SPARSE_ROWS = 2**16
"""Sparse rows of a block at most."""


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


def is_better_dense(rows: int, columns: int, entries: int) -> bool:
    """Returns whether sparse rows are dense enough, or few enough, to be stored as dense ones.

    Example:
      >>> is_better_dense(10**6, 1000, 10**8), is_better_dense(10**6, 1000, 2 * 10**8)
      (False, True)
    """
    return rows * columns <= max(DENSE_PER_ENTRY * entries, ALWAYS_DENSE)


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
