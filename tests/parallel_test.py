"""Meshes of eight virtual devices held to one device."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from softmax_jax import Data, Params, evaluation, head, metrics, model, parallel, solvers, training
from softmax_jax.solvers.placement import added_up_in_limbs

SHAPES = [(8, 1), (4, 2), (2, 4), (1, 8)]
RNG = np.random.default_rng(0)
# Nothing divides evenly: 37 rows, 21 classes.
X = RNG.normal(size=(37, 6)).astype(np.float32)
W, B = RNG.normal(size=(6, 21)).astype(np.float32), RNG.normal(size=21).astype(np.float32)
LABELS = RNG.integers(21, size=37)
WEIGHTS = RNG.uniform(0, 2, 37).astype(np.float32)


def mesh(shape, kind=AxisType.Auto):
    return jax.make_mesh(shape, ("data", "classes"), axis_types=(kind, kind))


# One of each kind is quick; the others run with the slow tests.
meshes = pytest.mark.parametrize(
    ("shape", "kind"),
    [
        pytest.param(
            shape,
            kind,
            id=f"{shape[0]}x{shape[1]}-{kind.name}",
            marks=()
            if (shape, kind) in {((4, 2), AxisType.Auto), ((2, 4), AxisType.Explicit)}
            else pytest.mark.slow,
        )
        for kind in (AxisType.Auto, AxisType.Explicit)
        for shape in SHAPES
    ],
)


def assert_same(found, expected, tolerance=1e-5):
    """Asserts equal integers, and numbers within a share of the largest of their array."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if np.issubdtype(b.dtype, np.floating):
            largest = np.max(np.abs(b), initial=1e-6)
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest)
        else:
            np.testing.assert_array_equal(a, b)


def test_a_mesh_has_the_devices_that_are_asked_for():
    assert parallel.make_mesh().shape == {"data": 8, "classes": 1}
    assert parallel.make_mesh(classes=4).shape == {"data": 2, "classes": 4}
    with pytest.raises(ValueError, match="3 x 4 takes 12 devices; there are 8"):
        parallel.make_mesh(data=3, classes=4)
    assert (parallel.extent("data"), parallel.extent("classes")) == (1, 1)
    with jax.set_mesh(parallel.make_mesh(data=4, classes=2)):
        assert (parallel.extent("data"), parallel.extent("classes")) == (4, 2)


def test_axes_of_other_names_do_not_count():
    with jax.set_mesh(jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))):
        assert (parallel.extent("data"), parallel.extent("classes")) == (1, 1)


HEADS = {
    "ids": lambda: {
        "targets": LABELS,
        "extras": ("nats", "logsumexp", "entropy", "collision", "argmax", "rank", "top_k"),
    },
    "distributions": lambda: {
        "targets": np.random.default_rng(1).dirichlet(np.ones(21), size=37).astype(np.float32),
        "extras": ("entropy", "top_k"),
        "label_smoothing": 0.1,
        "class_weights": np.linspace(0.5, 2, 21, dtype=np.float32),
    },
    "sparse": lambda: {
        "targets": head.SparseTargets(
            jnp.asarray(np.stack([LABELS, (LABELS + 3) % 21], axis=1)),
            jnp.full((37, 2), 0.5),
        ),
        "extras": ("argmax",),
    },
    "terms": lambda: {
        "targets": np.where(LABELS == 3, -1, LABELS),
        "ignore_id": -1,
        "label_smoothing": 0.1,
        "z_loss": 1e-3,
        "soft_cap": 3.0,
        "temperature": 0.7,
        "reduction": "mean",
    },
}


@meshes
@pytest.mark.parametrize("strategy", ["recompute", "fused"])
@pytest.mark.parametrize("case", HEADS)
def test_head(shape, kind, strategy, case):
    options = HEADS[case]()
    targets = options.pop("targets")

    def loss(x, w, b):
        out = head.linear_cross_entropy(
            x,
            w,
            b,
            targets,
            weights=WEIGHTS,
            k=4,
            strategy=strategy,
            block_classes=4,
            block_rows=5,
            **options,
        )
        return jnp.mean(out.loss), out

    differentiated = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    expected = differentiated(X, W, B)
    with jax.set_mesh(mesh(shape, kind)):
        found = differentiated(X, W, B)
    assert_same(found, expected)


