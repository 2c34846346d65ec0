import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from softmax_jax import checkpoint, model, training


def state_at(step):
    params = model.init(jax.random.key(step), num_features=5, num_classes=3)
    state = training.init(params, optax.adam(0.1), key=jax.random.key(7), l2=0.1 * step)
    return state._replace(step=jnp.int32(step))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert u.dtype == v.dtype
        if jnp.issubdtype(u.dtype, jax.dtypes.prng_key):
            u, v = jax.random.key_data(u), jax.random.key_data(v)
        np.testing.assert_array_equal(u, v)


def saved(path, steps, **options):
    """A folder with checkpoints of the steps; the score of a step is its number modulo 4."""
    with checkpoint.open_folder(path, **options) as folder:
        for step in steps:
            extra = {"seconds": step / 3, "pending": [[0.1]]}
            checkpoint.save(folder, step, state_at(step), extra=extra, score=step % 4)
        checkpoint.finish(folder)
        return sorted(folder.manager.all_steps())


def restored(path):
    with checkpoint.open_folder(path) as folder:
        return checkpoint.restore(folder, state_at(0))


def damage(folder, step, change):
    """Applies ``change`` to the largest file of a checkpoint's state."""
    files = [path for path in (folder / str(step) / "state").rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    path.write_bytes(change(path.read_bytes()))


def test_what_is_restored_is_what_was_saved(tmp_path):
    saved(tmp_path, [3])
    step, state, extra = restored(tmp_path)
    assert step == 3
    assert extra == {"seconds": 1.0, "pending": [[0.1]]}
    assert_same(state, state_at(3))


def test_a_folder_without_checkpoints_restores_nothing(tmp_path):
    assert restored(tmp_path / "new") is None


def test_the_last_and_the_best_are_kept(tmp_path):
    assert saved(tmp_path, range(3, 12), keep_last=2, keep_best=1) == [8, 10, 11]


def test_the_best_is_known_after_a_restart(tmp_path):
    saved(tmp_path, range(3, 6), keep_last=1, keep_best=1)
    for step in range(6, 8):
        assert saved(tmp_path, [step], keep_last=1, keep_best=1) == [4, step]


def test_a_score_that_is_infinite_is_no_best(tmp_path):
    with checkpoint.open_folder(tmp_path, keep_last=1, keep_best=1) as folder:
        for step in range(1, 4):
            checkpoint.save(folder, step, state_at(step), extra={}, score=float("inf"))
            checkpoint.finish(folder)
        assert list(folder.manager.all_steps()) == [3]


def test_the_latest_is_restored(tmp_path):
    saved(tmp_path, [1, 2, 3])
    assert restored(tmp_path).step == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: bytes(255 - byte for byte in content),
    ],
    ids=["empty", "cut", "inverted"],
)
def test_of_a_damaged_one_the_one_before_is_taken_with_a_warning(tmp_path, change):
    saved(tmp_path, [1, 2])
    damage(tmp_path, 2, change)
    with pytest.warns(UserWarning, match="step 2 .* is damaged .*; that of step 1 is taken"):
        found = restored(tmp_path)
    assert found.step == 1
    assert_same(found.state, state_at(1))
    assert not (tmp_path / "2").exists()
    assert (tmp_path / "damaged-2").exists()


def test_other_arrays_than_were_saved_are_noticed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_digest", lambda arrays, known: "another")
        saved(tmp_path, [2])
    with pytest.raises(ValueError, match="not what was saved"):
        restored(tmp_path)


def test_the_digest_is_of_arrays_and_extra():
    some = checkpoint._digest([np.arange(3)], {"a": 1.5, "b": [2]})
    assert some == checkpoint._digest([np.arange(3)], {"b": [2], "a": 1.5})
    assert some != checkpoint._digest([np.arange(3)], {"a": 1.5, "b": [3]})
    assert some != checkpoint._digest([np.arange(1, 4)], {"a": 1.5, "b": [2]})


def test_one_without_a_score_has_none_after_a_restart_either(tmp_path):
    with checkpoint.open_folder(tmp_path) as folder:
        checkpoint.save(folder, 1, state_at(1), extra={2: "b", 10: "a"}, score=float("inf"))
    with checkpoint.open_folder(tmp_path) as folder:
        assert checkpoint.restore(folder, state_at(0), best=True) is None
        assert checkpoint.restore(folder, state_at(0)).extra == {"2": "b", "10": "a"}


def test_the_best_is_restored_on_demand(tmp_path):
    saved(tmp_path, range(3, 12), keep_last=2, keep_best=1)
    with checkpoint.open_folder(tmp_path) as folder:
        found = checkpoint.restore(folder, state_at(0), best=True)
    assert found.step == 8
    assert_same(found.state, state_at(8))


def test_where_none_can_be_read_all_stay(tmp_path):
    saved(tmp_path, [1, 2])
    other = model.init(jax.random.key(0), num_features=6, num_classes=3)
    with checkpoint.open_folder(tmp_path) as folder:
        with pytest.raises(ValueError, match=r"none of the 2 checkpoints .* can be read"):
            checkpoint.restore(folder, training.init(other, optax.adam(0.1)))
        assert sorted(folder.manager.all_steps()) == [1, 2]


def test_what_a_killed_save_left_is_removed(tmp_path):
    saved(tmp_path, [1])
    left = tmp_path / "2.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "part").touch()
    assert restored(tmp_path).step == 1
    # In the background.
    while left.exists():
        time.sleep(0.01)


@pytest.mark.parametrize("options", [{"keep_last": 0}, {"keep_best": -1}])
def test_keeping_less_than_nothing_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match="at least 1 and 0"):
        saved(tmp_path, [], **options)


def test_one_step_may_be_damaged_twice(tmp_path):
    for aside in ("damaged-5", "damaged-5-2"):
        saved(tmp_path, [5] if (tmp_path / "4").exists() else [4, 5])
        damage(tmp_path, 5, lambda content: content[:10])
        with pytest.warns(UserWarning, match="step 5 .* damaged"):
            assert restored(tmp_path).step == 4
        assert (tmp_path / aside).exists()
