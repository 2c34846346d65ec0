import importlib.metadata
import itertools
import os
import shutil
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


def test_shapes_and_types_alone_are_enough_to_restore(tmp_path):
    saved(tmp_path, [3])
    with checkpoint.open_folder(tmp_path) as folder:
        found = checkpoint.restore(folder, jax.eval_shape(lambda: state_at(0)))
    assert_same(found.state, state_at(3))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found.state))


def test_keys_of_any_generator_are_restored_from_their_type(tmp_path):
    state = {
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
        "wide": np.float64(0.1),
    }
    like = {
        "keys": jax.eval_shape(lambda: state["keys"]),
        "wide": jax.ShapeDtypeStruct((), np.float64),
    }
    with checkpoint.open_folder(tmp_path) as folder:
        checkpoint.save(folder, 1, state, extra={}, score=0.0)
        found = checkpoint.restore(folder, like)
    assert_same(found.state, state)
    assert jax.random.key_impl(found.state["keys"]) == "rbg"


def test_other_shapes_than_were_saved_are_told_of(tmp_path):
    saved(tmp_path, [3])
    like = jax.eval_shape(lambda: state_at(0))._replace(l2=jax.ShapeDtypeStruct((2,), np.float32))
    with (
        checkpoint.open_folder(tmp_path) as folder,
        pytest.raises(ValueError, match=r"none of the 1 checkpoints .* can be read"),
    ):
        checkpoint.restore(folder, like)


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


def test_other_arrays_than_were_saved_are_noticed(tmp_path):
    saved(tmp_path, [1, 2])
    shutil.rmtree(tmp_path / "2" / "state")
    shutil.move(tmp_path / "1" / "state", tmp_path / "2" / "state")
    shutil.rmtree(tmp_path / "1")
    with pytest.raises(ValueError, match="not what was saved"):
        restored(tmp_path)


def test_another_extra_than_was_saved_is_noticed(tmp_path):
    saved(tmp_path, [3])
    (file,) = [
        path for path in (tmp_path / "3" / "about").iterdir() if b"pending" in path.read_bytes()
    ]
    file.write_bytes(file.read_bytes().replace(b"[[0.1]]", b"[[0.2]]"))
    with pytest.raises(ValueError, match="not what was saved"):
        restored(tmp_path)


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


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_a_folder_copied_or_renamed_is_not_the_step_of_its_name(tmp_path, move):
    saved(tmp_path, [2, 3])
    move(tmp_path / "3", tmp_path / "4")
    with pytest.warns(UserWarning, match=r"step 4 .* is damaged \(it is that of step 3, copied"):
        found = restored(tmp_path)
    expected = 3 if move is shutil.copytree else 2
    assert (found.step, int(found.state.step)) == (expected, expected)
    assert (tmp_path / "damaged-4").exists()


def test_a_copy_under_another_step_is_not_the_best(tmp_path):
    saved(tmp_path, [4, 5])
    shutil.copytree(tmp_path / "4", tmp_path / "7")
    with checkpoint.open_folder(tmp_path) as folder:
        assert folder.scores == {4: 0.0, 5: 1.0}
        with pytest.warns(UserWarning, match=r"step 7 .* \(it is that of step 4, copied"):
            assert checkpoint.restore(folder, state_at(0), best=True).step == 4
    assert (tmp_path / "damaged-7").exists()


def test_a_best_one_that_is_damaged_is_told_of(tmp_path):
    saved(tmp_path, [3, 4])
    with checkpoint.open_folder(tmp_path) as folder:
        assert checkpoint.restore(folder, state_at(0), best=True).step == 4
    about = tmp_path / "4" / "about" / "metadata"
    about.write_bytes(about.read_bytes()[:-10])
    with (
        checkpoint.open_folder(tmp_path) as folder,
        pytest.warns(UserWarning, match=r"step 4 .* is damaged .*; that of step 3 is taken"),
    ):
        assert checkpoint.restore(folder, state_at(0), best=True).step == 3


@pytest.mark.parametrize("step", [40.5, -1, "4"])
def test_a_step_is_a_number_of_steps(tmp_path, step):
    with (
        checkpoint.open_folder(tmp_path) as folder,
        pytest.raises(ValueError, match=r"step: .*; expected an integer, 0 or more"),
    ):
        checkpoint.save(folder, step, state_at(1), extra={}, score=0.0)