@meshes
def test_head_whose_arrays_lie_on_the_mesh(shape, kind):
    x, w, labels = np.tile(X, (8, 1)), np.tile(W, (1, 8)), np.tile(LABELS, 8)

    def loss(x, w, labels):
        return head.linear_cross_entropy(x, w, None, labels, reduction="mean").loss

    expected = jax.value_and_grad(loss, argnums=(0, 1))(x, w, labels)
    chosen = mesh(shape, kind)
    with jax.set_mesh(chosen):
        places = PartitionSpec("data"), PartitionSpec(None, "classes"), PartitionSpec("data")
        arrays = (
            jax.device_put(a, NamedSharding(chosen, place))
            for a, place in zip((x, w, labels), places, strict=True)
        )
        found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*arrays)
        assert not found[1][1].sharding.is_fully_replicated or shape[1] == 1
    assert_same(found, expected)


def test_ties_between_devices_go_to_the_smaller_class():
    w = np.zeros((6, 21), np.float32)
    with jax.set_mesh(mesh((2, 4))):
        out = head.linear_cross_entropy(X, w, None, LABELS, extras=("argmax", "rank", "top_k"), k=9)
    assert np.all(np.asarray(out.argmax) == 0)
    np.testing.assert_array_equal(out.rank, LABELS)
    np.testing.assert_array_equal(out.top_ids, np.tile(np.arange(9), (37, 1)))


def test_hessian_products_on_a_mesh():
    def loss(w):
        return head.linear_cross_entropy(X, w, None, LABELS, reduction="mean").loss

    direction = np.random.default_rng(2).normal(size=W.shape).astype(np.float32)
    expected = jax.jvp(jax.grad(loss), (W,), (direction,))
    with jax.set_mesh(mesh((4, 2))):
        found = jax.jvp(jax.grad(loss), (W,), (direction,))
    assert_same(found, expected)


def test_predictions_on_a_mesh():
    params = Params(W, B)
    expected = head.top_k(params, X, k=3), head.predict(params, X, threshold=0.5)
    with jax.set_mesh(mesh((2, 4))):
        found = head.top_k(params, X, k=3), head.predict(params, X, threshold=0.5)
    assert_same(found, expected)


def test_inside_of_the_users_own_shard_map():
    """Axes that are manual there are the user's; the head works on what it is given."""
    x, labels = np.tile(X, (8, 1)), np.tile(LABELS, 8)
    expected = head.linear_cross_entropy(x, W, B, labels).loss

    def own(x, labels):
        return head.linear_cross_entropy(x, W, B, labels).loss

    chosen = mesh((8, 1))
    over = PartitionSpec("data")
    mapped = jax.shard_map(own, mesh=chosen, in_specs=(over, over), out_specs=over, check_vma=False)
    assert_same(mapped(x, labels), expected)


PIXELS = RNG.integers(0, 256, size=(1003, 12)).astype(np.uint8)
EXAMPLES = Data(PIXELS, RNG.integers(10, size=1003), scale=1 / 255)


def trained(most_logits, *, on_mesh):
    """Returns state, metrics of steps and scores after two epochs."""
    optimizer = optax.adam(0.05)
    data = parallel.spread(EXAMPLES, parts=8)
    params = model.init(jax.random.key(0), num_features=12, num_classes=10)
    params = parallel.laid_out(params, 10) if on_mesh else params
    state = training.init(params, optimizer, key=jax.random.key(1), l2=1e-3)
    epoch = training.make_epoch(optimizer, batch_size=64, parts=8, most_logits=most_logits)
    for _ in range(2):
        state, steps = epoch(state, data)
    scores = evaluation.evaluate(state.params, data, most_logits=most_logits)
    return (state.params, state.opt_state, steps), metrics.summarize(scores)


