"""Optimisers and schedules by name, as a config gives them: "adam", "adamw(weight_decay=1e-4)".

They are those of optax, with its options. The learning rate is none of them: it is a factor on the
updates (`softmax_jax.training.TrainState`), so that a sweep can vary it, and a schedule says what
share of it each step takes. So those are here whose steps are in proportion to their learning
rate, which leaves out fromage and rprop, and the weight decay of adafactor. lbfgs and those of
Polyak look at the loss at other points, which an update step does not compute; noisy_sgd takes a
random key, and the schedule sgdr a list of others, which are nothing that a line of text can give.
"""

import ast
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from runs import hints

T = TypeVar("T")


class Recipe(NamedTuple):
    """A function of optax, and what it gets unless a config says otherwise."""

    make: Callable[..., Any]
    defaults: Mapping[str, Any] = {}
    without: Sequence[str] = ("learning_rate",)
    """Options that cannot be given."""


def _sm3(learning_rate: optax.Schedule, momentum: float = 0.9) -> optax.GradientTransformation:
    """Adds a schedule to SM3, which optax gives none."""
    return optax.chain(optax.sm3(1.0, momentum), optax.scale_by_schedule(learning_rate))


OPTIMIZERS: dict[str, Recipe] = {
    "adabelief": Recipe(optax.adabelief),
    "adadelta": Recipe(optax.adadelta),
    "adafactor": Recipe(optax.adafactor, without=("learning_rate", "weight_decay_rate")),
    "adagrad": Recipe(optax.adagrad),
    "adam": Recipe(optax.adam),
    "adamax": Recipe(optax.adamax),
    "adamaxw": Recipe(optax.adamaxw),
    "adamw": Recipe(optax.adamw),
    "adan": Recipe(optax.adan),
    "amsgrad": Recipe(optax.amsgrad),
    "lamb": Recipe(optax.lamb),
    "lars": Recipe(optax.lars),
    "lion": Recipe(optax.lion),
    "momentum": Recipe(optax.sgd, {"momentum": 0.9}),
    "nadam": Recipe(optax.nadam),
    "nadamw": Recipe(optax.nadamw),
    "nesterov": Recipe(optax.sgd, {"momentum": 0.9, "nesterov": True}),
    "novograd": Recipe(optax.novograd),
    "optimistic_adam": Recipe(optax.optimistic_adam_v2),
    "optimistic_gradient_descent": Recipe(optax.optimistic_gradient_descent),
    "radam": Recipe(optax.radam),
    "rmsprop": Recipe(optax.rmsprop),
    "sgd": Recipe(optax.sgd),
    "sign_sgd": Recipe(optax.sign_sgd),
    "signum": Recipe(optax.signum),
    "sm3": Recipe(_sm3),
    "yogi": Recipe(optax.yogi),
}

