import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from runs import optimizers
from softmax_jax import model, training
from softmax_jax.data import Data

CONSTANT = optax.constant_schedule(1.0)


def steps_of(text):
    assert text.endswith("%")
    return round(float(text[:-1]))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=200)
    x = rng.normal(size=(200, 5)) + 2 * np.eye(5)[labels]
    return Data(jnp.asarray(x, jnp.float32), jnp.asarray(labels, jnp.int32))


# Each compiles anew.
FEW = ("adam", "sgd", "sm3")
MARKED = [
    name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
    for name in optimizers.OPTIMIZERS
]


@pytest.mark.slow
@pytest.mark.parametrize("name", MARKED)
def test_every_optimizer_lowers_the_loss(data, name):
    optimizer = optimizers.make(name, CONSTANT)
    params = model.init(jax.random.key(0), num_features=5, num_classes=3)
    # Of these, the size of a step does not follow that of the gradient as in the others.
    rate = {
        "adadelta": 10.0,
        "adafactor": 0.1,
        "lamb": 0.1,
        "sgd": 0.1,
        "lars": 10.0,
        "novograd": 0.003,
    }.get(name, 0.01)
    state = training.init(params, optimizer, learning_rate=rate)
    epoch = training.make_epoch(optimizer, batch_size=20)
    losses = []
    for _ in range(4):
        state, steps = epoch(state, data)
        losses.append(float(np.mean(steps.loss)))
    assert losses[-1] < 0.98 * losses[0]
    assert state.diverged == -1


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
def test_every_schedule_is_at_most_one_and_gets_there(name):
    recipe, options = optimizers.parse("schedule", name, optimizers.SCHEDULES)
    schedule = recipe.make(**optimizers.in_steps(options, steps_of))
    with jax.numpy_dtype_promotion("standard"):  # as optax expects
        shares = [float(schedule(step)) for step in range(101)]
    assert max(shares) == pytest.approx(1, rel=0.02)
    assert min(shares) >= 0


def updates(optimizer, steps):
    gradient = jnp.float32(1)
    state = optimizer.init(gradient)
    taken = []
    for _ in range(steps):
        update, state = optimizer.update(gradient, state, gradient)
        taken.append(float(update))
    return taken


def test_a_schedule_is_a_share_of_the_learning_rate():
    taken = updates(optimizers.make("sgd", optimizers.make_schedule("linear", steps_of)), 101)
    np.testing.assert_allclose(taken, -np.linspace(1, 0, 101), atol=1e-6)


def test_durations_in_options_become_steps():
    text = "piecewise(boundaries_and_scales={'20%': 0.5, '40%': 0.5})"
    taken = updates(optimizers.make("sgd", optimizers.make_schedule(text, steps_of)), 60)
    assert [taken[i] for i in (0, 19, 21, 39, 41)] == [-1, -1, -0.5, -0.5, -0.25]


def test_options_are_those_of_optax():
    ours = updates(optimizers.make("adamw(weight_decay=0.1, b1=0.5)", CONSTANT), 5)
    with jax.numpy_dtype_promotion("standard"):  # as optax expects
        theirs = updates(optax.adamw(1.0, weight_decay=0.1, b1=0.5), 5)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("sgd(momentum=0.9, dampening=1)", "sgd has the options momentum, nesterov"),
        ("sgd(learning_rate=1)", "sgd has the options momentum"),
        ("momentun", "did you mean 'momentum'"),
    ],
)
def test_what_optax_does_not_take_is_refused(optimizer, message):
    with pytest.raises(ValueError, match=message):
        optimizers.make(optimizer, CONSTANT)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("cosine(init_value='much')", "config.schedule="),
        ("piecewise(boundaries_and_scales={'20%': 0.5, '20.1%': 0.5})", "are the same step"),
        ("cosine(alpha='10%')", "config.schedule="),
        ("cosin", "did you mean 'cosine'"),
        ("constant(value=-1)", "share of the learning rate is -1 at step 0"),
        ("linear(end_value=-1)", "must be 0 or more"),
        ("exponential(decay_rate=-0.5)", "share of the learning rate is nan at step"),
        ("linear(end=0)", "linear has the options init_value, end_value"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_as_one(schedule, message):
    with pytest.raises(ValueError, match=message):
        optimizers.make_schedule(schedule, steps_of)


@pytest.mark.parametrize("schedule", optimizers.SCHEDULES)
def test_schedules_as_they_are_make_sense(schedule):
    share = optimizers.make_schedule(schedule, steps_of)
    assert 0 < float(share(50)) <= 1


@pytest.mark.parametrize("name", ["adam", "yogi", "lamb"])
def test_optimizers_work_under_strict_promotion_of_types(name):
    ours = updates(optimizers.make(name, CONSTANT), 3)
    with jax.numpy_dtype_promotion("strict"):
        share = optimizers.make_schedule("linear_onecycle", steps_of)
        optimizers.make(name, share)
        assert updates(optimizers.make(name, CONSTANT), 3) == ours
