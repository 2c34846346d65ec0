"""Strengths in the words of other packages, and back."""

from softmax_jax._annotations import Scalar
from softmax_jax.checks import checked_count, checked_strength
from softmax_jax.conventions.strengths import (
    Strengths,
    checked_ratio,
    checked_total,
    elastic_net,
    from_inverse,
    strength_and_ratio,
    to_inverse,
)


def from_sklearn(C: Scalar, *, l1_ratio: Scalar = 0.0, total_weight: Scalar) -> Strengths:
    r"""Returns the strengths of scikit-learn's ``LogisticRegression(C)``.

    .. math:: l_2 = \frac{1 - \rho}{C \sum_i s_i}, \qquad l_1 = \frac{\rho}{C \sum_i s_i}

    Its ``C`` multiplies the loss: it minimises ``C L + R_ρ(W)``, and doubling all weights is
    doubling ``C``. ``solver="liblinear"`` penalises the bias as well: without one
    (``fit_intercept=False``) it matches. For two classes see `from_sigmoid`.

    Args:
      C: positive; ``inf`` is no penalty.
      l1_ratio: ``ρ`` in [0, 1]. Before scikit-learn 1.8 it only counts with
        ``penalty="elasticnet"``.
      total_weight: ``S = Σ_i s_i``, of the sample weights times the class weights; ``n`` if there
        are none.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> from_sklearn(0.1, total_weight=1000)
      Strengths(l2=0.01, l1=0.0)
    """
    return from_inverse(C, l1_ratio, checked_total("total_weight", total_weight))


def to_sklearn(l2: Scalar, l1: Scalar = 0.0, *, total_weight: Scalar) -> dict[str, float]:
    """Returns ``C`` and ``l1_ratio``; `from_sklearn` explains the arguments.

    An ``l1_ratio`` above 0 needs ``solver="saga"``.

    Example:
      >>> to_sklearn(l2=0.01, total_weight=1000)
      {'C': 0.1, 'l1_ratio': 0.0}
    """
    return to_inverse(l2, l1, checked_total("total_weight", total_weight))


def from_cuml(C: Scalar, *, l1_ratio: Scalar = 0.0, num_examples: Scalar) -> Strengths:
    r"""Returns the strengths of cuML's ``LogisticRegression``: ``(1 - ρ) / (C n)``, ``ρ / (C n)``.

    It divides both the loss and ``1/C`` by the number of rows, which makes its ``C`` that of
    scikit-learn. Where ``penalty_normalized=False`` keeps ``1/C`` undivided, ``num_examples`` is 1.
    Only for examples of weight one: with others, its loss and its gradient are scaled differently.

    Args:
      C: positive; ``inf`` is no penalty.
      l1_ratio: ``ρ`` in [0, 1], which cuML only reads with ``penalty="elasticnet"``.
      num_examples: ``n``.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> from_cuml(0.1, num_examples=1000)
      Strengths(l2=0.01, l1=0.0)
    """
    return from_inverse(C, l1_ratio, checked_total("num_examples", num_examples))


def to_cuml(l2: Scalar, l1: Scalar = 0.0, *, num_examples: Scalar) -> dict[str, float]:
    """Returns ``C`` and ``l1_ratio`` for cuML; give it ``penalty="elasticnet"`` with them.

    Example:
      >>> to_cuml(l2=0.01, num_examples=1000)
      {'C': 0.1, 'l1_ratio': 0.0}
    """
    return to_inverse(l2, l1, checked_total("num_examples", num_examples))


def from_sgd_classifier(
    alpha: Scalar, *, l1_ratio: Scalar = 0.0, mean_weight: Scalar = 1.0
) -> Strengths:
    r"""Returns the strengths of scikit-learn's ``SGDClassifier(loss="log_loss")``, of two classes.

    .. math:: l_2 = (1 - \rho) \, \alpha n / \sum_i s_i, \qquad l_1 = \rho \, \alpha n / \sum_i s_i

    It divides by the number of rows, whatever they weigh. These are strengths on the single vector
    of a sigmoid, see `from_sigmoid`; more classes it fits one against the rest, which is no
    softmax.

    Args:
      alpha: at least 0.
      l1_ratio: ``ρ`` in [0, 1], which it only reads with ``penalty="elasticnet"``: 0 is its
        ``penalty="l2"``, 1 its ``penalty="l1"``.
      mean_weight: ``Σ_i s_i / n``, of the sample weights times the class weights.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> from_sgd_classifier(1e-4)
      Strengths(l2=0.0001, l1=0.0)
      >>> from_sgd_classifier(1e-4, mean_weight=2.0)  # the penalty weighs half as much
      Strengths(l2=5e-05, l1=0.0)
    """
    alpha = checked_strength(alpha, "alpha")
    return elastic_net(
        alpha / checked_total("mean_weight", mean_weight), checked_ratio("l1_ratio", l1_ratio)
    )


