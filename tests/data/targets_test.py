import jax
import jax.numpy as jnp
import numpy as np
import pytest

from softmax_jax import losses
from softmax_jax.data import SparseTargets, host_targets, targets
from softmax_jax.data.targets import Dense, Ids

PROBABILITIES = np.array([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]], np.float32)
SPARSE = SparseTargets(np.array([[1, 0], [2, 1]]), np.array([[0.75, 0.25], [0.5, 0.5]], np.float32))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ([2, 0], Ids),
        (np.array([[2], [0]]), Ids),
        (np.array([2, 0], np.uint8), Ids),
        (PROBABILITIES, Dense),
        (PROBABILITIES.tolist(), Dense),
        (SPARSE, SparseTargets),
    ],
)
def test_targets_are_told_apart_once(given, kind):
    parsed = targets.parse(given, (2, 3))
    assert type(parsed) is kind
    assert all(isinstance(a, jax.Array) for a in parsed)
    assert targets.parse(parsed, (2, 3)) is not None
    y = targets.distribution(parsed, 3, jnp.float32)
    expected = [[0, 0, 1], [1, 0, 0]] if kind is Ids else PROBABILITIES
    np.testing.assert_array_equal(y, expected)
    again = targets.distribution(targets.parse(targets.raw(parsed), (2, 3)), 3, jnp.float32)
    np.testing.assert_array_equal(again, y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros(3, int), "neither as class ids"),
        (np.zeros((2, 4)), "neither as class ids"),
        ([0, 3], "row 1 has class id 3, but there are 3 classes, with ids 0 to 2"),
        ([0.5, 1.0], "class ids of type float64; expected integers"),
        (SparseTargets(np.zeros((2, 1), int), np.zeros((2, 2))), "need ids and weights of shape"),
        (SparseTargets(np.zeros((2, 0), int), np.zeros((2, 0))), "at least one class a row"),
        (
            SparseTargets(np.full((2, 1), 7), np.ones((2, 1))),
            r"targets.ids: row \[0, 0\] has class id 7",
        ),
    ],
)
def test_what_are_no_targets_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        targets.parse(given, (2, 3))


def test_an_id_out_of_range_makes_its_row_nan_under_a_transformation():
    @jax.jit
    def run(ids):
        return targets.distribution(targets.parse(ids, (3, 3)), 3, jnp.float32)

    y = run(jnp.array([1, 3, -1]))
    np.testing.assert_array_equal(np.isnan(y).all(axis=1), [False, True, True])


def test_ids_to_ignore_do_not_count():
    parsed, counts = targets.parse_counted(np.array([2, -1]), (2, 3), -1)
    np.testing.assert_array_equal(parsed.ids, [2, 0])
    np.testing.assert_array_equal(counts, [True, False])
    assert targets.parse_counted([2, 0], (2, 3), None)[1] is None
    for given in (PROBABILITIES, SPARSE):
        with pytest.raises(ValueError, match="ignore_id is"):
            targets.parse_counted(given, (2, 3), -1)


@pytest.mark.parametrize("given", [np.array([1, 2]), PROBABILITIES, SPARSE])
def test_hits_are_the_weight_of_the_chosen_classes(given):
    parsed = targets.parse(given, (2, 3))
    y = np.asarray(targets.distribution(parsed, 3, jnp.float32))
    chosen = np.array([[1, 0], [2, -1]])
    expected = [y[0, 1] + y[0, 0], y[1, 2]]
    np.testing.assert_allclose(targets.hits(jnp.asarray(chosen), parsed), expected)


def test_losses_take_sparse_targets():
    logits = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], np.float32)
    for function in (losses.cross_entropy, losses.cross_entropy_gradient):
        np.testing.assert_allclose(
            function(logits, SPARSE), function(logits, PROBABILITIES), rtol=1e-6
        )


def test_targets_of_data_sets_are_the_same_as_ids_or_as_probabilities():
    ids, q = np.array([2, 0, 2, 1], np.int32), 3
    one_hot, weights = np.eye(q)[ids], np.array([[1.0, 2.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    values, kept = np.arange(6.0).reshape(2, 3), np.array([0, 2])
    both = ids, one_hot
    for y in both:
        np.testing.assert_array_equal(host_targets.expected(values, y), values[:, ids])
        np.testing.assert_array_equal(host_targets.mass_of_classes(y, weights[0], q), [2, 1, 1])
        np.testing.assert_array_equal(host_targets.mean_entropy(y, weights), [0, 0])
        np.testing.assert_array_equal(host_targets.most_probable(y), ids)
        assert host_targets.is_one_hot(y)
        assert host_targets.number_of_classes(y, None, "y") == q
    is_kept = np.isin(ids, kept)
    found = [host_targets.renumbered(y, kept, q)[is_kept] for y in both]
    np.testing.assert_array_equal(found[1], np.eye(2)[found[0]])
    np.testing.assert_array_equal(host_targets.with_more_classes(one_hot, 2), np.eye(5)[ids])
    assert host_targets.with_more_classes(ids, 2) is ids
    blocks = [host_targets.rows_last(y.reshape(2, 2, *y.shape[1:])) for y in both]
    for last in zip(*blocks, strict=True):
        found = [host_targets.by_class(jnp.asarray(y), q, jnp.float32) for y in last]
        np.testing.assert_array_equal(*found)


def test_the_entropy_of_targets_is_that_of_their_rows_that_have_weight():
    halves = np.array([[0.5, 0.5, 0], [0.0, 0.0, 1.0]])
    found = host_targets.mean_entropy(halves, np.array([[1.0, 0.0], [1.0, 3.0]]))
    np.testing.assert_allclose(found, [np.log(2), np.log(2) / 4], rtol=1e-15)
    assert not host_targets.is_one_hot(halves)
    np.testing.assert_array_equal(host_targets.normalized(3 * halves), halves)
