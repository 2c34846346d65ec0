"""Ensembles: many models trained side by side in one program, as a sweep needs them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from softmax_jax import head
from softmax_jax.training import Program, TrainState, epoch_function


def make_epoch(
    optimizer: optax.GradientTransformation,
    *,
    batch_size: int,
    shared_order: bool,
    parts: int = 1,
    most_logits: int = head.MOST_LOGITS,
) -> Program:
    r"""Returns `training.make_epoch` for the states of many members, stacked by `stack`.

    The metrics have an axis of members in front. With a shared order, the members see the same
    minibatch at the same time, and one wide product :math:`X [W_1 \dots W_m]` serves them all.

    Example:
      >>> from softmax_jax import Data, Params, training
      >>> data = Data(x=jnp.eye(2), targets=jnp.array([0, 1]))
      >>> zero, optimizer = Params(jnp.zeros((2, 2)), jnp.zeros(2)), optax.sgd(1.0)
      >>> states = [training.init(zero, optimizer, learning_rate=rate) for rate in (0.1, 0.5)]
      >>> epoch = make_epoch(optimizer, batch_size=1, shared_order=True)
      >>> members, steps = epoch(stack(states, shared_order=True), data, None)
      >>> members.params.w.shape, steps.loss.shape
      ((2, 2, 2), (2, 2))
    """
    members = axes(shared_order)
    # Under vmap the fused strategy of a large head would do its work in both ways.
    epoch = epoch_function(optimizer, batch_size, most_logits, strategy="recompute", parts=parts)
    return Program(jax.vmap(epoch, in_axes=(members, None, None), out_axes=(members, 0)))


def axes(shared_order: bool) -> TrainState:
    """Returns the axis of the members in each part of a stacked state; None where they share it.

    Example:
      >>> members = axes(shared_order=True)
      >>> members.params, members.key
      (0, None)
    """
    places: Any = dict.fromkeys(TrainState._fields, 0)
    return TrainState(**places | {"step": None, "key": None if shared_order else 0})


@jax.transfer_guard("allow")
def stack(states: Sequence[TrainState], *, shared_order: bool) -> TrainState:
    """Returns the states as one; ``step`` and a shared order are those of the first.

    Example:
      >>> from softmax_jax import Params, training
      >>> zero, optimizer = Params(jnp.zeros((2, 2)), jnp.zeros(2)), optax.sgd(1.0)
      >>> states = [training.init(zero, optimizer, l2=l2) for l2 in (0.0, 0.5)]
      >>> members = stack(states, shared_order=True)
      >>> members.params.w.shape, members.l2.tolist()
      ((2, 2, 2), [0.0, 0.5])
    """
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    first = states[0]
    return stacked._replace(step=first.step, key=first.key if shared_order else stacked.key)