# Of the options of schedules, those that may be given as durations.
IN_STEPS = (
    "boundaries_and_scales",
    "decay_steps",
    "transition_begin",
    "transition_steps",
    "warmup_steps",
)
# The largest share is 1.
SCHEDULES: dict[str, Recipe] = {
    "constant": Recipe(optax.constant_schedule, {"value": 1.0}),
    "cosine": Recipe(optax.cosine_decay_schedule, {"init_value": 1.0, "decay_steps": "100%"}),
    "cosine_onecycle": Recipe(
        optax.cosine_onecycle_schedule, {"peak_value": 1.0, "transition_steps": "100%"}
    ),
    "exponential": Recipe(
        optax.exponential_decay,
        {"init_value": 1.0, "transition_steps": "100%", "decay_rate": 0.01},
    ),
    "linear": Recipe(
        optax.linear_schedule, {"init_value": 1.0, "end_value": 0.0, "transition_steps": "100%"}
    ),
    "linear_onecycle": Recipe(
        optax.linear_onecycle_schedule, {"peak_value": 1.0, "transition_steps": "100%"}
    ),
    "piecewise": Recipe(
        optax.piecewise_constant_schedule,
        {"init_value": 1.0, "boundaries_and_scales": {"50%": 0.1, "75%": 0.1}},
    ),
    "piecewise_interpolate": Recipe(
        optax.piecewise_interpolate_schedule,
        {
            "interpolate_type": "linear",
            "init_value": 1.0,
            "boundaries_and_scales": {"50%": 0.1, "100%": 0.1},
        },
    ),
    "polynomial": Recipe(
        optax.polynomial_schedule,
        {"init_value": 1.0, "end_value": 0.0, "power": 2, "transition_steps": "100%"},
    ),
    "warmup_constant": Recipe(
        optax.warmup_constant_schedule,
        {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": "5%"},
    ),
    "warmup_cosine": Recipe(
        optax.warmup_cosine_decay_schedule,
        {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": "5%", "decay_steps": "100%"},
    ),
    "warmup_exponential": Recipe(
        optax.warmup_exponential_decay_schedule,
        {
            "init_value": 0.0,
            "peak_value": 1.0,
            "warmup_steps": "5%",
            "transition_steps": "95%",
            "decay_rate": 0.01,
        },
    ),
}


def parse(key: str, text: str, registry: Mapping[str, Recipe]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that ``text`` names, and all of its options.

    Raises:
      ValueError: names what there is to choose, of recipes or of options.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        name = call.func.id
        given = {str(option.arg): ast.literal_eval(option.value) for option in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError(
            f"config.{key}={text!r}: give a name, or name(option=value, ...)"
        ) from None
    if name not in registry:
        raise ValueError(
            f"config.{key}={text!r}: choose one of {', '.join(registry)}"
            f"{hints.did_you_mean(name, registry)}"
        )
    recipe = registry[name]
    parameters = inspect.signature(recipe.make).parameters
    options = [option for option in parameters if option not in recipe.without]
    for option in given:
        if option not in options:
            raise ValueError(
                f"config.{key}={text!r}: {name} has the options {', '.join(options)}"
                f"{hints.did_you_mean(option, options)}"
            )
    return recipe, {**recipe.defaults, **given}


def make_schedule(schedule: str, steps_of: Callable[[str], int]) -> optax.Schedule:
    """The share of the learning rate that each step takes.

    Args:
      schedule: see `SCHEDULES`.
      steps_of: from a duration to steps.

    Raises:
      ValueError: if the options do not go together, or a step would go uphill or nowhere finite.
    """
    recipe, options = parse("schedule", schedule, SCHEDULES)

    def made() -> optax.Schedule:
        share = _as_optax_expects(recipe.make(**in_steps(options, steps_of)))
        # What does not go together shows when it is used.
        total = steps_of("100%")
        steps = np.linspace(0, max(total - 1, 0), min(total, 4096)).astype(np.int32)
        shares = np.asarray(jax.vmap(share)(steps)) * np.ones(len(steps))
        wrong = ~(np.isfinite(shares) & (shares >= 0))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ValueError(
                f"the share of the learning rate is {shares[at]:g} at step {steps[at]:,}; it must "
                "be 0 or more, and finite"
            )
        return share

    return _called("schedule", schedule, made)


def make(optimizer: str, share: optax.Schedule) -> optax.GradientTransformation:
    """The optimiser with a learning rate of one times the share.

    Args:
      optimizer: see `OPTIMIZERS`.
      share: from `make_schedule`.

    Raises:
      ValueError: if the options do not go together.
    """
    recipe, options = parse("optimizer", optimizer, OPTIMIZERS)

    def made() -> optax.GradientTransformation:
        plain = recipe.make(learning_rate=share, **options)
        result = type(plain)(*map(_as_optax_expects, plain))
        some = jnp.ones((2, 2))
        jax.eval_shape(lambda: result.update(some, result.init(some), some))
        return result

    return _called("optimizer", optimizer, made)


def _as_optax_expects(function: Callable[..., T]) -> Callable[..., T]:
    """The function under the standard promotion of types, without which much of optax fails."""

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> T:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **options)

    return called


def _called(key: str, text: str, function: Callable[[], T]) -> T:
    try:
        return function()
    except Exception as e:  # whatever optax makes of options that are of another kind
        raise ValueError(f"config.{key}={text!r}: {e or type(e).__name__}") from e


def in_steps(options: Mapping[str, Any], steps_of: Callable[[str], int]) -> dict[str, Any]:
    """The options with durations as steps, where they may be, also as the keys of an option.

    Raises:
      ValueError: if two keys are the same step.
    """

    def to_steps(value: Any) -> Any:
        if isinstance(value, Mapping):
            by_step = {to_steps(key): item for key, item in value.items()}
            if len(by_step) < len(value):
                raise ValueError(f"two of {', '.join(map(repr, value))} are the same step")
            return by_step
        is_duration = isinstance(value, str) and value.strip()[:1] in "0123456789."
        return steps_of(value) if is_duration else value

    return {name: to_steps(value) if name in IN_STEPS else value for name, value in options.items()}
