r"""Softmax regression with scikit-learn's interface, solved to a certified optimum.

Both estimators minimise this library's objective, the mean loss in nats plus the penalty,

.. math:: F(W, b) = \frac{\sum_i s_i l_i}{\sum_i s_i} + \frac{l_2}{2} |W|^2 + l_1 \|W\|_1,

with a free bias, by `softmax_jax.solvers`. Strengths are per mean loss, not per sum of losses as
scikit-learn's ``C``: `softmax_jax.conventions.from_sklearn` translates, ``l2 = 1 / (C n)`` for
unit weights. For two classes scikit-learn has one vector of weights, and this library one for each
class, as for more: see `softmax_jax.conventions.from_sigmoid`.

Features are dense or SciPy sparse; sparse ones stay so unless they are dense or few, and dense ones
keep their type (uint8, float32, ...). Weights and predictions are float32 for features of float32
or narrower floats, and float64 for others. With scikit-learn's ``array_api_dispatch`` they are
arrays of the kind, and on the device, of the features that the estimator was fitted to.
"""

from softmax_jax.estimator._cross_validated import SoftmaxRegressionCV as SoftmaxRegressionCV
from softmax_jax.estimator._single import SoftmaxRegression as SoftmaxRegression
