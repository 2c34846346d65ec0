"""The ways in which an optimisation ends, and the words for them."""

import enum


class Status(enum.StrEnum):
    """Outcome of an optimisation: a string, so that it prints and compares as one.

    Example:
      >>> print(Status("certified"))
      certified
    """

    CERTIFIED = "certified"
    """The duality gap is proven to be within the tolerance."""
    NOT_CERTIFIED = "not certified"
    """No proof within the tolerance; the reason says why."""
    AT_INFINITY = "infimum at infinity"
    """There is no minimum: the objective falls for ever as parameters grow."""
    OPTIMAL = "optimal"
    """The gradient vanishes to rounding; there is no bound of the gap."""
    ALL_THE_SAME = "all temperatures are the same"
    """The objective does not depend on the temperature."""
    NO_INFORMATION = "temperature at infinity"
    """The loss falls to that of constant predictions."""
    SEPARABLE = "temperature at zero"
    """The loss falls for ever as the temperature falls."""
    NOT_CONVERGED = "not converged"
    """The steps allowed did not suffice."""


SEPARATED = "the classes are separated and nothing is penalised: the loss falls to 0 as |W| grows"
FAR_FROM_ZERO = (
    "features are so far from zero that float64 cannot hold the bias: the centered parameters are "
    "within the tolerance; subtract the means of the features"
)
EXHAUSTED = "no step makes progress any more in float64"


def unbounded(slope: float) -> str:
    """Returns the reason where neither strength is positive, for the largest slope that is left.

    Example:
      >>> unbounded(0.02)
      'with l2 = l1 = 0 nothing bounds the gap; the gradient is 2e-02 at most'
    """
    return f"with l2 = l1 = 0 nothing bounds the gap; the gradient is {slope:.0e} at most"


def used_up(max_passes: float) -> str:
    """Returns the reason where no step fits into the passes that are left.

    Example:
      >>> used_up(40)
      'max_passes = 40 are used up'
    """
    return f"max_passes = {max_passes:g} are used up"
