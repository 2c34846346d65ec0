import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.special
from sklearn.datasets import load_iris
from sklearn.model_selection import LeaveOneGroupOut

from softmax_jax import solvers
from softmax_jax.solvers import cross_validate as cross_validate_
from softmax_jax.solvers.cross_validation import choices
from softmax_jax.solvers.folds import dealt_out
from softmax_jax.solvers.held_out import measured

N, D, Q, FOLDS = 150, 4, 3, 3
L2 = np.array([1e-4, 1e-2, 1e-1])
IDS = np.arange(N) % FOLDS
HELD_OUT = np.equal(IDS, np.arange(FOLDS)[:, None])
SCALE, SHIFT = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 1.0, -1.0, 0.5])


@pytest.fixture(scope="module")
def iris():
    """Decimillimetres as uint8, so that the features can be stored in any type."""
    x, y = load_iris(return_X_y=True)
    return np.round(10 * x).astype(np.uint8), y


def cross_validate(x, y, **options):
    """Cross-validates with what most tests share."""
    options = {"l2": L2, "folds": IDS, "scale": SCALE, "shift": SHIFT, "tol": 1e-10} | options
    return cross_validate_(x, y, **options)


def assert_same(a, b, **tolerances):
    for name in ("loss", "loss_error", "accuracy", "accuracy_error", "fold_loss", "fold_weight"):
        np.testing.assert_allclose(
            getattr(a, name), getattr(b, name), err_msg=name, **({"rtol": 1e-6} | tolerances)
        )
    assert (a.best, a.one_standard_error) == (b.best, b.one_standard_error)


