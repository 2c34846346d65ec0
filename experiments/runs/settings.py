"""The settings of an experiment: a frozen, validated dataclass with defaults.

Those that the library has, too, are the library's.

A file in `experiments/configs` overrides some of them and returns the whole as a `ConfigDict`, so
that ``--config.key=value`` can change any; `flags.from_config` turns that back into the dataclass.
"""

import dataclasses
import itertools
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from runs import durations, hints, optimizers, validation
from softmax_jax import checkpoint
from softmax_jax.codelength import online
from softmax_jax.data import npz
from softmax_jax.solvers import jobs


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set to train on; see `softmax_jax.data.load`."""

    name: str = "digits"
    folder: str = ""
    data_dir: str = ""
    validation: str = ""
    """Training examples that are held out: a share like ``10%``, or a number like ``500 rows``.
    They are drawn by the seed of the run; see ``patience``. Only `Train` knows it."""
    memory: float = npz.MAX_BYTES / 2**30
    """GiB that a compressed file may unpack to; one that is not may always be read."""

    def __post_init__(self):
        in_range = 0 <= self.memory < 2**20
        _require(in_range, "data.memory", self.memory, "0 or more, and below 2**20")

    @property
    def title(self) -> str:
        """Name in a word."""
        return pathlib.Path(self.name).stem


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices that share the work; see `softmax_jax.parallel`. A run may go on on another mesh."""

    data: int = 1
    """Devices that the examples lie over."""
    classes: int = 1
    """Devices that the classes lie over."""

    def __post_init__(self):
        for key in ("data", "classes"):
            _require_count(f"mesh.{key}", getattr(self, key))


@dataclasses.dataclass(frozen=True)
class OnData:
    """Settings that all experiments on a data set have."""

    data: Data = dataclasses.field(default_factory=Data)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)

    @property
    def title(self) -> str:
        """Name that the workdir begins with."""
        return self.data.title


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Settings in which members differ; where one is empty, all have the value of the run."""

    learning_rate: tuple[float, ...] = ()
    l2: tuple[float, ...] = ()
    label_smoothing: tuple[float, ...] = ()
    init_seed: tuple[int, ...] = ()
    """Seed of the initial parameters."""
    order_seed: tuple[int, ...] = ()
    """Seed of the order of the examples; members that share it are trained faster."""
    mode: str = "product"
    """``product``: a member for each combination; ``zip``: the first values, the second, ..."""
    memory: float = 2.0
    """GiB for the members that are trained at once; if it is too little, they go in groups."""

    def __post_init__(self):
        _require_choice("sweep.mode", self.mode, ("product", "zip"))
        _require(0 < self.memory < math.inf, "sweep.memory", self.memory, "positive and finite")
        values = {key: getattr(self, key) for key in Member._fields}
        for key, some in values.items():
            differ = len(set(some)) == len(some) or self.mode == "zip"
            _require(differ, f"sweep.{key}", some, "of numbers that differ")
        lengths = {key: len(some) for key, some in values.items() if some}
        if self.mode == "zip" and len(set(lengths.values())) > 1:
            raise ValueError(f"config.sweep: to zip them, give equally many of each: {lengths}")


class Member(NamedTuple):
    """One run of a sweep, or the only one."""

    learning_rate: float
    l2: float
    label_smoothing: float
    init_seed: int
    order_seed: int


@dataclasses.dataclass(frozen=True)
class Train(OnData):
    """Settings of `experiments/train.py`."""

    seed: int = 0
    """Seed of the initial parameters and of the order of the examples."""
    duration: str = "30 epochs"
    """Length in epochs, steps or examples; the durations below may also be like ``10%``."""
    batch_size: int = 256
    parts: int = 0
    """Parts of the training data that each fill their share of a minibatch, so that devices which
    have whole parts need no examples of one another: a multiple of ``mesh.data``, and by default
    just that. The order of the examples depends on it, and on no other setting of devices."""
    optimizer: str = "sgd"
    """One of `optimizers.OPTIMIZERS`, as in ``adam`` or ``adamw(weight_decay=1e-4)``."""
    learning_rate: float = 0.1
    schedule: str = "constant"
    """One of `optimizers.SCHEDULES`, as in ``cosine`` or ``warmup_cosine(warmup_steps="5%")``."""
    l2: float = 0.0
    label_smoothing: float = 0.0
    evaluate_every: str = "1 epoch"
    save_every: str = "30 seconds"
    """Time between checkpoints, from which a run that is killed goes on."""
    keep_last: int = checkpoint.KEEP_LAST
    keep_best: int = checkpoint.KEEP_BEST
    """Number of checkpoints with the lowest validation loss that stay beside the ``keep_last``
    latest; test loss counts if nothing is held out."""
    patience: int = 0
    """Evaluations in a row without a lower validation loss, after which a member stops; 0: never.
    The result is always the step with the lowest one, where data are held out."""
    sweep: Sweep = dataclasses.field(default_factory=Sweep)

    def __post_init__(self):
        _require_count("batch_size", self.batch_size)
        is_shared = 0 <= self.parts < 2**31 and self.parts % self.mesh.data == 0
        _require(is_shared, "parts", self.parts, f"a multiple of mesh.data, {self.mesh.data}")
        parts = self.parts or self.mesh.data
        is_shared = self.batch_size % parts == 0
        _require(is_shared, "batch_size", self.batch_size, f"a multiple of the {parts} parts")
        _require_count("keep_last", self.keep_last)
        _require(self.keep_best >= 0, "keep_best", self.keep_best, "0 or more")
        in_range = 0 <= self.patience < 2**31
        _require(in_range, "patience", self.patience, "0 or more, and below 2**31")
        if self.data.validation:
            try:
                validation.parse(self.data.validation)
            except ValueError as e:
                raise ValueError(f"config.data.validation={e}") from e
        elif self.patience:
            raise ValueError(
                f"config.patience={self.patience}: there are no validation data to judge by; give "
                "config.data.validation, '10%' for example"
            )
        for key, others in (
            ("duration", ()),
            ("evaluate_every", ("%",)),
            ("save_every", ("%", "seconds")),
        ):
            value = getattr(self, key)
            try:
                number, unit = durations.parse(value)
            except ValueError as e:
                raise ValueError(f"config.{key}: {e}") from e
            allowed = ("steps", "epochs", "examples", *others)
            _require(
                number > 0 and unit in allowed, key, value, f"positive, in {', '.join(allowed)}"
            )
        optimizers.parse("optimizer", self.optimizer, optimizers.OPTIMIZERS)
        optimizers.parse("schedule", self.schedule, optimizers.SCHEDULES)
        _check_member(members(self, Sweep())[0])
        for member in members(self):
            _check_member(member, "sweep.")


def with_parts(config: Train) -> Train:
    """Returns the settings with the number of parts decided."""
    return dataclasses.replace(config, parts=config.parts or config.mesh.data)


def without_devices(config: Any) -> dict[str, Any]:
    """Returns settings by which runs are told apart: all but those of the mesh."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key != "mesh"}


