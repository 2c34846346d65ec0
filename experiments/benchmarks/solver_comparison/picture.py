"""A picture of ``single``: excess over seconds."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from .peers import OPTAX, OURS
from .tables import Row
from .trials import TARGETS, frontier

# Okabe and Ito's palette without its yellow, and a grey.
COLOURS = {
    OURS: "#0072B2",
    OPTAX: "#56B4E9",
    "scikit-learn lbfgs": "#D55E00",
    "scikit-learn newton-cg": "#000000",
    "scikit-learn newton-cholesky": "#999999",
    "scikit-learn sag": "#009E73",
    "scikit-learn saga": "#CC79A7",
    "cyanure, float32": "#E69F00",
    "cyanure, float64": "#E69F00",
}
MARKERS = "osD^vPX*<"


def draw(rows: Sequence[Row]) -> bytes:
    """Draws excess over seconds, a line a solver, as PNG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(9, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        for row in rows:
            name, _, calls = row.name.rpartition(", ")
            name = name if name in (OURS, OPTAX) else row.name
            points = np.array(frontier([(trial.seconds, trial.excess) for trial in row.trials]))
            if name not in COLOURS or not len(points):
                continue
            compiles = calls == "first call"
            ax.loglog(
                *points.T,
                label=f"{name}, with compilation" if compiles else name,
                color=COLOURS[name],
                marker=MARKERS[list(COLOURS).index(name)],
                markersize=4,
                linestyle="--" if compiles else "-",
                linewidth=2.5 if name == OURS else 1.4,
            )
        for target in TARGETS:
            ax.axhline(target, color="0.7", linewidth=0.8, linestyle=":", zorder=0)
        ax.set_xlabel("seconds of a fit from scratch")
        ax.set_ylabel("(F - min F) / min F, in float64")
        figure.legend(loc="outside right center", frameon=False)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()
