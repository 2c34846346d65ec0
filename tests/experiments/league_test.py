import json
import math

import numpy as np
import pytest
import scipy.sparse

import league
import softmax_jax.figures
from league_table import cells, picture, record, table, workers
from softmax_jax import solvers
from solver_comparison import measures, peers

SMALL = {
    "frozen": lambda seed: cells.frozen(seed, 30, 40, 5),
    "text": lambda seed: cells.text(seed, 40, 2000, 3, words=1000, length=20),
    "hashed": lambda seed: cells.text(seed, 40, 500, 3, words=2000, length=20),
    "tall": lambda seed: cells.tall(seed, 200, 6, 3),
    "wide": lambda seed: cells.wide(seed, 20, 60, 4),
    "badly scaled": lambda seed: cells.badly_scaled(seed, 200, 60, 5),
}
SIZES = {
    "frozen": (30, 40, 5),
    "text": (40, 2000, 3),
    "hashed": (40, 500, 3),
    "tall": (200, 6, 3),
    "wide": (20, 60, 4),
    "badly scaled": (200, 60, 5),
}


def dense(x):
    return x if isinstance(x, np.ndarray) else x.toarray()


@pytest.mark.parametrize("kind", SMALL)
def test_a_generator_is_a_function_of_the_seed(kind):
    first, second, other = SMALL[kind](0), SMALL[kind](0), SMALL[kind](1)
    n, d, q = SIZES[kind]
    assert first.x.shape == (n, d)
    assert first.y.shape == (n,)
    assert first.l2 == 1 / n
    assert set(first.y) == set(range(q))
    assert first.x.dtype == (np.float64 if kind == "badly scaled" else np.float32)
    np.testing.assert_array_equal(dense(first.x), dense(second.x))
    np.testing.assert_array_equal(first.y, second.y)
    assert (dense(first.x) != dense(other.x)).any()


def test_text_is_never_dense():
    # Dense it would take 80 GB.
    problem = cells.text(0, 10_000, 2_000_000, 2, words=10_000, length=8)
    assert scipy.sparse.issparse(problem.x)
    assert problem.x.format == "csr"
    np.testing.assert_allclose((problem.x**2).sum(axis=1), 1, rtol=1e-5)


def test_a_rotation_keeps_distances():
    x = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    rotated = cells._rotated(np.random.default_rng(1), x.copy())
    np.testing.assert_allclose(rotated @ rotated.T, x @ x.T, atol=1e-4)
    assert np.abs(rotated @ x.T - x @ x.T).max() > 1


