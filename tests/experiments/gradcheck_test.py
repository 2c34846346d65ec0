import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradcheck
from runs import gradients
from softmax_jax import losses
from softmax_jax.data import Data
from softmax_jax.model import Params

right_gradient = losses.cross_entropy_gradient


@pytest.fixture(autouse=True)
def standard_promotion():
    """The script compares types with one another; it runs under JAX's own rules."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "size", "soft"),
    [
        ("float32", "huge", False),
        ("bfloat16", "impossible class", True),
        ("float64", "moderate", True),
    ],
)
def test_derivatives_agree(dtype, size, soft):
    results = gradients.check(dtype, size, soft)
    assert {name: str(result) for name, result in results.items() if not result.passed} == {}
    assert ("finite" in results) == (dtype == "float64")


@pytest.fixture
def short_main():
    """The main function, over one type and size."""
    return lambda: gradcheck.main(["gradcheck.py"], dtypes=("float32",), sizes=("moderate",))


@pytest.mark.slow
def test_main_exits_0_if_all_passed(short_main, capsys):
    with pytest.raises(SystemExit) as e:
        short_main()
    assert e.value.code == 0
    assert "all errors are within them" in capsys.readouterr().out


@pytest.fixture
def replace(monkeypatch):
    """A function that replaces a function of `losses`, where compiled too."""
    compiled = (gradients.closed_gradient, gradients.terms)

    def run(name, function):
        monkeypatch.setattr(losses, name, function)
        for f in compiled:
            f.clear_cache()

    yield run
    for f in compiled:
        f.clear_cache()


WRONG = {
    "sign": lambda logits, targets, **kwargs: -right_gradient(logits, targets, **kwargs),
    "no target": lambda logits, targets, **kwargs: jax.nn.softmax(logits.astype(jnp.float32)),
    "1e-5 off": lambda logits, targets, **kwargs: right_gradient(logits, targets, **kwargs) + 1e-5,
    "NaN": lambda logits, targets, **kwargs: jnp.nan * right_gradient(logits, targets, **kwargs),
}


@pytest.mark.parametrize("formula", WRONG)
def test_a_wrong_gradient_in_the_logits_is_found(replace, formula):
    problem = gradients.make_problem(0, "float32", "moderate", False, False)
    replace("cross_entropy_gradient", WRONG[formula])
    errors = gradients.logit_errors(problem)
    assert not errors["dl/do"] <= gradients.ULPS
    assert errors["d²l/do²"] <= gradients.ULPS


def test_a_wrong_hessian_is_found(replace):
    problem = gradients.make_problem(0, "float32", "moderate", False, False)
    replace("cross_entropy_hessian", lambda logits: jax.vmap(jnp.diag)(jax.nn.softmax(logits)))
    errors = gradients.logit_errors(problem)
    assert errors["dl/do"] <= gradients.ULPS
    assert not errors["d²l/do²"] <= gradients.ULPS


@pytest.mark.slow
def test_a_gradient_without_its_penalty_is_found(replace):
    problem = gradients.make_problem(0, "float32", "moderate", False, False)
    right = losses.objective_gradient
    replace("objective_gradient", lambda *args, l2, **kwargs: right(*args, **kwargs))
    errors = gradients.parameter_errors(problem)
    assert not errors["dF/dW"] <= gradients.ULPS
    assert errors["dF/db"] <= gradients.ULPS


def test_finite_differences_find_a_gradient_without_its_penalty(replace):
    with jax.enable_x64(True):
        problem = gradients.make_problem(0, "float64", "moderate", True, False)
        right = losses.objective_gradient
        replace("objective_gradient", lambda *args, l2, **kwargs: right(*args, **kwargs))
        assert not gradients.finite_difference_error(problem, "moderate") <= gradients.RELATIVE


@pytest.mark.slow
def test_main_exits_1_if_one_failed(short_main, capsys, replace):
    replace("cross_entropy_gradient", WRONG["sign"])
    with pytest.raises(SystemExit) as e:
        short_main()
    assert e.value.code == 1
    assert "some errors are beyond them (!)" in capsys.readouterr().out


def test_main_refuses_arguments():
    with pytest.raises(gradcheck.app.UsageError, match="unexpected argument 'more'"):
        gradcheck.main(["gradcheck.py", "more"])


@pytest.mark.parametrize(("error", "passed"), [(8, True), (8.1, False), (np.nan, False)])
def test_a_check_passes_up_to_its_limit(error, passed):
    check = gradients.Check(error, 8.0, "ulp")
    assert check.passed is passed
    assert ("passed" if passed else "FAILED") in str(check)


def random_model():
    generator = np.random.default_rng(0)
    w, b, x = (generator.normal(size=size).astype(np.float32) for size in ((4, 3), 3, (50, 4)))
    labels = generator.integers(3, size=50).astype(np.int32)
    return Params(jnp.asarray(w), jnp.asarray(b)), Data(jnp.asarray(x), jnp.asarray(labels))


def test_a_model_is_checked_on_data():
    assert gradients.check_model(*random_model(), l2=0.1, label_smoothing=0.1).passed


@pytest.mark.parametrize("formula", WRONG)
def test_a_model_with_a_wrong_gradient_fails(replace, formula):
    replace("cross_entropy_gradient", WRONG[formula])
    assert not gradients.check_model(*random_model(), l2=0.1, label_smoothing=0.1).passed
