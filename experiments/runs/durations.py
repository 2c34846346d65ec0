"""Durations: "30 epochs", "500 steps", "1e6 examples", "10%" of the run, or "60 seconds"."""

import math
import re

UNITS = ("steps", "epochs", "examples", "%", "seconds")


def parse(text: str) -> tuple[float, str]:
    """Returns number and unit, in the plural.

    Raises:
      ValueError: says what there is to choose.
    """
    match = re.fullmatch(r"\s*([-+]?[.\d]+(?:[eE][-+]?\d+)?)\s*([a-z]+|%)\s*", text)
    unit = match[2] if match else ""
    unit = unit if unit in UNITS else unit + "s"
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if unit not in UNITS or not 0 <= number < math.inf:
        raise ValueError(
            f"{text!r} is no duration: give a number and one of {', '.join(UNITS)}, for example "
            '"30 epochs"'
        )
    return number, unit


def steps(text: str, *, batch_size: int, num_examples: int, total_steps: int | None = None) -> int:
    """Returns a duration in steps, rounded to the nearest one.

    Raises:
      ValueError: if the unit is seconds, or percent with no ``total_steps``; or if there are more
        steps than a number can count.
    """
    number, unit = parse(text)
    if unit == "seconds" or (unit == "%" and total_steps is None):
        raise ValueError(f"{text!r}: give it in steps, epochs or examples")
    count = {
        "%": number / 100 * (total_steps or 0),
        "epochs": number * -(-num_examples // batch_size),
        "examples": number / batch_size,
        "steps": number,
    }[unit]
    if not math.isfinite(count):
        raise ValueError(f"{text!r} is more steps than can be counted")
    return round(count)
