import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import linear_cross_entropy as benchmark


@pytest.fixture
def arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(keys[0], (150, 4)), jax.random.normal(keys[1], (4, 9))
    return x, w, jax.random.randint(keys[2], (150,), 0, 9)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fused", "recompute"])
def test_all_ways_agree_with_the_reference(arrays, strategy):
    exact = benchmark.reference(*arrays)
    for loss in (
        benchmark.materialised,
        lambda *arrays: benchmark.ours(*arrays, strategy=strategy),
    ):
        found = jax.value_and_grad(loss, argnums=(0, 1))(*arrays)
        assert all(float(error) < 1e-6 for error in benchmark.errors(found, exact))


def test_errors_are_seen(arrays):
    exact = benchmark.reference(*arrays)
    wrong = exact[0] * 1.01, (exact[1], exact[2] + 0.1 * np.max(np.abs(exact[2])))
    assert [float(error) for error in benchmark.errors(wrong, exact)] == pytest.approx([0.01, 0.1])


@pytest.mark.slow
def test_the_table_has_a_line_for_each(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["linear_cross_entropy.py"])
    benchmark.main(["--rows=32", "--features=4", "--classes=64", "--rounds=1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("32 x 4, 64 classes, float32")
    names = [line[:22].strip() for line in lines]
    for name in ("materialised", "ours, auto", "ours, fused", "ours, recompute"):
        assert name in names
    assert jnp.isfinite(float(lines[names.index("ours, fused")].split()[3]))