def soft(y):
    p = 0.1 * np.random.default_rng(0).dirichlet(np.ones(Q), len(y))
    return 0.9 * np.eye(Q)[y] + p


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "soft targets"])
def test_a_loop_of_single_fits_gives_the_same_curve(iris, kind):
    x, y = iris
    if kind == "labels":
        p, targets, offset = np.eye(Q)[y], y, np.zeros((N, Q))
        class_weight = [1.0, 2.0, 0.5]
        weights = np.take(class_weight, y)
        found = cross_validate(x, y, class_weight=class_weight)
    else:
        rng = np.random.default_rng(1)
        p = targets = soft(y)
        weights, offset = rng.uniform(0.5, 2, N), rng.normal(size=(N, Q))
        found = cross_validate(x, targets, sample_weight=weights, offset=offset)

    x = x * SCALE + SHIFT
    loss, hits = np.zeros((2, FOLDS, len(L2)))
    for fold, i in np.ndindex(*loss.shape):
        train, test = ~HELD_OUT[fold], HELD_OUT[fold]
        (w, b), *_ = solvers.fit(
            x[train],
            targets[train],
            l2=L2[i],
            sample_weight=weights[train],
            offset=offset[train] if offset.any() else None,
            tol=1e-10,
        )
        o = x[test] @ w + b + offset[test]
        losses = -(p[test] * scipy.special.log_softmax(o, axis=1)).sum(axis=1)
        loss[fold, i] = np.average(losses, weights=weights[test])
        correct = p[test][np.arange(len(o)), o.argmax(axis=1)]
        hits[fold, i] = np.average(correct, weights=weights[test])
    weight = HELD_OUT @ weights
    np.testing.assert_allclose(found.fold_weight, weight)
    np.testing.assert_allclose(found.fold_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(found.fold_accuracy, hits, rtol=1e-6)
    np.testing.assert_allclose(found.loss, np.average(loss, axis=0, weights=weight), rtol=1e-5)
    np.testing.assert_allclose(found.accuracy, np.average(hits, axis=0, weights=weight), rtol=1e-6)
    assert found.best == (int(np.argmin(found.loss)),)
    assert (found.folds.status == solvers.Status.CERTIFIED).all()


@pytest.mark.slow
def test_a_grid_of_two_dimensions(iris):
    l2, l1 = np.array([[1e-3], [1e-1]]), np.array([0.0, 1e-2])
    found = cross_validate(*iris, l2=l2, l1=l1)
    assert found.l2.shape == found.l1.shape == found.loss.shape == found.path.gap.shape == (2, 2)
    assert found.fold_loss.shape == found.folds.gap.shape == (FOLDS, 2, 2)
    for at in np.ndindex(2, 2):
        alone = cross_validate(*iris, l2=found.l2[at], l1=found.l1[at])
        np.testing.assert_allclose(alone.fold_loss, found.fold_loss[(slice(None), *at)], rtol=1e-5)
        assert alone.best == alone.one_standard_error == ()
    assert found.loss[found.best] == found.loss.min()


@pytest.mark.slow
def test_standard_errors_of_folds_of_one_weight(iris):
    found = cross_validate(*iris)
    for values, mean, error in (
        (found.fold_loss, found.loss, found.loss_error),
        (found.fold_accuracy, found.accuracy, found.accuracy_error),
    ):
        np.testing.assert_allclose(mean, values.mean(axis=0))
        np.testing.assert_allclose(error, values.std(axis=0, ddof=1) / np.sqrt(FOLDS))


def test_the_path_is_of_all_rows(iris):
    x, y = iris
    path = cross_validate(x, y).path
    x = x * SCALE + SHIFT
    for w, b, l2, objective in zip(*path.params, L2, path.objective, strict=True):
        o = x @ w + b
        losses = scipy.special.logsumexp(o, axis=1) - o[np.arange(N), y]
        np.testing.assert_allclose(losses.mean() + l2 / 2 * (w * w).sum(), objective, rtol=1e-9)
        slope = x.T @ (scipy.special.softmax(o, axis=1) - np.eye(Q)[y]) / N + l2 * w
        np.testing.assert_allclose(slope, 0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("store", [scipy.sparse.csr_array, scipy.sparse.coo_matrix, jnp.asarray])
def test_features_of_any_kind(iris, store):
    x, y = iris
    assert_same(cross_validate(store(x), y), cross_validate(x, y), rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_blocks_do_not_matter(iris):
    whole = cross_validate(*iris, tol=1e-12)
    # The fits are the same but for rounding,
    assert_same(cross_validate(*iris, block_size=7, tol=1e-12), whole, rtol=1e-8)
    # and so are the scores of given fits, to the last digits.
    x, y = iris
    params = jax.tree.map(lambda a: a[0], whole.folds.params)
    all_rows = measured(x, y, None, N, np.ones(N), *params)
    for size in (7, 40):
        in_blocks = measured(x, y, None, size, np.ones(N), *params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), in_blocks, all_rows)


def test_a_weight_is_as_good_as_copies(iris):
    x, y = iris
    counts = np.random.default_rng(0).multinomial(N, np.full(N, 1 / N))
    copies = np.arange(N).repeat(counts)
    weighted = cross_validate(x, y, sample_weight=counts, tol=1e-12)
    assert_same(weighted, cross_validate(x[copies], y[copies], folds=IDS[copies], tol=1e-12))


def test_folds_as_pairs(iris):
    x, y = iris
    by_ids = cross_validate(x, y)
    masks = zip(~HELD_OUT, HELD_OUT, strict=True)
    assert_same(cross_validate(x, y, folds=masks), by_ids)
    splits = LeaveOneGroupOut().split(x, y, groups=IDS)
    assert_same(cross_validate(x, y, folds=splits), by_ids)


def test_names_of_folds_do_not_matter_and_negative_ones_are_never_held_out(iris):
    x, y = iris
    ids = np.where(np.arange(N) < 30, -7, 10 * IDS)
    masks = [(ids != name, ids == name) for name in (0, 10, 20)]
    by_ids = cross_validate(x, y, folds=ids)
    assert_same(by_ids, cross_validate(x, y, folds=masks))
    np.testing.assert_array_equal(by_ids.fold_weight, [40, 40, 40])


def test_folds_are_dealt_out_by_class():
    rng = np.random.default_rng(0)
    y = rng.choice(4, 103, p=[0.6, 0.3, 0.08, 0.02])
    y[y == 3] = 2
    y[17] = 3
    weights = rng.integers(0, 3, 103).astype(float)
    weights[17] = 1
    ids = dealt_out(5, y, weights, seed=0)
    assert ids[17] == -1, "held out, nothing is left of its class"
    assert (ids[weights == 0] == -1).all()
    counted = np.flatnonzero((weights > 0) & (y != 3))
    assert set(ids[counted]) == set(range(5))
    table = np.zeros((5, 3))
    np.add.at(table, (ids[counted], y[counted]), 1)
    assert np.ptp(table, axis=0).max() <= 1
    assert np.ptp(table.sum(axis=1)) <= 2
    np.testing.assert_array_equal(dealt_out(5, y, weights, seed=0), ids)
    assert (dealt_out(5, y, weights, seed=1) != ids).any()


def test_one_hot_targets_get_the_folds_of_their_labels(iris):
    y = iris[1]
    np.testing.assert_array_equal(
        dealt_out(4, np.eye(Q)[y], np.ones(N), 0), dealt_out(4, y, np.ones(N), 0)
    )


def test_seeds(iris):
    first, same, other = (cross_validate(*iris, folds=FOLDS, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.fold_loss, same.fold_loss)
    assert (first.fold_loss != other.fold_loss).any()


def test_the_one_standard_error_choice():
    l2 = np.array([1e-4, 1.0, 1e-3, 1e-1, 1e-2])
    loss = np.array([0.35, 0.9, 0.30, 0.34, 0.31])
    error = np.array([0.2, 0.2, 0.045, 0.0, 0.0])
    assert choices(l2, 0 * l2, loss, error) == ((2,), (3,))
    assert choices(l2, 0 * l2, loss, error / 2) == ((2,), (4,))
    assert choices(l2, 0 * l2, loss, 0 * error) == ((2,), (2,))
    # Among equals the stronger one.
    assert choices(l2, 0 * l2, 0 * loss, error) == ((1,), (1,))


def test_the_stronger_penalty_has_more_l1_and_then_more_l2():
    l2, l1 = np.meshgrid([1e-3, 1e-1], [0.0, 1e-3], indexing="ij")
    loss = np.array([[0.50, 0.53], [0.52, 0.7]])
    error = np.full((2, 2), 0.05)
    assert choices(l2, l1, loss, error) == ((0, 0), (0, 1))
    assert choices(l2, l1, loss, 0.5 * error) == ((0, 0), (1, 0))
    assert choices(l2, l1, loss, 10 * error) == ((0, 0), (1, 1))


@pytest.mark.slow
def test_classes_that_a_fold_cannot_train_on(iris):
    x, y = iris
    ids, weights = np.where(y == 2, 1, IDS), (np.arange(N) < 104).astype(float)
    with pytest.warns(UserWarning, match="4 held-out rows are of a class .* row 100 of class 2"):
        found = cross_validate(x, y, folds=ids, sample_weight=weights)
    assert np.isfinite(found.loss).all()
    np.testing.assert_array_equal(found.fold_weight, [np.sum(ids[:100] == k) for k in range(3)])
    # Nor is the loss finite of probabilities that give the class something.
    y = 0.9 * np.eye(Q)[np.where(y == 2, 0, y)] + 0.1 * np.eye(Q)[np.where(y == 2, 2, 0)]
    with pytest.warns(UserWarning, match="4 held-out rows"):
        soft = cross_validate(x, y, folds=ids, sample_weight=weights, offset=np.zeros((N, Q)))
    np.testing.assert_array_equal(soft.fold_weight, found.fold_weight)


def test_a_class_of_one_row_is_always_trained_on(iris):
    found = cross_validate(*iris, folds=FOLDS, sample_weight=np.arange(N) <= 100)
    assert found.fold_weight.sum() == 100


def test_a_second_call_compiles_nothing(iris, count_compilations):
    def run():
        return cross_validate(*iris, l2=2 * L2, folds=FOLDS, seed=3).loss

    run()
    assert count_compilations(run) == 0


def test_the_types_of_jax_stay_as_they_were(iris):
    cross_validate(*iris)
    assert jnp.asarray(0.5).dtype == jnp.float32
    assert not jax.config.jax_enable_x64


def test_a_score_takes_the_place_of_the_loss(iris):
    x, y = iris
    seen = []

    def hits(params, rows):
        seen.append(rows)
        return np.mean((x[rows] @ params.w + params.b).argmax(axis=1) == y[rows])

    found, by_loss = cross_validate(x, y, score=hits), cross_validate(x, y)
    np.testing.assert_allclose(found.fold_score, by_loss.fold_accuracy)
    np.testing.assert_allclose(found.score, by_loss.accuracy)
    np.testing.assert_allclose(found.score_error, by_loss.accuracy_error)
    np.testing.assert_array_equal(found.fold_loss, by_loss.fold_loss)
    np.testing.assert_array_equal(np.reshape(seen, (FOLDS, len(L2), -1))[:, 0], seen[:: len(L2)])
    np.testing.assert_array_equal(seen[0], np.flatnonzero(HELD_OUT[0]))
    assert by_loss.score is None
    wanted = iter([0.1, 0.4, np.nan, 0.5, 0.3, 0.9, 0.3, 0.2, 0.9])
    found = cross_validate(x, y, score=lambda params, rows: next(wanted))
    # Of equal scores the stronger penalty; what is not a number is the worst.
    assert found.best == (1,)


def test_a_score_sees_rows_of_classes_that_their_fold_cannot_train_on(iris):
    x, y = iris
    by_class = [(np.flatnonzero(y != k), np.flatnonzero(y == k)) for k in range(Q)]
    found = cross_validate(x, y, folds=by_class, score=lambda params, rows: -len(set(y[rows])))
    np.testing.assert_array_equal(found.fold_score, -np.ones((FOLDS, len(L2))))
    assert (found.loss == np.inf).all()
    np.testing.assert_array_equal(found.fold_accuracy, np.zeros((FOLDS, len(L2))))


@pytest.mark.slow
def test_standardized_features_are_those_divided_by_their_standard_deviations(iris):
    x, y = iris
    weights = np.random.default_rng(0).uniform(0.5, 2, N)
    x = np.c_[x, np.full(N, 7)]  # a constant one has no weights
    shared = {"scale": 0.1, "shift": 1.0, "sample_weight": weights, "tol": 1e-12}
    found = cross_validate(x, y, standardize=True, **shared)
    z = x * 0.1 + 1
    deviations = np.sqrt(np.cov(z.T, aweights=weights, ddof=0).diagonal())[:D]
    scaled = z[:, :D] / deviations
    options = {"sample_weight": weights, "tol": 1e-12, "scale": None, "shift": None}
    by_hand = cross_validate(scaled, y, **options)
    assert_same(found, by_hand, rtol=1e-5)
    w = found.path.params.w
    np.testing.assert_allclose(w[:, :D] * deviations[:, None], by_hand.path.params.w, rtol=1e-4)
    np.testing.assert_array_equal(w[:, D], 0)
    o = z @ w + found.path.params.b[:, None]
    expected = scaled @ by_hand.path.params.w + by_hand.path.params.b[:, None]
    np.testing.assert_allclose(o, expected, atol=1e-4)


def test_without_refit_the_folds_are_the_same(iris):
    found, both = cross_validate(*iris, refit=False), cross_validate(*iris)
    assert found.path is None
    assert_same(found, both, rtol=1e-6)
    assert found.folds.params.w.shape == (FOLDS, len(L2), D, Q)
    for name in ("status", "reason"):
        np.testing.assert_array_equal(getattr(found.folds, name), getattr(both.folds, name))


HALVES = (range(75), range(75, N))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds: 1 for 150 rows of positive weight; expected at least 2"),
        ({"folds": 151}, "folds: 151 for 150 rows"),
        ({"folds": np.zeros(N)}, r"folds: array of shape \(150,\) and type float64"),
        ({"folds": IDS[:-1]}, r"expected integers of shape \(150,\)"),
        ({"folds": np.zeros(N, int)}, "folds: 1; expected 2 or more"),
        ({"folds": []}, "folds: 0; expected 2 or more"),
        ({"folds": [HALVES]}, "folds: 1; expected 2 or more"),
        ({"folds": [HALVES, (range(2), range(N, N + 2))]}, r"indices of the 150 rows.*150 is out"),
        ({"folds": 2.5}, "expected a number, an integer array"),
        ({"folds": [HALVES, ([], [0])]}, "no row of positive weight is to train on in fold 1"),
        ({"folds": [HALVES, ([0, 60], [])]}, "no row of positive weight is held out in fold 1"),
        ({"folds": [HALVES, ([0, 60], [60])]}, "fold 1 both trains on row 60 and holds it out"),
        (
            {"folds": [HALVES, (range(50), [60])]},
            "folds: where fold 1 trains: all of the weight is on a single class, 0",
        ),
        ({"sample_weight": np.ones((2, N))}, r"sample_weight: 2 weightings; expected one"),
        ({"sample_weight": -np.ones(N)}, "row 0 has weight -1"),
        ({"l2": -1.0}, "l2: -1.0; expected finite numbers"),
        ({"num_classes": 2}, "row 100 has class id 2"),
        ({"scale": [1.0, 2.0]}, "scale: expected a finite number, or 4 of them"),
        ({"offset": np.zeros(3)}, r"offset: shape \(3,\)"),
    ],
)
def test_errors(iris, count_compilations, options, message):
    def call():
        with pytest.raises(ValueError, match=message):
            cross_validate(*iris, **options)

    assert count_compilations(call) == 0


@pytest.mark.filterwarnings("ignore:folds")
def test_nothing_to_score(iris):
    x, y = iris
    by_class = [(np.flatnonzero(y != k), np.flatnonzero(y == k)) for k in range(Q)]
    with pytest.raises(ValueError, match="all rows that fold 0 holds out are of classes"):
        cross_validate(x, y, folds=by_class)