def test_what_json_cannot_hold_is_refused(tmp_path):
    with (
        checkpoint.open_folder(tmp_path) as folder,
        pytest.raises(ValueError, match=r"extra: .*; give what JSON can hold, and arrays"),
    ):
        checkpoint.save(folder, 1, state_at(1), extra={"a": object()}, score=0.0)


SCORES = {10: 2.0, 20: 0.5, 30: 1.0, 40: 3.0}


def save_scored(folder, scores):
    for step, score in scores.items():
        checkpoint.save(folder, step, state_at(step), extra={}, score=score)


def test_going_on_from_the_best_is_refused_while_later_ones_are_there(tmp_path):
    with checkpoint.open_folder(tmp_path, keep_last=3) as folder:
        save_scored(folder, SCORES)
        assert checkpoint.restore(folder, state_at(0), best=True).step == 20
        for step in (25, 40):
            with pytest.raises(ValueError, match=r"step \d+ cannot be saved: .* 40 already"):
                save_scored(folder, {step: 0.1})
        assert {step: folder.scores[step] for step in folder.manager.all_steps()} == {
            step: SCORES[step] for step in (20, 30, 40)
        }
        assert 25 not in folder.scores


def test_after_going_back_later_ones_are_put_aside_and_the_new_way_is_saved(tmp_path):
    with checkpoint.open_folder(tmp_path, keep_last=3) as folder:
        save_scored(folder, SCORES)
        found = checkpoint.restore(folder, state_at(0), best=True)
        checkpoint.rewind(folder, found.step)
        save_scored(folder, {25: 0.1, 30: 0.05})
    with checkpoint.open_folder(tmp_path) as folder:
        assert folder.scores == {20: 0.5, 25: 0.1, 30: 0.05}
        for best in (False, True):
            found = checkpoint.restore(folder, state_at(0), best=best)
            assert found.step == 30
            assert_same(found.state, state_at(30))
        with pytest.raises(ValueError, match="no checkpoint of step 26"):
            checkpoint.rewind(folder, 26)
        checkpoint.rewind(folder, 0)
        assert checkpoint.restore(folder, state_at(0)) is None
    names = {path.name for path in tmp_path.iterdir() if "-" in path.name}
    assert names == {f"abandoned-{step}" for step in ("20", "25", "30", "30-2", "40")}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (lambda: jax.enable_x64(True), "jax_enable_x64=False, .* now .*jax_enable_x64=True"),
        (lambda: jax.default_matmul_precision("highest"), "jax_default_matmul_precision=None"),
    ],
    ids=["x64", "matmul precision"],
)
def test_other_settings_of_jax_are_refused_with_both_values(tmp_path, setting, message):
    saved(tmp_path, [3])
    with setting(), pytest.raises(ValueError, match=message):
        restored(tmp_path)
    assert restored(tmp_path).step == 3


def test_other_versions_are_warned_of(tmp_path, monkeypatch):
    saved(tmp_path, [3])
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "9.9" if name == "optax" else version(name)
    )
    with pytest.warns(UserWarning, match=rf"optax {version('optax')} and now 9\.9: the last digit"):
        assert restored(tmp_path).step == 3


def test_paths_may_be_text_and_scores_steps_and_leaves_what_jax_and_numpy_have(tmp_path):
    state = {"a": 1.5, "b": np.arange(3), "c": jnp.ones(2)}
    with checkpoint.open_folder(str(tmp_path)) as folder:
        extra = {"loss": jnp.float32(0.25), "sums": np.arange(2)}
        checkpoint.save(folder, np.int64(2), state, extra=extra, score=jnp.float32(0.5))
        found = checkpoint.restore(folder, state, best=True)
    assert found.extra == {"loss": 0.25, "sums": [0, 1]}
    assert {name: np.asarray(a).tolist() for name, a in found.state.items()} == {
        "a": 1.5,
        "b": [0, 1, 2],
        "c": [1, 1],
    }


def test_a_path_that_is_not_utf8_is_refused_before_anything_is_saved(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9")
    with (
        pytest.raises(ValueError, match="the path is not UTF-8"),
        checkpoint.open_folder(path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("jump", [1e7, -1e7], ids=["forward", "back"])
def test_a_clock_that_jumps_ends_no_save(tmp_path, monkeypatch, jump):
    now, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: now() + jump * next(looks))
    assert saved(tmp_path, [1, 2]) == [1, 2]
    assert restored(tmp_path).step == 2
