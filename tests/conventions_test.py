"""Round trips, and solutions of the packages themselves put to this library's objective.

cuML, which needs a GPU, is missing here: its formula comes from its documentation and source.
"""

import io
import math
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression, SGDClassifier

from softmax_jax import conventions, losses, solvers
from softmax_jax.conventions import Strengths, from_sigmoid
from softmax_jax.model import Params

EPS = np.finfo(float).eps
ELASTIC_NET = {
    "sklearn": {"total_weight": 12.5},
    "cuml": {"num_examples": 150},
    "sgd_classifier": {"mean_weight": 0.3},
    "glmnet": {},
    "adelie": {"num_classes": 5},
    "spark": {},
    "cyanure": {},
    "sigmoid": {},
}
# Weights of adelie 1.1.52 for features of variance one, lmda 0.03 and alpha 0.5.
ADELIE = np.array(
    [
        [-0.2079935, 0.0232638, 0.18474636],
        [0.28421804, -0.28650428, 0.00227763],
        [-0.57790225, 0.10041539, 0.47752281],
        [-0.57268189, -0.04689259, 0.61961219],
    ]
)
L1_ONLY = {"statsmodels": {"num_examples": 150}}
L2_ONLY = {"weight_decay": {}}

magnitudes = st.floats(-12, 12).map(lambda exponent: 10.0**exponent)
strengths = st.just(0.0) | magnitudes


def translate(name, l2, l1, **context):
    """Translates there and back again."""
    there = getattr(conventions, f"to_{name}")(l2, l1, **context)
    there = there._asdict() if isinstance(there, Strengths) else there
    return getattr(conventions, f"from_{name}")(**there, **context)


@settings(deadline=None)
@pytest.mark.parametrize(("name", "context"), ELASTIC_NET.items(), ids=ELASTIC_NET)
@given(l2=strengths, l1=strengths)
def test_round_trip(name, context, l2, l1):
    there_and_back = translate(name, l2, l1, **context)
    np.testing.assert_allclose(there_and_back, (l2, l1), rtol=4 * EPS, atol=4 * EPS * (l2 + l1))
    # What is none stays none: no pure penalty turns into a mixed one.
    assert l2 > 0 or there_and_back.l2 == 0
    assert l1 > 0 or there_and_back.l1 == 0


@settings(deadline=None)
@pytest.mark.parametrize(("name", "context"), L1_ONLY.items(), ids=L1_ONLY)
@given(l1=strengths)
def test_round_trip_of_l1(name, context, l1):
    np.testing.assert_allclose(translate(name, 0.0, l1, **context), (0, l1), rtol=4 * EPS)


@settings(deadline=None)
@pytest.mark.parametrize(("name", "context"), L2_ONLY.items(), ids=L2_ONLY)
@given(l2=strengths)
def test_round_trip_of_l2(name, context, l2):
    np.testing.assert_allclose(translate(name, l2, 0.0, **context), (l2, 0), rtol=4 * EPS)


@settings(deadline=None)
@given(C=magnitudes | st.just(math.inf), l1_ratio=st.floats(0, 1), total_weight=magnitudes)
def test_round_trip_from_the_other_side(C, l1_ratio, total_weight):
    strengths = conventions.from_sklearn(C, l1_ratio=l1_ratio, total_weight=total_weight)
    back = conventions.to_sklearn(*strengths, total_weight=total_weight)
    np.testing.assert_allclose(back["C"], C, rtol=8 * EPS)
    expected_ratio = 0 if math.isinf(C) else l1_ratio
    np.testing.assert_allclose(back["l1_ratio"], expected_ratio, atol=4 * EPS)


def test_values():
    assert conventions.from_sklearn(0.25, total_weight=8) == Strengths(l2=0.5, l1=0)
    assert conventions.from_sklearn(0.25, l1_ratio=0.25, total_weight=8) == Strengths(0.375, 0.125)
    assert conventions.from_cuml(0.25, l1_ratio=0.25, num_examples=8) == Strengths(0.375, 0.125)
    assert conventions.from_glmnet(0.5) == Strengths(l2=0, l1=0.5)
    assert conventions.from_spark(0.5) == Strengths(l2=0.5, l1=0)


