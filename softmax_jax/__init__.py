"""Softmax regression in pure-functional JAX. Each module is one idea; see its docstring."""

from softmax_jax import _fork as _fork  # takes note of forks from here on
from softmax_jax import head as head
from softmax_jax import information as information
from softmax_jax import io as io
from softmax_jax import losses as losses
from softmax_jax import metrics as metrics
from softmax_jax import model as model
from softmax_jax import training as training
from softmax_jax.data import Data as Data
from softmax_jax.data.shuffle import permutation as permutation
from softmax_jax.data.targets import SparseTargets as SparseTargets
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
