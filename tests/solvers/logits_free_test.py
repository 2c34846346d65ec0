import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmax_jax import solvers
from softmax_jax.model import Params
from softmax_jax.penalty import Penalty
from softmax_jax.solvers.methods import logits_free
from softmax_jax.solvers.methods.lbfgs import optimizer_of
from softmax_jax.solvers.problem import Problem


def made(seed, *, soft=False, weighted=False, n=120, d=6, q=5):
    """Features off center, labels that leave out the last class, and options."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.geomspace(0.3, 3, d) + rng.normal(size=d)
    logits = x @ rng.normal(size=(d, q - 1)) + rng.normal(size=q - 1)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    y = np.array([rng.choice(q - 1, p=row) for row in p])
    options = {"num_classes": q}
    if weighted:
        options["sample_weight"] = rng.integers(0, 3, size=n)
    if soft:
        y = np.pad(p, ((0, 0), (0, 1)))
    return x, y, options


@pytest.mark.parametrize("seed", [*range(2), pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind", ["weighted", *(pytest.param(k, marks=pytest.mark.slow) for k in ("soft", "plain"))]
)
def test_the_certificate_is_right(seed, kind):
    x, y, options = made(seed, soft=kind == "soft", weighted=kind == "weighted")
    l2 = np.array([1e-1, 1e-2, 1e-3])
    exact = solvers.fit_path(x, y, l2=l2, tol=1e-12, **options)
    found = solvers.fit_path(x, y, l2=l2, tol=1e-3, method="logits-free", block_size=50, **options)
    assert (exact.status == "certified").all()
    assert (found.status == "certified").all(), found.reason
    assert (found.relative_gap <= 1e-3).all()
    rounding = 1e-12 * exact.objective
    assert (found.objective >= exact.objective - rounding).all()
    assert (found.objective - found.gap <= exact.objective + rounding).all()
    assert (found.params.b[:, -1] == -np.inf).all()
    np.testing.assert_allclose(found.params.w, exact.params.w, atol=0.1)


@pytest.mark.slow
def test_a_start_close_by_takes_few_passes():
    x, y, options = made(0)
    options |= {"l2": 1e-3, "method": "logits-free"}
    first = solvers.fit(x, y, **options)
    again = solvers.fit(x, y, initial=Params(*first.params), **options)
    assert again.status == first.status == "certified"
    assert again.passes < first.passes / 2


@pytest.mark.slow
def test_it_is_taken_where_logits_are_too_many():
    x, y, options = made(0)
    # A logit for each row and class that has weight: there are four.
    logits = x.shape[0] * 4
    found, kept, own = (
        solvers.fit(x, y, l2=1e-2, method=method, **options)
        for method in (
            solvers.QuasiNewton(most_logits=logits),
            solvers.QuasiNewton(most_logits=logits + 1),
            "logits-free",
        )
    )
    np.testing.assert_array_equal(found.params.w, own.params.w)
    assert found.passes == own.passes != kept.passes
    assert found.objective == pytest.approx(kept.objective, rel=1e-4)


@pytest.mark.slow
def test_without_a_penalty_nothing_is_certified():
    x, y, options = made(0)
    found = solvers.fit(x, y, l2=0.0, max_passes=20, method="logits-free", **options)
    assert found.status == "not certified"
    assert "max_passes" in found.reason


def test_offsets_are_refused():
    x, y, options = made(0)
    with pytest.raises(ValueError, match="offset: the method 'logits-free' takes none"):
        solvers.fit(x, y, l2=1e-2, offset=np.zeros((120, 5)), method="logits-free", **options)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the bound is that of a CPU")
def test_a_step_holds_no_logits():
    blocks, rows, d, q = 64, 1024, 16, 8192
    shape = jax.ShapeDtypeStruct
    f32, i32 = jnp.float32, jnp.int32
    problem = Problem(
        x=shape((blocks, rows, d), jnp.uint8), center=shape((d,), f32), scale=shape((d,), f32),
            intercept=shape((), f32),
        targets=shape((blocks, rows), i32), weights=shape((blocks, 1, rows), f32), offset=None,
        penalty=Penalty(shape((1,), f32), shape((1,), f32), shape((d,), f32), class_axis=-2),
        active=shape((), i32),
    )  # fmt: skip
    method = logits_free.LogitsFree()
    params = Params(shape((d, q), f32), shape((q,), f32))
    one = shape((1,), f32)
    state = logits_free.State(
        params=params,
        absent=shape((q,), bool),
        value=one,
        gap=one,
        done=shape((1,), bool),
        optimizer=jax.eval_shape(optimizer_of(method.memory, method.steps).init, params),
    )
    step = logits_free.step.lower(method, problem, state, one, shape((), i32))
    # The logits would be 2,048 MiB.
    assert step.compile().memory_analysis().temp_size_in_bytes <= 128 * 2**20