def test_no_penalty_is_an_infinite_C():
    assert conventions.from_sklearn(math.inf, total_weight=8) == Strengths(0, 0)
    assert conventions.to_sklearn(0, total_weight=8) == {"C": math.inf, "l1_ratio": 0}


@pytest.mark.parametrize("value", [2, np.float32(2), np.int64(2), jnp.float32(2)])
def test_numbers_of_any_kind_become_floats(value):
    back = conventions.to_sklearn(value, value, total_weight=value)
    assert back == {"C": 0.125, "l1_ratio": 0.5}
    strengths = conventions.from_sklearn(value, l1_ratio=value / 4, total_weight=value)
    assert strengths == Strengths(0.125, 0.125)
    assert {type(number) for number in (*strengths, *back.values())} == {float}


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *(
            (lambda bad=bad: conventions.from_sklearn(bad, total_weight=8), "C must be positive")
            for bad in (0, -1, NAN)
        ),
        *(
            (
                lambda bad=bad: conventions.from_sklearn(1, l1_ratio=bad, total_weight=8),
                r"l1_ratio must lie in \[0, 1\]",
            )
            for bad in (-0.1, 1.1, NAN)
        ),
        *(
            (lambda bad=bad: conventions.to_sklearn(1, total_weight=bad), "total_weight must be")
            for bad in (0, -1, NAN, INF)
        ),
        *(
            (lambda bad=bad: conventions.to_glmnet(1, bad), "l1 must be finite and at least 0")
            for bad in (-1, NAN, INF)
        ),
        (lambda: conventions.from_sklearn(1e-300, total_weight=1e-300), "range of floats"),
        (lambda: conventions.from_cuml(-1, num_examples=8), "C must be positive, got -1.0"),
        (lambda: conventions.to_cuml(1, num_examples=0), "num_examples must be positive"),
        (lambda: conventions.from_sgd_classifier(-1), "alpha must be finite and at least 0"),
        (lambda: conventions.to_sgd_classifier(1, mean_weight=0), "mean_weight must be positive"),
        (lambda: conventions.from_glmnet(-1), "lambda_ must be finite and at least 0"),
        (lambda: conventions.from_glmnet(1, 2), r"alpha must lie in \[0, 1\], got 2.0"),
        (lambda: conventions.from_spark(-1), "regParam must be finite"),
        (lambda: conventions.from_spark(1, -1), "elasticNetParam must lie"),
        (lambda: conventions.from_sigmoid(-1), "l2 must be finite and at least 0"),
        (lambda: conventions.to_sigmoid(1, -1), "l1 must be finite and at least 0"),
        (lambda: conventions.from_cyanure(-1), "lambda_1 must be finite"),
        (lambda: conventions.from_cyanure(1, penalty="l1l2"), "'elasticnet', got 'l1l2'"),
        (lambda: conventions.to_cyanure(-1), "l2 must be finite"),
        (lambda: conventions.from_statsmodels(-1, num_examples=8), "alpha must be finite"),
        (lambda: conventions.to_statsmodels(1, num_examples=8), "l1 penalty only, got l2=1"),
        (lambda: conventions.from_weight_decay(-1), "weight_decay must be finite"),
        (lambda: conventions.to_weight_decay(1, 2), "l2 penalty only, got l1=2"),
    ],
)
def test_what_is_out_of_range_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# The packages themselves -------------------------------------------------------------------------

PENALTIES = {"l2": (0.01, 0.0), "l1": (0.0, 0.02), "elastic net": (0.01, 0.02)}
penalties = pytest.mark.parametrize(("l2", "l1"), PENALTIES.values(), ids=PENALTIES)


class Problem:
    """Iris, or the two of its species that cannot be told apart by a line, with weights."""

    def __init__(self, two_classes=False):
        x, y = load_iris(return_X_y=True)
        rows = slice(50 if two_classes else 0, None)
        self.x, self.y = x[rows] - x[rows].mean(0), y[rows] - y[rows].min()
        self.weights = 1.0 + np.arange(len(self.x)) % 3
        self.total_weight = self.weights.sum()


@pytest.fixture(scope="module")
def iris():
    return Problem()


