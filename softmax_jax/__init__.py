"""Softmax regression in pure-functional JAX. Each module is one idea; see its docstring.

`import softmax_jax` needs jax, with its numpy and scipy, and optax. Modules that import more, or
take their time, are imported when they are first looked up, as is what they contribute here: `fit`,
`fit_many`, `fit_path` and `cross_validate`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from softmax_jax import _fork as _fork  # takes note of forks from here on
from softmax_jax import data as data
from softmax_jax import ensemble as ensemble
from softmax_jax import evaluation as evaluation
from softmax_jax import head as head
from softmax_jax import information as information
from softmax_jax import io as io
from softmax_jax import losses as losses
from softmax_jax import metrics as metrics
from softmax_jax import model as model
from softmax_jax import normalizer as normalizer
from softmax_jax import parallel as parallel
from softmax_jax import penalty as penalty
from softmax_jax import training as training
from softmax_jax.data import Data as Data
from softmax_jax.data.shuffle import permutation as permutation
from softmax_jax.data.targets import SparseTargets as SparseTargets
from softmax_jax.evaluation import evaluate as evaluate
from softmax_jax.head import linear_cross_entropy as linear_cross_entropy
from softmax_jax.io import load as load
from softmax_jax.io import save as save
from softmax_jax.losses import cross_entropy as cross_entropy
from softmax_jax.losses import cross_entropy_gradient as cross_entropy_gradient
from softmax_jax.losses import cross_entropy_hessian as cross_entropy_hessian
from softmax_jax.losses import objective as objective
from softmax_jax.losses import objective_gradient as objective_gradient
from softmax_jax.model import ABSTAIN as ABSTAIN
from softmax_jax.model import Params as Params
from softmax_jax.model import init as init
from softmax_jax.model import logits as logits
from softmax_jax.model import predict as predict
from softmax_jax.model import probabilities as probabilities
from softmax_jax.training import TrainState as TrainState

__version__ = "0.1.0"

if TYPE_CHECKING:
    from softmax_jax import calibration as calibration
    from softmax_jax import checkpoint as checkpoint
    from softmax_jax import codelength as codelength
    from softmax_jax import conventions as conventions
    from softmax_jax import estimator as estimator
    from softmax_jax import figures as figures
    from softmax_jax import solvers as solvers
    from softmax_jax.solvers import cross_validate as cross_validate
    from softmax_jax.solvers import fit_many as fit_many
    from softmax_jax.solvers import fit_path as fit_path
    from softmax_jax.solvers.fit import fit as fit

_MODULES = (
    "calibration",
    "checkpoint",
    "codelength",
    "conventions",
    "estimator",
    "figures",
    "solvers",
)
_OF_SOLVERS = ("cross_validate", "fit", "fit_many", "fit_path")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"softmax_jax.{name}")
    if name in _OF_SOLVERS:
        return getattr(importlib.import_module("softmax_jax.solvers"), name)
    raise AttributeError(f"module 'softmax_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_OF_SOLVERS})
