"""Full-batch softmax regression to a certified optimum, alone or many at once."""

from softmax_jax.solvers.cross_validation import CrossValidation as CrossValidation
from softmax_jax.solvers.cross_validation import cross_validate as cross_validate
from softmax_jax.solvers.fit import fit as fit
from softmax_jax.solvers.fit import fit_path as fit_path
from softmax_jax.solvers.many import fit_many as fit_many
from softmax_jax.solvers.methods import LBFGS as LBFGS
from softmax_jax.solvers.methods import IterativeMethod as IterativeMethod
from softmax_jax.solvers.methods import LogitsFree as LogitsFree
from softmax_jax.solvers.methods import Method as Method
from softmax_jax.solvers.methods import Newton as Newton
from softmax_jax.solvers.methods import OrthantNewton as OrthantNewton
from softmax_jax.solvers.methods import PathMethod as PathMethod
from softmax_jax.solvers.methods import Proximal as Proximal
from softmax_jax.solvers.methods import ProximalNewton as ProximalNewton
from softmax_jax.solvers.methods import QuasiNewton as QuasiNewton
from softmax_jax.solvers.plan import Plan as Plan
from softmax_jax.solvers.solution import History as History
from softmax_jax.solvers.solution import Progress as Progress
from softmax_jax.solvers.solution import Solution as Solution
from softmax_jax.status import Status as Status