@pytest.fixture(scope="module")
def two_species():
    return Problem(two_classes=True)


def softmax_of(vector, bias):
    """The softmax of two classes that is the sigmoid with these weights and this bias."""
    vector = np.reshape(vector, (-1, 1))
    return Params(w=np.hstack([-vector, vector]) / 2, b=np.ravel(bias) * np.array([-0.5, 0.5]))


def gradient(params, x, y, *, weights=None, l2=0.0):
    """Returns the gradient of the objective without l1, by automatic differentiation in float64."""
    with jax.enable_x64(True):
        params, x, y, weights = jax.tree.map(jnp.asarray, (params, x, y, weights))
        assert params.w.dtype == params.b.dtype == x.dtype == np.float64
        return jax.device_get(jax.grad(losses.objective)(params, x, y, weights=weights, l2=l2))


def distance_from_optimal(params, x, y, strengths, *, weights=None, free=slice(None)):
    """Returns how far a proximal step moves the ``free`` classes: nowhere at an optimum.

    ``|∇ + l1 sign(w)|`` where a weight is not zero, and what of ``|∇|`` exceeds l1 where it is.
    """
    slope = gradient(params, x, y, weights=weights, l2=strengths.l2)
    z = params.w - slope.w
    step = params.w - np.sign(z) * np.maximum(abs(z) - strengths.l1, 0)
    return max(abs(step[:, free]).max(), abs(slope.b[free]).max())


def assert_optimal(params, x, y, strengths, *, tolerance, **kwargs):
    """Asserts an optimum at these strengths and no others: a tenth more or less is seen."""
    assert distance_from_optimal(params, x, y, strengths, **kwargs) <= tolerance
    for name, value in strengths._asdict().items():
        for factor in (0.9, 1.1) if value else ():
            other = strengths._replace(**{name: factor * value})
            assert distance_from_optimal(params, x, y, other, **kwargs) > 5 * tolerance


def sklearn_solution(problem, l2, l1=0.0):
    """Within 1e-10 of the optimum, from scikit-learn."""
    peer = LogisticRegression(
        **conventions.to_sklearn(l2, l1, total_weight=problem.total_weight),
        solver="saga" if l1 else "newton-cholesky",
        tol=1e-12,
        max_iter=100_000,
    )
    return peer.fit(problem.x, problem.y, sample_weight=problem.weights)


@penalties
def test_sklearn(iris, l2, l1):
    peer = sklearn_solution(iris, l2, l1)
    params = Params(w=peer.coef_.T, b=peer.intercept_)
    assert_optimal(params, iris.x, iris.y, Strengths(l2, l1), weights=iris.weights, tolerance=1e-10)


def test_sklearn_with_class_weights(iris):
    class_weight = np.array([0.5, 1.0, 4.0])
    peer = LogisticRegression(
        C=0.3, class_weight=dict(enumerate(class_weight)), solver="newton-cholesky", tol=1e-12
    ).fit(iris.x, iris.y)
    weights = class_weight[iris.y]
    strengths = conventions.from_sklearn(0.3, total_weight=weights.sum())
    params = Params(w=peer.coef_.T, b=peer.intercept_)
    assert_optimal(params, iris.x, iris.y, strengths, weights=weights, tolerance=1e-10)


@pytest.mark.slow
@penalties
def test_sklearn_on_two_classes_is_a_sigmoid(two_species, l2, l1):
    problem = two_species
    peer = sklearn_solution(problem, *conventions.to_sigmoid(l2, l1))
    params = softmax_of(peer.coef_, peer.intercept_)
    assert_optimal(
        params, problem.x, problem.y, Strengths(l2, l1), weights=problem.weights, tolerance=1e-10
    )


def test_sklearn_without_a_penalty(two_species):
    problem = two_species
    peer = LogisticRegression(
        **conventions.to_sklearn(0, total_weight=len(problem.x)),
        solver="newton-cholesky",
        tol=1e-9,
    ).fit(problem.x, problem.y)
    params = softmax_of(peer.coef_, peer.intercept_)
    assert_optimal(params, problem.x, problem.y, Strengths(0, 0), tolerance=1e-8)


