"""The sections of a report: each looks at a trained model, and gives scores, pictures and tables.

A new one is a function of parameters and `Trained`, listed in `SECTIONS`, or passed to
`train_run.train` with the others; nothing else knows of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from runs import reliability, row_plots, scores, settings
from softmax_jax import data, evaluation, figures, losses, model
from softmax_jax.data import Data, blocks, features
from softmax_jax.model import Params

SURPRISING = 12
"""Test examples that are shown, those whose label is least likely."""


class Trained(NamedTuple):
    """A finished run beside the parameters of its best member."""

    dataset: data.Dataset
    test_data: Data
    """Test data on the device."""
    rows: Sequence[dict[str, Any]]
    """Rows of metrics.jsonl, of the best member."""
    members: Sequence[settings.Member]
    """One if nothing was swept."""
    scores: Sequence[dict[str, Any]]
    """Scores of each member."""


class Section(NamedTuple):
    """A part of the report, and of summary.json."""

    title: str
    caption: str = ""
    pictures: Mapping[str, Figure] = {}
    """Figures by name, which is that of the PNG in the workdir."""
    name: str = ""
    """Key of the scores in summary.json."""
    scores: Mapping[str, Any] | None = None
    """Numbers, text and None, as JSON can hold them; None if there is nothing to write."""
    cells: Sequence[Sequence[str]] = ()
    """A table, with its heads in the first line."""
    notes: Sequence[str] = ()
    """Sentences below the table."""
    of_one_member: bool = True
    """False if all members of a sweep are shown, not the best one."""


Run = Callable[[Params, Trained], Section | None]
"""A section to be; None if there is nothing to say of this model or these data."""


def sweep(params: Params, trained: Trained) -> Section | None:
    """Makes a section of all members by their settings."""
    if len(trained.members) == 1:
        return None
    return Section(
        "Sweep",
        "Test loss; of more than two settings, the lowest over the others. A cross is what "
        "diverged.",
        {"sweep": row_plots.sweep_map(trained.scores, scores.swept(trained.members))},
        cells=scores.cells(trained.scores),
        of_one_member=False,
    )


def curves(params: Params, trained: Trained) -> Section:
    """Loss and accuracy over the steps."""
    return learning_curves(trained.rows)


def learning_curves(rows: Sequence[dict[str, Any]]) -> Section:
    """Loss and accuracy of a member over the steps, of a run that need not be finished."""
    return Section(
        "Curves",
        "Training scores are means over the steps before; those on test data are of the "
        "parameters at that time.",
        {score: row_plots.learning_curve(rows, score) for score in ("loss", "accuracy")},
    )


def weights(params: Params, trained: Trained) -> Section | None:
    """The weights of each class, as an image."""
    shape, names = trained.dataset.image_shape, trained.dataset.class_names
    if shape is None:
        return None
    return Section(
        "Weights",
        "What speaks for each class (purple) and against it (orange).",
        {"weights": figures.weight_images(params.w, shape, names)},
    )


def confusion(params: Params, trained: Trained) -> Section:
    """Classes that are taken for each other."""
    counts = np.asarray(evaluation.evaluate(params, trained.test_data, confusion=True).confusion)
    return Section(
        "Confusion",
        "Test examples by their class and by what was predicted.",
        {"confusion": figures.confusion_matrix(counts, trained.dataset.class_names)},
    )


def calibration(params: Params, trained: Trained) -> Section:
    """Compares probabilities with frequencies, before and after a temperature; with abstaining."""
    most = reliability.MOST_LOGITS // len(trained.dataset.class_names)
    logits = logits_of(params, trained.test_data._replace(x=trained.test_data.x[:most]))
    found = reliability.calibrated(logits, np.asarray(trained.test_data.targets)[:most])
    section = Section("Calibration", name="calibration", scores=found.scores)
    if not found.pictures:
        return section
    return section._replace(
        caption="Half of the test examples, by the probability of the predicted class; a "
        "temperature was fitted to the others. Whiskers are where 95% of bootstrap samples are, "
        "where outcomes of a bin differ. Last, how many answers are wrong if only the most "
        "confident ones are given.",
        pictures=found.pictures,
        cells=reliability.table(found.scores),
        notes=[reliability.answers(found.scores), reliability.diagnosis(found.scores)],
    )


def surprising(params: Params, trained: Trained) -> Section | None:
    """The test examples whose label the model finds least likely."""
    if trained.dataset.image_shape is None:
        return None
    nats = [np.asarray(surprisal(params, part)) for part in in_blocks(trained.test_data)]
    bits = np.concatenate(nats) / np.log(2)
    worst = np.argsort(-bits, kind="stable")[:SURPRISING]
    x = np.asarray(trained.dataset.test.x)[worst]
    part = trained.test_data._replace(x=jnp.asarray(x), targets=trained.test_data.targets[worst])
    guesses = np.asarray(model.probabilities(params, features(part))).argmax(axis=1)
    targets = np.asarray(trained.dataset.test.targets)[worst]
    labels = targets if targets.ndim == 1 else targets.argmax(axis=1)
    picture = figures.surprising_examples(
        x.reshape(-1, *(trained.dataset.image_shape or ())),
        bits[worst],
        [trained.dataset.class_names[i] for i in labels],
        [trained.dataset.class_names[i] for i in guesses],
    )
    return Section(
        "Most surprising test examples",
        "Surprisal: minus the binary logarithm of the probability that the model gave to the true "
        "class.",
        {"surprising": picture},
    )


@jax.jit
def surprisal(params: Params, batch: Data) -> jax.Array:
    """Returns minus the log-probability of each target: ``[n]`` in nats."""
    return losses.cross_entropy(model.logits(params, features(batch)), batch.targets)


def logits_of(params: Params, batch: Data) -> np.ndarray:
    """Returns logits ``[n, q]`` on the host."""
    parts = [model.logits(params, features(part)) for part in in_blocks(batch)]
    return np.concatenate(list(map(np.asarray, parts)))


def in_blocks(batch: Data) -> list[Data]:
    return [
        batch._replace(x=batch.x[rows], targets=batch.targets[rows])
        for rows in blocks.slices(len(batch.x), blocks.ROWS)
    ]


SECTIONS: tuple[Run, ...] = (sweep, curves, weights, confusion, calibration, surprising)
"""Sections in the order of the report."""