def test_badly_scaled_columns_are():
    x = cells.badly_scaled(0, 500, 60, 5).x
    sizes = x.std(axis=0)
    assert sizes.max() / sizes.min() > 1e11
    correlations = np.corrcoef(x.T) - np.eye(60)
    assert np.sum(correlations.max(axis=0) > 0.999) == 2 * (60 // 3)


def test_elimination_drops_the_last_column_each_time():
    problems = cells.Cell(lambda seed: cells.tall(seed, 50, 4, 3), eliminate=True).problems()
    assert [problem.x.shape[1] for problem in problems] == [4, 3, 2, 1]
    np.testing.assert_array_equal(problems[3].x[:, 0], problems[0].x[:, 0])


def test_copies_differ():
    first, second = cells.Cell(SMALL["tall"], copies=2).problems()
    assert (first.x != second.x).any()


def test_fashion_mnist_is_there_where_its_files_are(monkeypatch, tmp_path):
    monkeypatch.delenv("SOFTMAX_JAX_DATA", raising=False)
    assert "fashion-mnist" not in cells.table()
    assert "fashion-mnist" in cells.table("folder")
    (tmp_path / "fashion_mnist").mkdir()
    monkeypatch.setenv("SOFTMAX_JAX_DATA", str(tmp_path))
    assert "fashion-mnist" in cells.table()


@pytest.mark.parametrize("kind", ["tall", "text"])
def test_workers_read_what_was_written(kind, tmp_path):
    problem = SMALL[kind](0)
    measures.write_data(tmp_path / "data.npz", problem.x, problem.y)
    x, y, divisor = measures.read_data({"data": tmp_path / "data.npz"})
    assert scipy.sparse.issparse(x) == (kind == "text")
    np.testing.assert_array_equal(dense(x), dense(problem.x))
    np.testing.assert_array_equal(y, problem.y)
    w, b = np.random.default_rng(0).normal(size=(x.shape[1], 3)), np.array([0.1, 0.2, -0.3])
    assert measures.objective(x, y, w, b, 0.1, divisor) == pytest.approx(
        measures.objective(dense(x).astype(np.float64), y, w, b, 0.1, divisor), rel=1e-9
    )


@pytest.mark.parametrize("package", ["scikit-learn", "cyanure"])
@pytest.mark.parametrize(("d", "q"), [(4, 2), (4, 3), (1, 3)])
def test_peers_come_to_our_minimum(package, d, q):
    pytest.importorskip(peers.MODULES[package])
    problem = cells.tall(0, 100, d, q)
    solution = solvers.fit(problem.x, problem.y, l2=problem.l2, tol=1e-8)
    task = {
        "solver": "lbfgs" if package == "scikit-learn" else "auto",
        "strengths": [peers.strengths_for(package, problem.l2, 100, q)],
    }
    model = workers.new_model(package, **workers.options(task, 0, 1000))
    model.fit(problem.x.astype(np.float64), problem.y)
    w, b = workers.params(model, package)
    value = measures.objective(problem.x, problem.y, w, b, problem.l2, 1.0)
    assert value == pytest.approx(solution.objective, rel=1e-6)


def cell(ours, peers, *, budget=100.0):
    """A result with these seconds of ours, and of peers by name, to both targets."""
    keys = table.KEYS
    return {
        "shape": {"rows": 1500, "features": 4, "classes": 3, "problems": 1},
        "proved": True,
        "budget": budget,
        "repeats": 3,
        "ours": {
            "seconds": {k: s for k, s in zip(keys, ours, strict=True) if s},
            "first": 3.0,
            "cached": None,
            "peak": 300.0,
        },
        "peers": {
            name: {
                "seconds": {k: s for k, s in zip(keys, seconds, strict=True) if s},
                "peak": None,
            }
            for name, seconds in peers.items()
        },
        "default": {"seconds": 0.5, "excess": 1e-4},
    }


CELLS = {
    "won": cell((1.0, 2.0), {"a": (4.0, 9.0), "b": (5.0, 8.0)}),
    "lost": cell((1.0, 2.0), {"a": (0.25, 1.0)}),
    "ours not met": cell((1.0, None), {"a": (1.0, 10.0)}),
    "peers not met": cell((1.0, 2.0), {"a": (3.0, None), "b": (None, None)}),
    "nobody": cell((None, None), {"a": (None, None)}),
}


def test_ratios():
    assert table.ratio(CELLS["won"], "0.001") == (4.0, "", "a")
    assert table.ratio(CELLS["won"], "1e-05") == (4.0, "", "b")
    assert table.ratio(CELLS["ours not met"], "1e-05") == (0.1, "<", "a")
    assert table.ratio(CELLS["peers not met"], "1e-05") == (50.0, ">", "")
    assert table.ratio(CELLS["nobody"], "0.001") is None
    assert [name for name in CELLS if (r := table.ratio(CELLS[name], "1e-05")) and r.lost] == [
        "lost",
        "ours not met",
    ]


def test_geometric_mean():
    ratios = [table.ratio(each, "1e-05") for each in CELLS.values()]
    assert table.geometric_mean(ratios) == pytest.approx((4 * 0.5 * 0.1 * 50) ** 0.25)
    assert math.isnan(table.geometric_mean([None]))


def test_the_table_says_who_wins():
    text = table.markdown(CELLS)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    assert "| a: 4 | 1 | 4.0 | b: 8 | 2 | 4.0 | 3 | - | 0.5 | 1e-04 | 300 | - |" in lines["won"]
    assert "**0.25 lost**" in lines["lost"]
    assert "**< 0.1 lost**" in lines["ours not met"]
    assert "> 100 | 2 | > 50.0" in lines["peers not met"]
    assert "1,500 x 4 x 3" in lines["won"]
    assert "mean of the ratios 1.78 over 4 cells; lost: lost, ours not met." in text
    assert len({line.count("|") for line in lines.values() if line.startswith("|")}) == 1


def test_the_figure_has_a_line_at_one(monkeypatch):
    for results in (CELLS, {}):
        ax = picture.draw(results).axes[0]
        assert ax.get_xscale() == "log"
        assert any(list(line.get_xdata()) == [1, 1] for line in ax.lines)
    assert len(picture.draw(CELLS).axes[0].get_yticklabels()) == len(CELLS)


def test_a_record_grows_and_is_kept(tmp_path):
    path = tmp_path / "league.json"
    found = record.read(path)
    assert found == {"cells": {}}
    found = record.merged(found, "won", CELLS["won"], "here")
    record.write(path, found)
    found = record.merged(record.read(path), "lost", CELLS["lost"], "there")
    record.write(path, found)
    assert list(tmp_path.iterdir()) == [path]
    assert list(record.read(path)["cells"]) == ["won", "lost"]
    assert record.is_kept(found, "won", budget=100.0, repeats=3)
    assert record.is_kept(found, "won", budget=50.0, repeats=1)
    assert not record.is_kept(found, "won", budget=200.0, repeats=3)
    assert not record.is_kept(found, "won", budget=100.0, repeats=5)
    assert not record.is_kept(found, "other", budget=100.0, repeats=3)
    new = record.merged(found, "won", {**CELLS["won"], "repeats": 5}, "here")
    assert new["cells"]["won"]["repeats"] == 5
    assert found["cells"]["won"]["repeats"] == 3


def test_cells_that_are_there_are_not_measured_again(monkeypatch, tmp_path, capsys):
    path, measured = tmp_path / "league.json", []

    def measure(name, *_, **settings):
        measured.append(name)
        return {**CELLS["won"], **settings}

    monkeypatch.setattr(league, "measure", measure)
    files = ["--json", str(path), "--figure", str(tmp_path / "league.png")]
    league.main(["--quick", "--cells", "iris", *files])
    league.main(["--quick", "--cells", "iris", "wide", *files])
    assert measured == ["iris", "wide"]
    out = capsys.readouterr().out
    assert out.count("| iris |") == 2
    assert out.count("| wide |") == 1
    league.main(["--quick", "--cells", "wide", "--again", *files])
    assert measured == ["iris", "wide", "wide"]
    with pytest.raises(SystemExit, match="no cells irises; there are iris, "):
        league.main(["--cells", "irises", *files])


@pytest.mark.slow
def test_a_cell_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.undo()  # the picture is wanted
    path, figure = tmp_path / "league.json", tmp_path / "league.png"
    flags = ["--cells", "iris", "--repeats", "1", "--budget", "20", "--solvers", "newton"]
    league.main([*flags, "--json", str(path), "--figure", str(figure)])
    assert "| iris | 150 x 4 x 3 |" in capsys.readouterr().out
    result = json.loads(path.read_text())["cells"]["iris"]
    assert result["proved"]
    assert set(result["peers"]) == {"scikit-learn newton-cholesky", "scikit-learn newton-cg"}
    assert all(result["ours"]["seconds"][key] > 0 for key in table.KEYS)
    assert all(ratio.value > 0 for ratio in (table.ratio(result, key) for key in table.KEYS))
    assert softmax_jax.figures.to_png(picture.draw({"iris": result}))[:4] == b"\x89PNG"
