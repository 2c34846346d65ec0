"""Full-batch softmax regression to a certified optimum, alone or many at once."""

from softmax_jax.solvers._cross_validation import CrossValidation as CrossValidation
from softmax_jax.solvers._cross_validation import cross_validate as cross_validate
from softmax_jax.solvers._fit import fit as fit
from softmax_jax.solvers._fit import fit_path as fit_path
from softmax_jax.solvers._solution import AT_INFINITY as AT_INFINITY
from softmax_jax.solvers._solution import CERTIFIED as CERTIFIED
from softmax_jax.solvers._solution import NOT_CERTIFIED as NOT_CERTIFIED
from softmax_jax.solvers._solution import History as History
from softmax_jax.solvers._solution import Progress as Progress
from softmax_jax.solvers._solution import Solution as Solution