def to_sgd_classifier(
    l2: Scalar, l1: Scalar = 0.0, *, mean_weight: Scalar = 1.0
) -> dict[str, float]:
    """Returns ``alpha`` and ``l1_ratio`` for ``SGDClassifier(penalty="elasticnet")``.

    Example:
      >>> to_sgd_classifier(l2=1e-4)
      {'alpha': 0.0001, 'l1_ratio': 0.0}
    """
    strength, ratio = strength_and_ratio(l2, l1)
    return {"alpha": strength * checked_total("mean_weight", mean_weight), "l1_ratio": ratio}


def from_glmnet(lambda_: Scalar, alpha: Scalar = 1.0) -> Strengths:
    r"""Returns the strengths of glmnet, which scales as this library does.

    .. math:: l_2 = (1 - \alpha) \lambda, \qquad l_1 = \alpha \lambda

    for ``standardize=FALSE`` and ``type.multinomial="ungrouped"``. Its default
    ``standardize=TRUE`` penalises ``σ_j w_j`` instead of ``w_j``, with ``σ_j`` the standard
    deviation of feature ``j`` (over ``S``, not ``S - 1``): as ``standardize=True`` of
    `softmax_jax.solvers` and `softmax_jax.estimator` does. For ``family="binomial"`` see
    `from_sigmoid`.

    Its ``penalty.factor`` is our ``penalty_factor``, but glmnet divides it by its mean first, over
    features that are not left out; ``exclude`` are factors of ``inf``, ``lower.limits`` and
    ``upper.limits`` are ``lower`` and ``upper``, ``nlambda`` and ``lambda.min.ratio`` are
    ``strengths`` and ``weakest``, ``relax=TRUE`` with ``gamma=0`` is ``relax=True``, and
    ``dev.ratio`` is `Solution.deviance_explained`.

    Args:
      lambda_: at least 0; R's name is ``lambda``.
      alpha: in [0, 1]; 1, all l1, is glmnet's default.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> from_glmnet(0.01)  # the lasso, unless it is told otherwise
      Strengths(l2=0.0, l1=0.01)
      >>> from_glmnet(0.01, alpha=0.5)
      Strengths(l2=0.005, l1=0.005)
    """
    return elastic_net(checked_strength(lambda_, "lambda_"), checked_ratio("alpha", alpha))


def to_glmnet(l2: Scalar, l1: Scalar = 0.0) -> dict[str, float]:
    """Returns ``lambda_`` and ``alpha``, which `from_glmnet` explains.

    Example:
      >>> to_glmnet(l2=0.005, l1=0.005)
      {'lambda_': 0.01, 'alpha': 0.5}
    """
    strength, ratio = strength_and_ratio(l2, l1)
    return {"lambda_": strength, "alpha": ratio}


def from_adelie(lmda: Scalar, alpha: Scalar = 1.0, *, num_classes: int) -> Strengths:
    r"""Returns the strengths of adelie's ``grpnet`` with ``glm.multinomial``, for ``grouped=True``.

    .. math:: \min \frac{L}{q S} + \lambda \sqrt q\, \Big(\alpha \sum_j \|W_j\|
        + \frac{1 - \alpha}{2} \|W\|^2\Big), \qquad
        l_2 = (1 - \alpha)\, \lambda\, q^{3/2}, \qquad l_1 = \alpha\, \lambda\, q^{3/2}

    Its groups have the weights of one feature for all classes, or of several features, and the
    penalty of a group is by default multiplied by the root of its size, which is q here. With
    ``glm.binomial`` nothing is multiplied, and `from_sigmoid` is the other half. Our
    ``penalty_factor`` is its ``penalty`` over :math:`\sqrt q`.

    Args:
      lmda: ``λ``, at least 0.
      alpha: in [0, 1]; 1, all l1, is adelie's default.
      num_classes: ``q``.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> from_adelie(0.01, num_classes=4)
      Strengths(l2=0.0, l1=0.08)
    """
    strength = checked_strength(lmda, "lmda") * checked_count(num_classes, "num_classes") ** 1.5
    return elastic_net(strength, checked_ratio("alpha", alpha))