@pytest.mark.parametrize("l1", [0.0, 0.02])
def test_sgd_classifier(two_species, l1):
    problem = two_species
    peer = SGDClassifier(
        loss="log_loss",
        penalty="elasticnet",
        **conventions.to_sgd_classifier(0.05, l1, mean_weight=problem.weights.mean()),
        tol=None,
        max_iter=5000,
        random_state=0,
    ).fit(problem.x, problem.y, sample_weight=problem.weights)
    params = softmax_of(peer.coef_, peer.intercept_)
    assert_optimal(
        params,
        problem.x,
        problem.y,
        from_sigmoid(0.05, l1),
        weights=problem.weights,
        tolerance=4e-4,
    )


LR, DECAY = 0.1, 0.05
ONLY_WEIGHTS = Params(w=True, b=False)


def run(optimizer, params, problem, num_steps):
    """Full-batch steps on the mean loss without a penalty."""

    @jax.jit
    def steps(params, x, y, weights):
        def step(carry, _):
            params, state = carry
            slope = jax.grad(losses.objective)(params, x, y, weights=weights)
            updates, state = optimizer.update(slope, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=num_steps)[0][0]

    # optax meets integers with floats.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        arrays = (params, problem.x, problem.y, problem.weights)
        return jax.device_get(steps(*jax.tree.map(jnp.asarray, arrays)))


@pytest.mark.parametrize(
    ("optimizer", "l2"),
    [
        pytest.param(
            optax.chain(
                optax.add_decayed_weights(DECAY, ONLY_WEIGHTS), optax.sgd(LR, momentum=0.9)
            ),
            DECAY,
            id="coupled",
        ),
        pytest.param(
            optax.chain(
                optax.add_decayed_weights(DECAY, ONLY_WEIGHTS), optax.scale_by_learning_rate(LR)
            ),
            DECAY,
            id="decoupled without momentum",
        ),
        pytest.param(
            optax.chain(
                optax.trace(0.9),
                optax.add_decayed_weights(DECAY, ONLY_WEIGHTS),
                optax.scale_by_learning_rate(LR),
            ),
            (1 - 0.9) * DECAY,
            id="decoupled with momentum",
        ),
        pytest.param(
            optax.chain(
                optax.scale_by_learning_rate(LR),
                optax.add_decayed_weights(-DECAY * LR, ONLY_WEIGHTS),
            ),
            DECAY,
            id="shrinkage",
        ),
    ],
)
def test_optax_sgd(iris, optimizer, l2):
    params = Params(w=np.zeros((4, 3)), b=np.zeros(3))
    params = run(optimizer, params, iris, num_steps=6000)
    strengths = conventions.from_weight_decay(l2)
    assert_optimal(params, iris.x, iris.y, strengths, weights=iris.weights, tolerance=1e-6)


def test_adamw_does_not_stay_at_the_optimum(iris):
    peer = sklearn_solution(iris, DECAY)
    optimum = Params(w=peer.coef_.T, b=peer.intercept_)
    optimizer = optax.adamw(1e-3, weight_decay=DECAY, mask=ONLY_WEIGHTS)
    params = run(optimizer, optimum, iris, num_steps=2000)
    strengths = conventions.from_weight_decay(DECAY)
    x, y, weights = iris.x, iris.y, iris.weights
    assert distance_from_optimal(optimum, x, y, strengths, weights=weights) < 1e-10
    assert distance_from_optimal(params, x, y, strengths, weights=weights) > 0.01


def test_torch_sgd(iris):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    w = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    x, y, class_weight = torch.tensor(iris.x), torch.tensor(iris.y), torch.tensor([0.5, 1.0, 4.0])
    optimizer = torch.optim.SGD(
        [{"params": [w], **conventions.to_weight_decay(DECAY)}, {"params": [b]}],
        lr=LR,
        momentum=0.9,
    )
    # With class weights, torch's mean divides by the sum of the weights.
    loss = torch.nn.CrossEntropyLoss(weight=class_weight.double())
    for _ in range(2000):
        optimizer.zero_grad()
        loss(x @ w + b, y).backward()
        optimizer.step()
    params = Params(w=w.detach().numpy(), b=b.detach().numpy())
    weights = class_weight.double().numpy()[iris.y]
    assert_optimal(params, iris.x, iris.y, Strengths(DECAY, 0.0), weights=weights, tolerance=1e-6)