def members(config: Train, sweep: Sweep | None = None) -> list[Member]:
    """Returns the runs of a sweep, by default that of the config; one, if nothing is swept."""
    sweep = config.sweep if sweep is None else sweep
    own = Member(config.learning_rate, config.l2, config.label_smoothing, config.seed, config.seed)
    axes = [getattr(sweep, key) for key in Member._fields]
    if sweep.mode == "product":
        filled = [values or (value,) for values, value in zip(axes, own, strict=True)]
        return [Member(*values) for values in itertools.product(*filled)]
    number = max(map(len, axes)) or 1
    filled = [values or (value,) * number for values, value in zip(axes, own, strict=True)]
    return [Member(*values) for values in zip(*filled, strict=True)]


_STRENGTH = "0 or more, and below 1e30"


def _is_strength(value: float) -> bool:
    """Returns whether float32 holds a strength and its products with weights."""
    return 0 <= value < 1e30


def _check_member(member: Member, prefix: str = "") -> None:
    for key in ("init_seed", "order_seed"):
        seed = getattr(member, key)
        name = f"{prefix}{key}" if prefix else "seed"
        _require(0 <= seed < 2**32, name, seed, "0 or more and below 2**32")
    rate = member.learning_rate
    with np.errstate(over="ignore", under="ignore"):
        as_float32 = float(np.float32(rate))
    in_range = 0 < as_float32 < math.inf
    _require(in_range, f"{prefix}learning_rate", rate, "positive and finite as a float32")
    _require(_is_strength(member.l2), f"{prefix}l2", member.l2, _STRENGTH)
    smoothing = member.label_smoothing
    _require(0 <= smoothing <= 1, f"{prefix}label_smoothing", smoothing, "in [0, 1]")


