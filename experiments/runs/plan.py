"""The plan of a run: what a config and its data come to, with all durations in steps."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from runs import datasets, durations, files, optimizers, settings, validation
from softmax_jax import data, head, model, training
from softmax_jax.data import Data, blocks


class Plan(NamedTuple):
    """A run before it begins: its config, members, data, optimiser and durations in steps."""

    config: settings.Train
    members: list[settings.Member]
    """One, if nothing is swept."""
    dataset: data.Dataset
    train_data: Data
    test_data: Data
    validation_data: Data | None
    share: optax.Schedule
    """Share of the learning rate that each step takes."""
    optimizer: optax.GradientTransformation
    total: int
    """Steps of the run."""
    epoch: int
    """Steps of an epoch."""
    evaluate: int
    """Steps from one evaluation to the next."""
    save: int | None
    """Steps from one checkpoint to the next; None if it goes by seconds."""
    save_seconds: float
    """Seconds from one checkpoint to the next; inf if it goes by steps."""
    patience: int
    """Evaluations without a lower loss after which a member stops; 0 if none does."""
    data_digest: str
    """SHA-256 of the data set, compared where a run goes on."""

    @property
    def num_classes(self) -> int:
        """The q of the data set."""
        return len(self.dataset.class_names)

    @property
    def shared_order(self) -> bool:
        """True if all members see the same examples at the same time."""
        return len({member.order_seed for member in self.members}) == 1


def make(config: settings.Train, dataset: data.Dataset) -> Plan:
    """Plans a run; prints how much is held out.

    Raises:
      ValueError: if settings do not go together with the data.
    """
    validation_data = None
    if config.data.validation:
        dataset, held = validation.hold_out(dataset, config.data.validation, seed=config.seed)
        validation_data = datasets.batch(held)
        print(f"{len(held.x):,} of the training examples are held out for validation")
    train_data, test_data = datasets.batches(dataset, config.parts)
    n = len(train_data.x)
    if min(config.batch_size, n) % config.parts:
        raise ValueError(
            f"config.parts={config.parts}: they do not divide the {n:,} examples of a minibatch"
        )
    sizes = {"batch_size": min(config.batch_size, n), "num_examples": n}
    total = durations.steps(config.duration, **sizes)

    def steps_of(text: str) -> int:
        return durations.steps(text, **sizes, total_steps=total)

    seconds, unit = durations.parse(config.save_every)
    by_clock = unit == "seconds"
    steps = {
        "duration": total,
        "evaluate_every": steps_of(config.evaluate_every),
        "save_every": 1 if by_clock else steps_of(config.save_every),
    }
    for key, number in steps.items():
        if not 1 <= number < 2**31:
            bound = "less than a step" if number < 1 else "more than 2**31 steps"
            raise ValueError(f"config.{key}={getattr(config, key)!r} is {bound}")
    share = optimizers.make_schedule(config.schedule, steps_of)
    return Plan(
        config=config,
        members=settings.members(config),
        dataset=dataset,
        train_data=train_data,
        test_data=test_data,
        validation_data=validation_data,
        share=share,
        optimizer=optimizers.make(config.optimizer, share),
        total=total,
        epoch=steps_of("1 epoch"),
        evaluate=steps["evaluate_every"],
        save=None if by_clock else steps["save_every"],
        save_seconds=seconds if by_clock else np.inf,
        patience=config.patience,
        data_digest=datasets.digest(dataset),
    )


def groups(plan: Plan) -> list[list[int]]:
    """Splits the members into groups that fit ``config.sweep.memory``, as even as can be."""
    d, q, batch = plan.train_data.x.shape[1], plan.num_classes, plan.config.batch_size
    params = model.Params(jnp.zeros((d, q)), jnp.zeros(q))
    state = jax.eval_shape(lambda: training.init(params, plan.optimizer))
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves((state.params, state.opt_state)))
    # Old and new state and the gradient; logits of a batch, or of a block of test data, and what
    # is computed from them; the rows of a batch, where each member has its own.
    each = 3 * size + 6 * 4 * min(q * max(batch, blocks.ROWS), head.MOST_LOGITS)
    each += 0 if plan.shared_order else 8 * batch * d
    most = max(int(min(plan.config.sweep.memory * 2**30 / each, len(plan.members))), 1)
    number = -(-len(plan.members) // most)
    return [part.tolist() for part in np.array_split(np.arange(len(plan.members)), number)]


def examples(plan: Plan, steps: int) -> int:
    """Returns how many examples a member has seen after so many steps."""
    n = len(plan.train_data.x)
    epochs, rest = divmod(steps, plan.epoch)
    return epochs * n + min(rest * plan.config.batch_size, n)


def digest_of_run(plan: Plan, indices: Sequence[int]) -> str:
    """Returns a SHA-256 of the config and the members, by which a run knows its checkpoints."""
    config = files.to_json(settings.without_devices(plan.config))
    return hashlib.sha256(config + repr(list(indices)).encode()).hexdigest()