def to_adelie(l2: Scalar, l1: Scalar = 0.0, *, num_classes: int) -> dict[str, float]:
    """Returns ``lmda`` and ``alpha``, which `from_adelie` explains.

    ``grpnet`` takes several of the former, as ``lmda_path``.

    Example:
      >>> to_adelie(l2=0.0, l1=0.08, num_classes=4)
      {'lmda': 0.01, 'alpha': 1.0}
    """
    strength, ratio = strength_and_ratio(l2, l1)
    return {"lmda": strength / checked_count(num_classes, "num_classes") ** 1.5, "alpha": ratio}


def from_spark(regParam: Scalar, elasticNetParam: Scalar = 0.0) -> Strengths:
    r"""Returns the strengths of Spark ML's ``LogisticRegression``, which scales as this library.

    .. math:: l_2 = (1 - \rho) \lambda, \qquad l_1 = \rho \lambda

    for ``standardization=False``. Its default ``standardization=True`` penalises ``σ_j w_j``
    instead of ``w_j``, with ``σ_j`` the standard deviation of feature ``j`` (over ``n - 1``):
    divide the columns of ``x`` by ``σ`` for the same here; or give ``standardize=True`` of
    `softmax_jax.solvers`, where ``σ_j`` is over ``n``, ``l2`` times ``n / (n - 1)`` and ``l1``
    times the root of that. For two classes see `from_sigmoid`.

    Args:
      regParam: ``λ``, at least 0.
      elasticNetParam: ``ρ`` in [0, 1].

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> from_spark(0.5, elasticNetParam=0.25)
      Strengths(l2=0.375, l1=0.125)
    """
    return elastic_net(
        checked_strength(regParam, "regParam"), checked_ratio("elasticNetParam", elasticNetParam)
    )


def to_spark(l2: Scalar, l1: Scalar = 0.0) -> dict[str, float]:
    """Returns ``regParam`` and ``elasticNetParam`` for Spark with ``standardization=False``.

    Example:
      >>> to_spark(l2=0.375, l1=0.125)
      {'regParam': 0.5, 'elasticNetParam': 0.25}
    """
    strength, ratio = strength_and_ratio(l2, l1)
    return {"regParam": strength, "elasticNetParam": ratio}


def from_cyanure(lambda_1: Scalar, lambda_2: Scalar = 0.0, *, penalty: str = "l2") -> Strengths:
    r"""Returns the strengths of cyanure's ``Classifier``, of l2 or of l1 by ``penalty``.

    ===============  ===========================================
    ``penalty``      added to the mean loss
    ===============  ===========================================
    ``l2``           ``lambda_1/2 |W|²``
    ``l1``           ``lambda_1 |W|_1``
    ``elasticnet``   ``lambda_1 |W|_1 + lambda_2/2 |W|²``
    ===============  ===========================================

    The softmax is its ``loss="multiclass-logistic"``. ``loss="logistic"``, the one of its
    ``LogisticRegression``, is a sigmoid, see `from_sigmoid`; more than two classes it fits one
    against the rest.

    Args:
      lambda_1: at least 0.
      lambda_2: at least 0; read with ``penalty="elasticnet"`` only.
      penalty: one of the table.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> from_cyanure(0.1, penalty="l1")
      Strengths(l2=0.0, l1=0.1)
      >>> from_cyanure(0.1, 0.2, penalty="elasticnet")
      Strengths(l2=0.2, l1=0.1)
    """
    lambda_1, lambda_2 = (
        checked_strength(lambda_1, "lambda_1"),
        checked_strength(lambda_2, "lambda_2"),
    )
    if penalty == "l2":
        return Strengths(l2=lambda_1, l1=0.0)
    if penalty == "l1":
        return Strengths(l2=0.0, l1=lambda_1)
    if penalty == "elasticnet":
        return Strengths(l2=lambda_2, l1=lambda_1)
    raise ValueError(
        f"penalty must be 'l2', 'l1' or 'elasticnet', got {penalty!r}: cyanure's other penalties "
        "have no match here"
    )


def to_cyanure(l2: Scalar, l1: Scalar = 0.0) -> dict[str, float | str]:
    """Returns ``lambda_1``, ``lambda_2`` and ``penalty``, which `from_cyanure` explains.

    Example:
      >>> to_cyanure(l2=0.2, l1=0.1)
      {'penalty': 'elasticnet', 'lambda_1': 0.1, 'lambda_2': 0.2}
    """
    l2, l1 = checked_strength(l2, "l2"), checked_strength(l1, "l1")
    if l1 == 0:
        return {"penalty": "l2", "lambda_1": l2, "lambda_2": 0.0}
    if l2 == 0:
        return {"penalty": "l1", "lambda_1": l1, "lambda_2": 0.0}
    return {"penalty": "elasticnet", "lambda_1": l1, "lambda_2": l2}