@meshes
@pytest.mark.parametrize("most_logits", [2**24, 100], ids=["logits", "head"])
def test_training(shape, kind, most_logits):
    expected, expected_scores = trained(most_logits, on_mesh=False)
    with jax.set_mesh(mesh(shape, kind)):
        found, scores = trained(most_logits, on_mesh=True)
    assert_same(found, expected)
    assert scores["accuracy"] == expected_scores["accuracy"]
    assert scores["nats"] == pytest.approx(expected_scores["nats"], rel=1e-5)


def test_parts_that_do_not_fit():
    with jax.set_mesh(mesh((4, 2))), pytest.raises(ValueError, match="4 devices do not divide 6"):
        parallel.spread(EXAMPLES, parts=6)
    epoch = training.make_epoch(optax.sgd(0.1), batch_size=64, parts=8)
    state = training.init(Params(jnp.zeros((12, 10)), jnp.zeros(10)), optax.sgd(0.1))
    with pytest.raises(ValueError, match="8 do not divide 1003 rows"):
        epoch(state, EXAMPLES)


def collectives(text):
    """Returns how many numbers each collective of a compiled program results in."""
    found = []
    for line in text.splitlines():
        operation = re.search(r" (all-reduce|all-gather|all-to-all|collective-permute)\(", line)
        if operation:
            shapes = re.findall(r"\[([\d,]*)\]", line[: operation.start()])
            found.append(sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes))
    return found


def test_a_step_adds_up_the_gradient_and_moves_no_rows():
    """The batch has 64 x 12 numbers and a gradient 12 x 10: only one of these is moved."""
    optimizer = optax.sgd(0.1)
    with jax.set_mesh(mesh((8, 1))):
        data = parallel.spread(EXAMPLES, parts=8)
        params = parallel.laid_out(Params(jnp.zeros((12, 10)), jnp.zeros(10)), 10)
        state = training.init(params, optimizer, key=jax.random.key(1))
        epoch = training.make_epoch(optimizer, batch_size=64, parts=8)
        compiled = epoch.lower(state, data).compile()
    moved = collectives(compiled.as_text())
    assert sum(moved) < 12 * 10 + 10 + 16
    assert sum(size >= 12 * 10 for size in moved) == 1


def test_no_device_has_all_rows():
    with jax.set_mesh(mesh((8, 1))):
        data = parallel.spread(EXAMPLES)
        assert {shard.data.shape for shard in data.x.addressable_shards} == {(126, 12)}
        assert data.weights is not None
        assert float(data.weights.sum()) == 1003


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(20_011, 60)).astype(np.float32)
    y = (x @ rng.normal(size=(60, 7)) * 0.3 + rng.gumbel(size=(20_011, 7))).argmax(axis=1)
    return x, y


@meshes
def test_certified_fit(problem, shape, kind):
    x, y = problem
    options = {"l2": 1e-3, "tol": 1e-4, "method": solvers.QuasiNewton(float64_below=0)}
    expected = solvers.fit(x, y, **options)
    with jax.set_mesh(mesh(shape, kind)):
        found = solvers.fit(x, y, **options)
    assert found.status == expected.status == solvers.Status.CERTIFIED
    assert abs(found.objective - expected.objective) <= found.gap + expected.gap


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"l2": 1e-2, "method": solvers.Newton()}, id="newton"),
        pytest.param({"l2": 1e-3, "method": "logits-free"}, id="logits-free"),
        pytest.param({"l2": 0.0, "l1": 1e-2}, id="orthant-newton"),
        pytest.param({"l2": 1e-3, "l1": 1e-2, "l1_method": "proximal"}, id="proximal"),
    ],
)
@pytest.mark.slow
def test_methods_on_a_mesh(problem, options):
    x, y = problem
    x, y = x[:3001, :40], y[:3001]
    expected = solvers.fit(x, y, tol=1e-4, **options)
    with jax.set_mesh(mesh((4, 2))):
        found = solvers.fit(x, y, tol=1e-4, **options)
    assert found.status == expected.status == solvers.Status.CERTIFIED
    assert abs(found.objective - expected.objective) <= found.gap + expected.gap


