r"""Strengths of the penalty in the words of other packages, and back.

Here, ``F(W, b) = L / S + l2/2 |W|² + l1 |W|_1`` with ``L = Σ_i s_i l_i`` in nats, ``S = Σ_i s_i``
and a free bias; see `softmax_jax.losses.objective`. Others scale the loss or the penalty
differently. With ``R_ρ(W) = (1 - ρ)/2 |W|² + ρ |W|_1`` over ``n`` rows, they minimise

============================================  ===========================  ====================
package                                       objective                    strength
============================================  ===========================  ====================
scikit-learn ``LogisticRegression(C)``        ``C L + R_ρ(W)``             ``1 / (C S)``
cuML ``LogisticRegression(C)``                ``C L + R_ρ(W)``             ``1 / (C n)``
scikit-learn ``SGDClassifier(alpha)``         ``L / n + alpha R_ρ(W)``     ``alpha n / S``
glmnet ``lambda``, ``alpha`` = ρ              ``L / S + lambda R_ρ(W)``    ``lambda``
adelie ``lmda``, ``alpha`` = ρ, in groups     ``L / (q S)`` + its penalty  see `from_adelie`
Spark ML ``regParam``                         ``L / S + regParam R_ρ(W)``  ``regParam``
cyanure ``Classifier(lambda_1, lambda_2)``    ``L / n`` + its penalty      see `from_cyanure`
statsmodels ``fit_regularized(alpha)``        ``L + alpha |W|_1``          ``l1 = alpha / n``
``weight_decay`` of torch and optax           ``L / S + decay/2 |W|²``     ``l2 = weight_decay``
============================================  ===========================  ====================

and ``l2 = (1 - ρ) strength``, ``l1 = ρ strength``. ``from_*`` takes a package's parameters and
``to_*`` returns them by their own names, as keyword arguments for that package::

    strengths = conventions.from_sklearn(0.1, total_weight=len(x))
    value = losses.objective(params, x, labels, **strengths._asdict())
    peer = LogisticRegression(**conventions.to_sklearn(l2=1e-3, total_weight=len(x)))

Numbers go in and Python floats come out. A strength and a ratio hold ``l2`` to about 1e-16 of
``l2 + l1``, no better.

**Two classes.** For two classes most packages fit one vector of weights with a sigmoid, instead of
one vector a class. Its penalty is another one, and `from_sigmoid` and `to_sigmoid` go between::

    strengths = conventions.from_sigmoid(*conventions.from_sklearn(0.1, total_weight=len(x)))

**Decoupled weight decay** (AdamW) has no objective of this form: the decay is not divided by the
scale that Adam divides the gradient by, so where it ends depends on the optimiser; see
`from_weight_decay`.
"""

from softmax_jax.conventions.packages import from_adelie as from_adelie
from softmax_jax.conventions.packages import from_cuml as from_cuml
from softmax_jax.conventions.packages import from_cyanure as from_cyanure
from softmax_jax.conventions.packages import from_glmnet as from_glmnet
from softmax_jax.conventions.packages import from_sgd_classifier as from_sgd_classifier
from softmax_jax.conventions.packages import from_sklearn as from_sklearn
from softmax_jax.conventions.packages import from_spark as from_spark
from softmax_jax.conventions.packages import from_statsmodels as from_statsmodels
from softmax_jax.conventions.packages import from_weight_decay as from_weight_decay
from softmax_jax.conventions.packages import to_adelie as to_adelie
from softmax_jax.conventions.packages import to_cuml as to_cuml
from softmax_jax.conventions.packages import to_cyanure as to_cyanure
from softmax_jax.conventions.packages import to_glmnet as to_glmnet
from softmax_jax.conventions.packages import to_sgd_classifier as to_sgd_classifier
from softmax_jax.conventions.packages import to_sklearn as to_sklearn
from softmax_jax.conventions.packages import to_spark as to_spark
from softmax_jax.conventions.packages import to_statsmodels as to_statsmodels
from softmax_jax.conventions.packages import to_weight_decay as to_weight_decay
from softmax_jax.conventions.strengths import Strengths as Strengths
from softmax_jax.conventions.two_classes import from_sigmoid as from_sigmoid
from softmax_jax.conventions.two_classes import to_sigmoid as to_sigmoid