@penalties
@pytest.mark.parametrize("two_classes", [False, True], ids=["softmax", "sigmoid"])
def test_cyanure(request, two_classes, l2, l1):
    estimators = pytest.importorskip("cyanure.estimators", reason="cyanure is not installed")
    problem = request.getfixturevalue("two_species" if two_classes else "iris")
    peer = estimators.Classifier(
        loss="logistic" if two_classes else "multiclass-logistic",
        **conventions.to_cyanure(l2, l1),
        fit_intercept=True,
        tol=1e-12,
        max_iter=20_000,
        n_threads=1,
        verbose=False,
    ).fit(problem.x, problem.y)
    if two_classes:
        params, strengths = softmax_of(peer.coef_, peer.intercept_), from_sigmoid(l2, l1)
    else:
        params = Params(w=np.asarray(peer.coef_), b=np.ravel(peer.intercept_))
        strengths = Strengths(l2, l1)
    # However small `tol` is, it stops once its bound on the gap no longer improves.
    assert_optimal(params, problem.x, problem.y, strengths, tolerance=3e-4)


@pytest.mark.parametrize("two_classes", [False, True], ids=["MNLogit", "Logit"])
def test_statsmodels(request, two_classes):
    discrete = pytest.importorskip(
        "statsmodels.discrete.discrete_model", reason="statsmodels is not installed"
    )
    problem = request.getfixturevalue("two_species" if two_classes else "iris")
    n, d = problem.x.shape
    l1 = 0.02
    alpha = np.full(
        (d + 1, 1 if two_classes else 2), conventions.to_statsmodels(0, l1, num_examples=n)["alpha"]
    )
    alpha[0] = 0
    model = (discrete.Logit if two_classes else discrete.MNLogit)(
        problem.y, np.insert(problem.x, 0, 1, axis=1)
    )
    fit = model.fit_regularized(
        alpha=alpha.ravel("F"), acc=1e-13, maxiter=1000, trim_mode="off", disp=False
    )
    coefficients = np.reshape(np.asarray(fit.params), alpha.shape)
    if two_classes:
        params = softmax_of(coefficients[1:], coefficients[0])
        strengths, free = from_sigmoid(0, l1), slice(None)
    else:
        coefficients = np.insert(coefficients, 0, 0, axis=1)
        params, strengths = Params(w=coefficients[1:], b=coefficients[0]), Strengths(0, l1)
        free = slice(1, None)  # the first class is held
    assert_optimal(params, problem.x, problem.y, strengths, free=free, tolerance=1e-5)


