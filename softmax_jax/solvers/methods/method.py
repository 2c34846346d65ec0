"""The duties of a method: what the solvers ask of every one of them.

A method is a frozen dataclass of its tuned constants. All that it knows about the problems that it
solves is in a `Setup`. To add one, write a module with a subclass of `IterativeMethod` or
`PathMethod`, and give an instance to ``fit(method=...)``.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import (
    Any,
    ClassVar,
    Generic,
    NamedTuple,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    runtime_checkable,
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from softmax_jax._annotations import Array, ArrayLike, Bool, Float, NDArray
from softmax_jax.solvers import certificate as certificates
from softmax_jax.solvers.certificate import Certificate
from softmax_jax.solvers.compiled import compiled
from softmax_jax.solvers.inputs import Inputs
from softmax_jax.solvers.jobs import Job
from softmax_jax.solvers.problem import Problem, cast
from softmax_jax.solvers.units import Units


@runtime_checkable
class State(Protocol):
    """Parts that the state of an iterative method has, for ``k`` problems; a NamedTuple."""

    @property
    def theta(self) -> Float[Array, "k q columns"]:
        """Parameters, the bias in front."""

    @property
    def value(self) -> Float[Array, " k"]:
        """Objectives in working precision; inf before the first step."""

    @property
    def gap(self) -> Float[Array, " k"]:
        """Estimates of the duality gap."""

    @property
    def done(self) -> Bool[Array, " k"]:
        """Problems that have reached their target, or can make no step."""


StateOfMethod = TypeVar("StateOfMethod", bound=State)
"""State of a method's own making."""
Aids: TypeAlias = Any
"""Arrays that a method computed from the rows: any pytree, which the method alone looks into."""


class Mixture(NamedTuple):
    """Distributions for the bound of ``k`` problems, other than those of the parameters."""

    probabilities: Float[Array, "blocks k q rows"]
    is_needed: Bool[NDArray, " k"]
    """Problems for which those of the parameters do not suffice."""


class Walk(NamedTuple):
    """The places at which ``k`` problems arrived on a path of ``strengths``."""

    theta: Float[Array, "strengths k q columns"]
    """Parameters."""
    value: Float[Array, "strengths k"]
    """Objectives in working precision."""
    gap: Float[Array, "strengths k"]
    """Estimates of the duality gap; inf for strengths that were not reached."""
    passes: Float[Array, "strengths k"]
    """Passes that each took."""