@pytest.mark.slow
def test_paths_and_folds_on_a_mesh(problem):
    x, y = problem
    x, y = x[:3001, :20], y[:3001]
    options = {"l2": np.array([1e-1, 1e-2]), "tol": 1e-6, "folds": 3}
    expected = solvers.cross_validate(x, y, **options)
    with jax.set_mesh(mesh((8, 1))):
        found = solvers.cross_validate(x, y, **options)
    assert found.best == expected.best
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sparse", "sparse l1", "in the space of rows", "soft"])
def test_problems_of_all_kinds_on_a_mesh(case):
    rng = np.random.default_rng(4)
    ids, options = rng.integers(4, size=3001), {"l2": 1e-2}
    if case.startswith("sparse"):
        x = scipy.sparse.random(3001, 4000, 0.01, "csr", np.float32, random_state=0)
        y, options = ids, {"l2": 0.0, "l1": 2e-3} if case.endswith("l1") else {"l2": 1e-3}
    elif case == "soft":
        x, y = rng.normal(size=(3003, 400)).astype(np.float32), rng.dirichlet(np.ones(9), size=3003)
        options |= {"offset": rng.normal(size=(3003, 9)), "sample_weight": rng.uniform(size=3003)}
    else:
        x, y = rng.normal(size=(203, 900)).astype(np.float32), ids[:203]
        options["method"] = solvers.QuasiNewton(in_row_space=True, float64_below=0, few=None)
    expected = solvers.fit(x, y, tol=1e-3, **options)
    with jax.set_mesh(mesh((8, 1))):
        found = solvers.fit(x, y, tol=1e-3, **options)
    assert found.status == expected.status == solvers.Status.CERTIFIED
    assert abs(found.objective - expected.objective) <= found.gap + expected.gap


def test_a_pass_adds_up_one_gradient(problem):
    """However many blocks there are; and nothing as large as the rows or their logits is moved."""
    from softmax_jax.solvers import jax_settings, passes
    from softmax_jax.solvers.inputs import arrange
    from softmax_jax.solvers.rows import checked_rows

    names = ("num_classes", "sample_weight", "class_weight", "offset", "scale", "shift", "initial")
    with jax.set_mesh(mesh((8, 1))), jax_settings.held():
        rows = checked_rows(*problem, **dict.fromkeys(names))
        inputs = arrange(rows, block_size=256, fit_intercept=True, standardize=False, grouped=False)
        p = inputs.problem
        assert p.blocks > 8
        q, columns = inputs.q, 1 + p.d
        probabilities = jnp.full((p.blocks, 1, q, p.rows), 1 / q)
        compiled = jax.jit(passes.gradient).lower(p, probabilities).compile()
    moved = collectives(compiled.as_text())
    assert sum(moved) < q * columns + 16
    assert sum(size >= q * columns for size in moved) == 1


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_limbs_of_float32_add_up_as_float64_does(devices):
    with jax.set_mesh(parallel.make_mesh(devices)), jax.enable_x64(True):
        a = RNG.normal(size=(devices, 50)) * 10.0 ** RNG.integers(-8, 8, size=50)
        for given in (a, -a, 0 * a, np.where(a > 1, 1e30, a)):
            found = jax.jit(
                jax.shard_map(
                    lambda a: added_up_in_limbs(a[0]),
                    in_specs=PartitionSpec("data"),
                    out_specs=PartitionSpec(),
                    check_vma=False,
                )
            )(given)
            rounding = 2.0**-52 * devices * np.abs(given).max()
            np.testing.assert_allclose(found, given.sum(axis=0), rtol=0, atol=rounding)
