"""Epochs and evaluation whose features stay in files, held to those in memory."""

import jax
import numpy as np
import optax
import pytest

from softmax_jax import Data, Params, data, evaluate, parallel, training

RNG = np.random.default_rng(0)
N, D, Q = 203, 5, 6
STORED = RNG.normal(size=(N, D)) * 50 + 100
Y = RNG.integers(0, Q, N)
OPTIMIZER = optax.adam(1e-2)


def trained(x, *, parts=1, spread=False):
    """Returns the parameters after two epochs, their losses, and sums of an evaluation."""
    state = training.init(
        Params(np.zeros((D, Q), np.float32), np.zeros(Q, np.float32)),
        OPTIMIZER,
        key=jax.random.key(3),
    )
    examples = Data(x, Y, scale=1 / 50, shift=-2.0)
    if spread:
        examples, state = parallel.spread(examples, parts), parallel.laid_out(state, Q)
    epoch = training.make_epoch(OPTIMIZER, batch_size=64, parts=parts)
    losses = []
    for _ in range(2):
        state, scores = epoch(state, examples)
        losses.append(np.asarray(scores.loss))
    measured = evaluate(state.params, examples, block_size=48)
    return jax.tree.map(np.asarray, (state.params, losses, measured))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.float64, np.int32])
def test_epochs_and_evaluation_of_files_are_those_in_memory_to_the_bit(dtype):
    x = STORED.astype(dtype)
    jax.tree.map(np.testing.assert_array_equal, trained(data.rows_of_array(x)), trained(x))


@pytest.mark.parametrize("shape", [(4, 2), pytest.param((8, 1), marks=pytest.mark.slow)])
def test_they_are_on_meshes(shape):
    x = STORED.astype(np.float32)
    with jax.set_mesh(parallel.make_mesh(*shape)):
        found, expected = (
            trained(rows, parts=8, spread=True) for rows in (data.rows_of_array(x), x)
        )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_each_row_is_read_once_an_epoch():
    x, asked = STORED.astype(np.float32), []

    def read(rows):
        asked.extend(rows.tolist())
        return x[rows]

    state = training.init(Params(np.zeros((D, Q)), np.zeros(Q)), OPTIMIZER)
    examples = Data(data.StoredRows(x.shape, x.dtype, read), Y)
    training.make_epoch(OPTIMIZER, batch_size=29)(state, examples)
    assert sorted(asked) == list(range(N))
    asked.clear()
    evaluate(state.params, examples, block_size=29)
    assert sorted(asked) == list(range(N))


def test_a_file_that_vanishes_is_named(tmp_path):
    np.save(tmp_path / "x.npy", STORED)
    examples = Data(data.open_rows(tmp_path / "x.npy"), Y)
    (tmp_path / "x.npy").unlink()
    state = training.init(Params(np.zeros((D, Q)), np.zeros(Q)), OPTIMIZER)
    with pytest.raises(FileNotFoundError, match=r"x\.npy"):
        training.make_epoch(OPTIMIZER, batch_size=64)(state, examples)
    with pytest.raises(FileNotFoundError, match=r"x\.npy"):
        evaluate(state.params, examples)


def test_a_batch_has_to_be_read():
    x = data.rows_of_array(STORED)
    with pytest.raises(ValueError, match=r"give a batch of them, such as x\[:256\]"):
        data.features(Data(x, Y))
    state = training.init(Params(np.zeros((D, Q)), np.zeros(Q)), OPTIMIZER)
    update = training.make_update(OPTIMIZER)
    epoch = training.make_epoch(OPTIMIZER, batch_size=64)
    with pytest.raises(ValueError, match=r"x\[:256\]"):
        update(state, Data(x, Y))
    update(state, Data(x[:64], Y[:64]))
    for traced in (lambda s: evaluate(s.params, Data(x, Y)).weight, lambda s: epoch(s, Data(x, Y))):
        with pytest.raises(ValueError, match=r"call these outside of jax\.jit"):
            jax.jit(traced)(state)