def from_statsmodels(alpha: Scalar, *, num_examples: Scalar) -> Strengths:
    r"""Returns the strength of statsmodels' ``MNLogit`` and ``Logit.fit_regularized(alpha=...)``.

    .. math:: l_1 = \alpha / n, \qquad l_2 = 0,

    as ``alpha`` goes with the sum of the losses. It also penalises the constant: give it an array,
    0 for the constant and ``alpha`` elsewhere. ``MNLogit`` holds the weights of the first class at
    zero and pays for the differences from it, so its optimum is that of `objective` among the
    ``W`` and ``b`` with a first column of zeros, not over all of them. ``Logit`` is a sigmoid, see
    `from_sigmoid`. (``GLM.fit_regularized`` is another function, which scales as glmnet does.)

    Args:
      alpha: at least 0.
      num_examples: ``n``; there are no weights.

    Raises:
      ValueError: if an argument is out of its range.

    Example:
      >>> from_statsmodels(1.0, num_examples=100)
      Strengths(l2=0.0, l1=0.01)
    """
    alpha = checked_strength(alpha, "alpha")
    return Strengths(l2=0.0, l1=alpha / checked_total("num_examples", num_examples))


def to_statsmodels(l2: Scalar, l1: Scalar = 0.0, *, num_examples: Scalar) -> dict[str, float]:
    """Returns ``alpha`` for `from_statsmodels`.

    Raises:
      ValueError: if ``l2`` is above 0, as statsmodels has an l1 penalty only.

    Example:
      >>> to_statsmodels(l2=0.0, l1=0.01, num_examples=100)
      {'alpha': 1.0}
    """
    l2, l1 = checked_strength(l2, "l2"), checked_strength(l1, "l1")
    if l2 != 0:
        raise ValueError(f"fit_regularized of statsmodels has an l1 penalty only, got l2={l2}")
    return {"alpha": l1 * checked_total("num_examples", num_examples)}


def from_weight_decay(weight_decay: Scalar) -> Strengths:
    r"""Returns the strength of ``weight_decay`` in torch's ``SGD`` and optax.

    .. math:: g = \nabla_W \tfrac{1}{S} L + \lambda W, \qquad l_2 = \lambda,

    the gradient of ``F``, where the optimiser gets ``g`` (coupled decay) of the mean loss. So it is
    in ``torch.optim.SGD`` and ``optax.add_decayed_weights``. The bias must be left out: a parameter
    group of its own in torch, ``mask=Params(w=True, b=False)`` in optax.

    Decoupled decay steps by ``-lr (u + λ W)``, with ``u`` what the optimiser makes of the gradient
    of the loss alone. Without momentum that is the same. With heavy-ball momentum ``μ`` (torch's,
    or `optax.trace`) it comes to rest where ``l2 = (1 - μ) λ``. AdamW does not rest at the optimum
    of any ``l2``: its full-batch limit is the loss itself within ``|W|_∞ <= 1/λ`` (Xie & Li 2024,
    *Implicit Bias of AdamW*). Decay written as ``W <- (1 - κ) W`` a step has ``λ = κ / lr``.

    Args:
      weight_decay: ``λ``, at least 0.

    Raises:
      ValueError: if it is negative or not finite.

    Example:
      >>> from_weight_decay(5e-4)
      Strengths(l2=0.0005, l1=0.0)
    """
    return Strengths(l2=checked_strength(weight_decay, "weight_decay"), l1=0.0)


def to_weight_decay(l2: Scalar, l1: Scalar = 0.0) -> dict[str, float]:
    """Returns ``weight_decay`` for `from_weight_decay`.

    Raises:
      ValueError: if ``l1`` is above 0, as weight decay is an l2 penalty only.

    Example:
      >>> to_weight_decay(l2=5e-4)
      {'weight_decay': 0.0005}
    """
    l2, l1 = checked_strength(l2, "l2"), checked_strength(l1, "l1")
    if l1 != 0:
        raise ValueError(
            f"weight decay is an l2 penalty only, got l1={l1}: put l1 into the loss, or use a "
            "proximal step"
        )
    return {"weight_decay": l2}
