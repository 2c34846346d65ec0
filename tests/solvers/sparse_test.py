"""Sparse rows are solved as dense ones are, without a dense copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from softmax_jax import solvers
from softmax_jax.model import Params
from softmax_jax.solvers import sparse

N, D, Q = 2100, 620, 3


def drawn():
    """Rows with a few entries each, in columns of very different lengths, and their classes."""
    rng = np.random.default_rng(0)
    column = np.minimum(D * rng.random((N, 12)) ** 3, D - 1).astype(int)
    x = np.zeros((N, D))
    x[np.arange(N)[:, None], column] = rng.integers(1, 9, size=column.shape) / 4
    # A column in all rows, an empty column, and an empty row.
    x[:, 3], x[:, 5], x[7] = 1 + rng.random(N), 0, 0
    w = rng.normal(size=(D, Q))
    return x, np.argmax(x @ w + rng.gumbel(size=(N, Q)), axis=1)


X, Y = drawn()
SLOW = (
    *("plain", "a shift for an intercept", "probabilities", "offset", "blocks"),
    *("l1", "elastic net", "grouped", "lbfgs", "logits-free"),
)
RNG = np.random.default_rng(1)
OPTIONS = {
    "plain": {},
    "weights": {"sample_weight": RNG.integers(0, 3, N).astype(float)},
    "no intercept": {"fit_intercept": False},
    "standardize": {"standardize": True, "l2": 1e-3},
    "scale and shift": {"scale": RNG.uniform(0.5, 2, D), "shift": RNG.normal(size=D)},
    "a shift for an intercept": {"fit_intercept": False, "shift": 0.5},
    "probabilities": {"y": RNG.dirichlet(np.ones(Q), N)},
    "offset": {"offset": RNG.normal(size=(N, Q))},
    "blocks": {"block_size": 300},
    "start": {"initial": Params(RNG.normal(size=(D, Q)), np.zeros(Q))},
    "l1": {"l2": 0.0, "l1": 2e-3},
    "elastic net": {"l2": 1e-3, "l1": 1e-3},
    "grouped": {"l2": 1e-3, "l1": 1e-3, "grouped": True},
    "lbfgs": {"method": "lbfgs", "tol": 1e-8},
    "logits-free": {"method": "logits-free", "tol": 1e-8},
}


def fitted(x, *, y=Y, l2=1e-2, tol=1e-9, **options):
    return solvers.fit(x, y, l2=l2, tol=tol, **options)


@pytest.mark.parametrize(
    "way", [pytest.param(w, marks=[pytest.mark.slow] if w in SLOW else []) for w in OPTIONS]
)
def test_solutions_are_those_of_dense_rows(way):
    options = OPTIONS[way]
    dense, found = fitted(X, **options), fitted(scipy.sparse.csr_array(X), **options)
    assert found.status == dense.status == solvers.Status.CERTIFIED
    slack = 1e-9 + dense.relative_gap + found.relative_gap
    assert found.objective == pytest.approx(dense.objective, rel=slack)
    np.testing.assert_allclose(found.params.w, dense.params.w, atol=1e-3)
    np.testing.assert_allclose(found.mean, dense.mean, atol=1e-9)
    # The empty column has no weight, and the objective is that of the parameters on dense rows.
    if "shift" not in options:
        assert (found.params.w[5] == 0).all()
    again = fitted(X, **options | {"initial": found.params, "max_passes": 1})
    assert again.objective <= found.objective * (1 + 1e-12)
    assert found.objective == pytest.approx(again.objective, rel=1e-9)


def in_parts():
    """Coordinates that name each number twice, halved, with zeros among them."""
    row, column = np.nonzero(X)
    value = X[row, column]
    return scipy.sparse.coo_array(
        (
            np.concatenate([value / 2, np.zeros(50), value / 2]),
            (
                np.concatenate([row, np.arange(50), row]),
                np.concatenate([column, np.full(50, 5), column]),
            ),
        ),
        shape=X.shape,
    )


STORED = {
    "by columns": lambda: scipy.sparse.csc_matrix(X),
    "in parts, with zeros": in_parts,
    "float32": lambda: scipy.sparse.csr_array(X.astype(np.float32)),
    "int8": lambda: scipy.sparse.csr_array(np.ceil(4 * X).astype(np.int8)),
}


@pytest.mark.parametrize(
    "way",
    [pytest.param(w, marks=[pytest.mark.slow] if w in ("float32", "int8") else []) for w in STORED],
)
def test_storage_changes_nothing(way):
    stored = STORED[way]()
    before = stored.copy()
    found = fitted(stored)
    assert found.objective == pytest.approx(fitted(before.toarray()).objective, rel=2e-9)
    assert (abs(stored - before)).nnz == 0
    assert stored.nnz == before.nnz


@pytest.mark.slow
def test_folds_and_paths():
    weights = np.stack([np.arange(N) % 3 != fold for fold in range(3)]).astype(float)
    options = {"l2": [1e-1, 1e-2], "sample_weight": weights, "tol": 1e-9}
    dense, found = (solvers.fit_path(x, Y, **options) for x in (X, scipy.sparse.csr_array(X)))
    np.testing.assert_allclose(found.objective, dense.objective, rtol=2e-9)
    assert found.params.w.shape == dense.params.w.shape == (3, 2, D, Q)


@pytest.mark.slow
def test_float32_work_is_certified_in_float64():
    method = solvers.QuasiNewton(float64_below=0)
    exact = fitted(X)
    for tol in (1e-3, 1e-11):
        found = fitted(scipy.sparse.csr_array(X), method=method, tol=tol)
        assert found.status == solvers.Status.CERTIFIED
        assert -1e-9 <= found.objective - exact.objective <= found.gap + 1e-12


@pytest.mark.slow
def test_rows_that_as_dense_ones_would_take_64_gigabytes():
    n, d = 4000, 2_000_000
    rng = np.random.default_rng(0)
    column = rng.integers(0, d, size=(n, 10))
    y = rng.integers(0, 2, size=n)
    column[:, 0] = 17 + y
    x = scipy.sparse.csr_array((np.ones(10 * n), column.ravel(), 10 * np.arange(n + 1)), (n, d))
    found = solvers.fit(x, y, l2=1e-3, tol=1e-3)
    assert found.status == solvers.Status.CERTIFIED
    assert found.params.w.shape == (d, 2)
    is_used = np.bincount(column.ravel(), minlength=d) > 0
    assert (found.params.w[~is_used] == 0).all()
    assert (found.params.w[[17, 18], [0, 1]] > 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d", "density"), [(7, 5, 0.5), (3000, 4, 0.9), (40, 2000, 0.01)])
def test_products_of_both_sides(n, d, density):
    rng = np.random.default_rng(0)
    x = scipy.sparse.csr_array(np.where(rng.random((2 * n, d)) < density, 1.5, 0))
    stored = jax.tree.map(jnp.asarray, sparse.stored([x[:n], x[n:]], lambda number: number + 1))
    v, r = jnp.asarray(rng.normal(size=(d, 3))), jnp.asarray(rng.normal(size=(n, 3)))
    for j, block in enumerate((x[:n], x[n:])):
        forward = sparse.product(stored.rows, v, jnp.int32(j))
        back = sparse.product(stored.columns, r, jnp.int32(j))
        np.testing.assert_allclose(forward, block @ np.asarray(v), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(back, block.T @ np.asarray(r), rtol=1e-5, atol=1e-4)


def test_memory_of_a_product_is_that_of_its_entries():
    n, d = 1000, 50_000
    rng = np.random.default_rng(0)
    column = rng.integers(0, d, size=10 * n)
    x = scipy.sparse.csr_array((np.ones(10 * n), column, 10 * np.arange(n + 1)), (n, d))
    x.sum_duplicates()
    stored = sparse.stored([x], lambda number: number)
    for lines, m in ((stored.rows, d), (stored.columns, n)):
        operand = jax.ShapeDtypeStruct((m, 4), np.float32)
        program = jax.jit(sparse.product).lower(lines, operand, np.int32(0)).compile()
        assert program.memory_analysis().temp_size_in_bytes < 4 * n * d / 20


@pytest.mark.slow
def test_cross_validation():
    options = {"l2": [1e-1, 1e-2], "folds": 3, "standardize": True, "tol": 1e-9}
    dense, found = (solvers.cross_validate(x, Y, **options) for x in (X, scipy.sparse.csr_array(X)))
    np.testing.assert_allclose(found.loss, dense.loss, rtol=1e-5)


def sparse_rows(n, d, entries):
    rng = np.random.default_rng(0)
    column = rng.integers(d, size=n * entries)
    x = scipy.sparse.csr_array(
        (rng.uniform(1, 2, size=n * entries), (np.repeat(np.arange(n), entries), column)),
        shape=(n, d),
    )
    return x, rng.integers(3, size=n)


@pytest.mark.slow
def test_few_sparse_features_have_their_whole_hessian():
    x, y = sparse_rows(30_000, 60, 3)
    plan = fitted(x, y=y, tol=1e-3).plan
    assert "the Hessian of 60 features" in str(plan)


@pytest.mark.slow
def test_components_of_many_sparse_features_cost_a_step_at_most():
    x, y = sparse_rows(3000, 20_000, 20)
    plan = fitted(x, y=y, tol=1e-3).plan
    sizes = plan.method.sizes
    # Four times, columns are multiplied and made orthonormal, by 8 d p^2 FLOP.
    assert 4 * 8 * x.shape[1] * (sizes.leading - 1) ** 2 < sizes.steps_for_sparse * plan.flop
    assert 1 <= sizes.leading < 100
