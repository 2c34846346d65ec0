"""Penalties of one vector of weights with a sigmoid, and of one vector a class."""

from softmax_jax._annotations import Scalar
from softmax_jax.checks import checked_strength
from softmax_jax.conventions.strengths import Strengths


def from_sigmoid(l2: Scalar, l1: Scalar = 0.0) -> Strengths:
    r"""Returns the strengths on the softmax of two classes that match those on a vector ``v``.

    A sigmoid of ``x v + c`` is the softmax with ``W = [-v/2, v/2]``, of all that give the same
    probabilities the one with the smallest penalty. There ``|W|² = |v|²/2``, ``|W|_1 = |v|_1``:

    .. math:: \frac{l_2}{2} \|v\|^2 + l_1 \|v\|_1 = \frac{2 l_2}{2} \|W\|^2 + l_1 \|W\|_1.

    A sigmoid is what these fit for two classes: scikit-learn, cuML and Spark (unless told
    ``family="multinomial"``); statsmodels' ``Logit``; glmnet's ``family="binomial"``; cyanure's
    ``loss="logistic"``. The optimal biases are ``[-c/2, c/2]`` up to a common constant.

    Args:
      l2: strength of ``|v|²/2``, at least 0.
      l1: strength of ``|v|_1``, at least 0.

    Raises:
      ValueError: if a strength is negative or not finite.

    Example:
      >>> from softmax_jax.conventions import from_sklearn
      >>> l2, l1 = from_sklearn(0.1, total_weight=1000)  # of two classes
      >>> from_sigmoid(l2, l1)
      Strengths(l2=0.02, l1=0.0)
    """
    return Strengths(l2=2 * checked_strength(l2, "l2"), l1=checked_strength(l1, "l1"))


def to_sigmoid(l2: Scalar, l1: Scalar = 0.0) -> Strengths:
    """Inverts `from_sigmoid`: returns ``l2/2`` and ``l1``, on the single vector ``v``.

    Example:
      >>> from softmax_jax.conventions import to_sklearn
      >>> to_sklearn(*to_sigmoid(l2=0.02), total_weight=1000)
      {'C': 0.1, 'l1_ratio': 0.0}
    """
    return Strengths(l2=checked_strength(l2, "l2") / 2, l1=checked_strength(l1, "l1"))