class Setup(NamedTuple):
    """Problems on the same rows, laid out for a method."""

    exact: Problem
    """Rows in float64, for certificates; with the chosen weightings, and no strengths."""
    working: Problem
    """Rows in the type that the work is done in."""
    units: Units
    """Units of their features."""
    aids: Aids
    origin: np.ndarray | None = None
    """``[q, 1 + d]`` parameters to begin with; None means zero."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """An algorithm and its tuned constants.

    Methods are hashable, and equal ones share their compiled programs.

    Example:
      >>> from softmax_jax.solvers import QuasiNewton
      >>> method = QuasiNewton(memory=20)
      >>> method == QuasiNewton(memory=20), method == QuasiNewton()
      (True, False)
    """

    width: int = 4
    """Weightings that share a pass: four take less time together than one after the other."""
    steps: int = 50
    """Steps from one look of the host at the problems to the next."""
    patience: int = 1000
    """Steps without progress after which the working precision counts as exhausted."""
    warm_up: tuple[int, ...] = (16, 4)
    """Problems begin on a 16th of the rows, then on a quarter, if there are so many blocks."""
    warm_up_steps: int = 50
    """Steps on each of these samples."""
    warm_up_passes: int = 50
    """Passes over all rows that the samples may take, where `warm_up_steps` is more."""
    warm_up_target: float = 0.02
    """Relative gap that is small enough on a sample."""
    float64_below: int = 10_000_000
    """Up to so many multiplications a pass, n d q, the work is in float64 from the start.

    Precision costs next to nothing there, and results of equivalent problems agree.
    """
    float64_target: float = math.inf
    """Relative gap that such small problems go on to, if it is less than the tolerance."""
    always_float64: bool = False
    """Whether the work on large problems is in float64, too."""
    tightening: float = 2.0
    """Divides the target, at least, where the gap estimated in working precision proved too small;
    by as much as the certified one was too large, if that is more."""
    most_tightening: float = 10.0
    """Divides it at most: a bound that is far off says little of how far."""
    large_offset: float = 30.0
    """Difference of offsets within a row above which a third of them is solved for first."""
    offset_target: float = 0.01
    """Relative gap that is small enough for a third of the offsets."""
    in_row_space: bool | None = False
    """Whether to solve in as many dimensions as there are rows; None means where it costs less."""
    watches_separation: ClassVar[bool] = True
    """Whether unpenalised problems are tested for separated classes, half a pass a look."""

    def check(self, *, has_l1: bool, grouped: bool, has_offset: bool, is_plain: bool) -> None:
        """Refuses problems that are not for this method.

        Raises:
          ValueError: if they are not.
        """
        return None

    def instead(self, inputs: Inputs, jobs: Sequence[Job]) -> "Method":
        """Returns the method to take for these problems; by default this one."""
        return self

    def sized(self, inputs: Inputs) -> Self:
        """Returns the method with the sizes decided that depend on those of the problem."""
        return self

    def reason(self, inputs: Inputs) -> str:
        """Returns why this method was taken for a problem, for `plan.Plan`."""
        return "it was asked for"

    def successor(self, inputs: Inputs) -> "Method | None":
        """Returns a method for what this one has not solved after `successor_after` passes."""
        return None

    @property
    def successor_after(self) -> float:
        """Passes after which the successor takes over, if there is one."""
        return math.inf

    def prepare(
        self, inputs: Inputs, weightings: Sequence[int], dtype: DTypeLike, *, penalised: bool
    ) -> Setup:
        """Returns the problems with the chosen weightings, and what the method has to know of them.

        Args:
          inputs: the rows.
          weightings: those of the problems, by number.
          dtype: type to work in.
          penalised: whether any of the problems has l2 > 0.
        """
        factor = inputs.problem.factor
        exact, working, aids = _prepared(
            self,
            inputs.problem,
            np.array(weightings),
            factor if penalised else jnp.ones_like(factor),
            dtype=dtype,
            q=inputs.q,
        )
        # The rows stay where they are.
        x = inputs.problem.x
        return Setup(exact._replace(x=x), working._replace(x=x), inputs.units, aids)

    def aids(self, problem: Problem, factor: jax.Array, q: int) -> Aids:
        """Returns what the method has to know of the rows; traced.

        Args:
          problem: without strengths.
          factor: ``[d]`` factors of the penalty, or ones where nothing is penalised.
          q: number of classes.
        """
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class IterativeMethod(Method, abc.ABC, Generic[StateOfMethod]):
    """A method that advances problems some steps at a time, as `softmax_jax.solvers.schedule` asks.

    It keeps ``k`` problems in a state of its own making.

    Example:
      >>> from softmax_jax.solvers import LBFGS
      >>> isinstance(LBFGS(), IterativeMethod)
      True
    """

    passes_to_begin: ClassVar[int] = 1
    """Passes of `init`."""

    def steps_between_looks(self, d: int, q: int) -> int:
        """Returns how many steps to take at most before the host looks at the problems."""
        return self.steps

    def patience_with(self, d: int, q: int, *, small: bool) -> int:
        """Returns the steps without progress after which precision counts as exhausted."""
        return self.patience

    @abc.abstractmethod
    def init(self, problem: Problem, aids: Aids, theta: ArrayLike) -> StateOfMethod:
        """Returns the state at ``theta: [k, q, 1 + d]``, after `passes_to_begin` passes."""

    @abc.abstractmethod
    def advance(
        self,
        problem: Problem,
        aids: Aids,
        state: StateOfMethod,
        *,
        target: ArrayLike,
        limit: ArrayLike,
        stop_at_first: ArrayLike,
    ) -> tuple[StateOfMethod, jax.Array]:
        """Takes up to ``limit`` steps; the state that goes in is used up.

        Args:
          problem: with strengths.
          aids: from `aids`.
          state: where the problems stand.
          target: ``[k]``: a problem is done once its gap is at most this share of its objective.
          limit: number of steps.
          stop_at_first: whether to stop as soon as a problem is done that was not, or when all are.

        Returns:
          The state, and ``[k]`` passes that each problem took.
        """

    @abc.abstractmethod
    def hand_over(
        self, problem: Problem, state: StateOfMethod, slot: ArrayLike, source: ArrayLike
    ) -> StateOfMethod:
        """Lets a new problem in ``slot`` go on from where that of ``source`` stands.

        ``problem`` has the strengths of the new one. The state that goes in is used up.
        """

    @abc.abstractmethod
    def restart(self, state: StateOfMethod, slot: ArrayLike) -> StateOfMethod:
        """Begins the problem of a slot anew from where it stands, and forgets what was learnt.

        The state that goes in is used up.
        """

    def dual(self, state: StateOfMethod, target: Float[NDArray, " k"]) -> Mixture | None:
        """Returns distributions for the bound, where it has better ones.

        None means those of the parameters.

        Args:
          state: where the problems stand.
          target: gaps to show, as a share of the objectives.
        """
        return None

    def certify(
        self,
        setup: Setup,
        exact: Problem,
        theta: Array | NDArray,
        dual: Mixture | None,
        slot: ArrayLike,
        weighting: ArrayLike,
        *,
        most: float,
    ) -> tuple[Certificate, int]:
        """Certifies the problem of a slot, in float64; returns the passes that took, too.

        Args:
          setup: from `prepare`.
          exact: ``setup.exact`` with the strengths of this problem.
          theta: ``[k, q, 1 + d]``.
          dual: from `dual`.
          slot: index of the problem in ``theta``.
          weighting: its place among the weightings of ``exact``.
          most: passes to take at most.
        """
        return _certified(exact, theta, dual, slot, weighting), 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathMethod(Method, abc.ABC):
    """A method that solves a path of strengths in one program, for `softmax_jax.solvers.walks`.

    Example:
      >>> from softmax_jax.solvers import OrthantNewton
      >>> isinstance(OrthantNewton(), PathMethod)
      True
    """

    approach_ratio: float = 0.5
    """Ratio of the strengths over which a path that begins far from no weights is approached."""
    approach_target: float = 0.05
    """Relative gap that is small enough at these strengths."""

    @abc.abstractmethod
    def walk(
        self,
        problem: Problem,
        aids: Aids,
        theta: ArrayLike,
        previous: ArrayLike,
        *,
        l2: ArrayLike,
        l1: ArrayLike,
        target: ArrayLike,
        limit: ArrayLike,
    ) -> Walk:
        """Solves a path of strengths in one program.

        Args:
          problem: without strengths.
          aids: from `aids`.
          theta: ``[k, q, 1 + d]`` parameters to begin with.
          previous: solution of the strength before ``theta``, to go on along the line from there.
          l2: ``[strengths]``, in the order of the path.
          l1: likewise.
          target: relative gaps at which a problem goes on to the next strength.
          limit: passes after which it does so all the same. In float32 a method may stop there.
        """


@partial(compiled, static_argnames=("method", "dtype", "q"))
def _prepared(
    method: Method,
    problem: Problem,
    chosen: ArrayLike,
    factor: jax.Array,
    *,
    dtype: DTypeLike,
    q: int,
) -> tuple[Problem, Problem, Aids]:
    exact = problem._replace(weights=problem.weights[:, chosen])
    working = cast(exact, dtype)
    aids = method.aids(working, factor.astype(dtype), q)
    # The caller puts the rows back, of which no program returns a copy.
    none: Any = None
    return exact._replace(x=none), working._replace(x=none), aids


@compiled
def _certified(
    exact: Problem,
    theta: Array | NDArray,
    dual: Mixture | None,
    slot: ArrayLike,
    weighting: ArrayLike,
) -> Certificate:
    alone = exact._replace(weights=of_slot(exact.weights, weighting, 1))
    theta = of_slot(theta, slot, 0)
    if dual is None:
        return certificates.certify(alone, theta, None)
    probabilities = of_slot(dual.probabilities, slot, 1)
    return certificates.certify(
        alone, theta, probabilities, is_needed=jnp.asarray(dual.is_needed)[slot]
    )


def of_slot(array: Array | NDArray, slot: ArrayLike, axis: int) -> jax.Array:
    """Returns one entry along ``axis``, which stays, in float64."""
    return jax.lax.dynamic_slice_in_dim(array, slot, 1, axis).astype(jnp.float64)