@pytest.fixture(scope="module")
def spark():
    sql = pytest.importorskip("pyspark.sql", reason="PySpark is not installed")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Spark needs Java")
    settings = {"spark.ui.enabled": "false", "spark.driver.bindAddress": "127.0.0.1"}
    builder = sql.SparkSession.builder.master("local[1]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


# JAX warns of the fork that starts Java.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@penalties
@pytest.mark.parametrize("two_classes", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("standardization", [False, True])
def test_spark(request, spark, two_classes, standardization, l2, l1):
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.linalg import Vectors

    problem = request.getfixturevalue("two_species" if two_classes else "iris")
    x, y = problem.x, problem.y
    # Weights of 1 give σ over n - 1; with others Spark has a formula of its own for σ.
    weights = np.ones_like(problem.weights) if standardization else problem.weights
    rows = zip(y.tolist(), weights.tolist(), map(Vectors.dense, x), strict=True)
    fit = LogisticRegression(
        **conventions.to_spark(l2, l1),
        standardization=standardization,
        weightCol="weight",
        tol=1e-14,
        maxIter=10_000,
    ).fit(spark.createDataFrame(list(rows), ["label", "weight", "features"]))
    coefficients = fit.coefficientMatrix.toArray()
    scale = x.std(0, ddof=1) if standardization else np.ones(x.shape[1])
    if two_classes:
        params = softmax_of(coefficients * scale, fit.interceptVector.toArray())
        strengths = from_sigmoid(l2, l1)
    else:
        params = Params(w=(coefficients * scale).T, b=fit.interceptVector.toArray())
        strengths = Strengths(l2, l1)
    assert_optimal(params, x / scale, y, strengths, weights=weights, tolerance=1e-5)


def adelies_path(x, y, lmda, alpha):
    """Returns weights and biases of adelie, for a path that ends at a strength."""
    adelie = pytest.importorskip("adelie", reason="adelie is not installed")
    found = adelie.grpnet(
        np.asfortranarray(x),
        adelie.glm.multinomial(np.eye(3)[y]),
        alpha=alpha,
        lmda_path=[10 * lmda, 3 * lmda, lmda],
        early_exit=False,
        progress_bar=False,
        tol=1e-14,
        irls_tol=1e-12,
    )
    return found.betas.toarray()[-1].reshape(-1, 3), found.intercepts[-1]


@pytest.mark.parametrize("recorded", [True, False])
def test_adelie(recorded):
    """Its groups are over classes; of one strength its weights are here, to be sure of some."""
    x, y = load_iris(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    w = ADELIE if recorded else adelies_path(x, y, lmda=0.03, alpha=0.5)[0]

    def distance(strengths):
        found = solvers.fit(x, y, **strengths._asdict(), grouped=True, tol=1e-12).params.w
        return np.abs(found - w).max()

    strengths = conventions.from_adelie(0.03, 0.5, num_classes=3)
    assert distance(strengths) < 1e-3
    for name, value in strengths._asdict().items():
        assert distance(strengths._replace(**{name: 1.1 * value})) > 5e-3


GLMNET = """
suppressMessages(library(glmnet))
p <- as.list(commandArgs(trailingOnly = TRUE))
d <- as.matrix(read.csv(file("stdin"), header = FALSE))
x <- d[, -(1:2)]
fit <- glmnet(x, factor(d[, 1]), weights = d[, 2], family = p[[1]],
              lambda = as.numeric(p[[2]]), alpha = as.numeric(p[[3]]),
              standardize = as.logical(p[[4]]), thresh = 1e-16, maxit = 1e7)
b <- coef(fit)
b <- if (is.list(b)) sapply(b, as.vector) else as.matrix(b)
write.table(format(b, digits = 17), quote = FALSE, row.names = FALSE, col.names = FALSE)
"""


@pytest.fixture(scope="module")
def glmnet():
    """A function that fits with R's glmnet and returns coefficients, the intercepts first."""
    rscript = shutil.which("Rscript")
    if rscript is None:
        pytest.skip("R is not installed")
    found = subprocess.run([rscript, "-e", "library(glmnet)"], capture_output=True)
    if found.returncode:
        pytest.skip("R has no glmnet")

    def fit(problem, family, *, lambda_, alpha, standardize):
        table = io.StringIO()
        np.savetxt(
            table, np.column_stack([problem.y, problem.weights, problem.x]), "%.17g", delimiter=","
        )
        arguments = (family, repr(lambda_), repr(alpha), str(standardize).upper())
        output = subprocess.run(
            [rscript, "-e", GLMNET, *arguments],
            input=table.getvalue(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return np.loadtxt(io.StringIO(output), ndmin=2)

    return fit


@pytest.mark.slow
@penalties
@pytest.mark.parametrize("two_classes", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("standardize", [False, True])
def test_glmnet(request, glmnet, two_classes, standardize, l2, l1):
    problem = request.getfixturevalue("two_species" if two_classes else "iris")
    coefficients = glmnet(
        problem,
        "binomial" if two_classes else "multinomial",
        **conventions.to_glmnet(l2, l1),
        standardize=standardize,
    )
    scale = np.ones(problem.x.shape[1])
    if standardize:
        mean = np.average(problem.x, axis=0, weights=problem.weights)
        scale = np.sqrt(np.average((problem.x - mean) ** 2, axis=0, weights=problem.weights))
    w, b = coefficients[1:] * scale[:, None], coefficients[0]
    params = softmax_of(w, b) if two_classes else Params(w, b)
    strengths = from_sigmoid(l2, l1) if two_classes else Strengths(l2, l1)
    assert_optimal(
        params,
        problem.x / scale,
        problem.y,
        strengths,
        weights=problem.weights,
        tolerance=1e-6,
    )