@dataclasses.dataclass(frozen=True)
class Fit(OnData):
    """Settings of `experiments/fit.py`. There is no seed, as an optimum depends on none."""

    l2: tuple[float, ...] = (1e-4,)
    l1: tuple[float, ...] = (0.0,)
    """Each is paired with every ``l2``."""
    grouped: bool = False
    """Whether ``l1`` weighs the norm of a feature's weights in all classes, not each weight."""
    tol: float = jobs.TOL
    """The certified gap to stop at, relative to the objective."""
    max_passes: int = jobs.MAX_PASSES
    """Over the training data, for each pair of strengths."""

    def __post_init__(self):
        for key in ("l2", "l1"):
            values = getattr(self, key)
            some = isinstance(values, tuple) and len(values) > 0
            _require(some, key, values, "a tuple of one number or more")
            in_range = all(map(_is_strength, values))
            _require(in_range, key, values, f"of numbers that are {_STRENGTH}")
            _require(len(set(values)) == len(values), key, values, "of numbers that differ")
        acts = max(self.l1) > 0
        _require(acts or not self.grouped, "grouped", self.grouped, "False, as there is no l1")
        _require(0 < self.tol < 1, "tol", self.tol, "above 0 and below 1")
        _require_count("max_passes", self.max_passes)


@dataclasses.dataclass(frozen=True)
class Codelength(OnData):
    """Settings of `experiments/codelength.py`."""

    seed: int = 0
    """Seed of the order in which labels are sent, and of the control task."""
    l2: float = 1e-4
    """Penalty of the model that compresses the test labels, fitted to all training data."""
    tol: float = online.TOL
    """The certified gap of each fit, relative to its objective."""
    precision: float = online.PRECISION
    """Precision of the prior on weights that are refitted: their l2 times their labels."""
    percent: tuple[float, ...] = online.PERCENT
    """Shares of the training labels after which the model is refitted; the last one is all."""
    optimizer: str = "adam"
    """Optimiser of the model that takes one pass; one of `optimizers.OPTIMIZERS`."""
    learning_rate: float = 0.01
    batch_size: int = online.BATCH_SIZE

    @property
    def title(self) -> str:
        """Name that the workdir begins with."""
        return f"codelength-{self.data.title}"

    def __post_init__(self):
        _check_member(Member(self.learning_rate, self.l2, 0.0, self.seed, self.seed))
        _require(0 < self.tol < 1, "tol", self.tol, "above 0 and below 1")
        in_range = 0 < self.precision < math.inf
        _require(in_range, "precision", self.precision, "positive and finite")
        _require_count("batch_size", self.batch_size)
        try:
            online.block_ends(1, self.percent)
        except ValueError as e:
            raise ValueError(f"config.percent={self.percent}: they must rise to 100") from e
        optimizers.parse("optimizer", self.optimizer, optimizers.OPTIMIZERS)


@dataclasses.dataclass(frozen=True)
class Head:
    """Settings of `experiments/head.py`."""

    levels: int = 64
    features: int = 3
    """There are ``levels ** features`` classes."""
    sharpness: float = 4.0
    """Size of the logits for a feature of one."""
    seed: int = 0
    """Seed of all that is drawn."""
    steps: int = 400
    batch_size: int = 128
    draws: int = 1024
    """Labels of an example."""
    optimizer: str = "adam(b2=0.99)"
    learning_rate: float = 0.2
    schedule: str = "cosine"
    evaluate_every: int = 20
    """Steps from one evaluation to the next."""
    test_rows: int = 512
    mesh: Mesh = dataclasses.field(default_factory=Mesh)

    def __post_init__(self):
        for key in ("features", "steps", "batch_size", "draws", "evaluate_every", "test_rows"):
            _require_count(key, getattr(self, key))
        _require(self.levels >= 2, "levels", self.levels, "2 or more")
        many = self.features * math.log2(self.levels) > 24
        _require(not many, "levels", self.levels, "such that there are at most 2**24 classes")
        _require(0 <= self.sharpness < 1e3, "sharpness", self.sharpness, "0 or more, below 1000")
        _check_member(Member(self.learning_rate, 0.0, 0.0, self.seed, self.seed))
        optimizers.parse("optimizer", self.optimizer, optimizers.OPTIMIZERS)
        optimizers.parse("schedule", self.schedule, optimizers.SCHEDULES)

    @property
    def title(self) -> str:
        """Name that the workdir begins with."""
        return f"head-{self.levels**self.features}"

    def steps_of(self, duration: str) -> int:
        """Returns a duration in steps, as the options of a schedule need it."""
        return durations.steps(
            duration,
            batch_size=self.batch_size,
            num_examples=self.steps * self.batch_size,
            total_steps=self.steps,
        )


def log_grid(first: float, last: float, number: int) -> tuple[float, ...]:
    """Returns strengths with a constant ratio from one to the next."""
    return tuple(np.geomspace(first, last, number).tolist())


def _require(condition: bool, key: str, value: Any, what: str) -> None:
    if not condition:
        raise ValueError(f"config.{key}={value!r}: it must be {what}")


def _require_count(key: str, value: int) -> None:
    _require(1 <= value < 2**31, key, value, "1 or more, and below 2**31")


def _require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"config.{key}={value!r}: choose one of {', '.join(choices)}"
            f"{hints.did_you_mean(value, choices)}"
        )
