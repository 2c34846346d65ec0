"""Handwritten digits of 8x8 pixels, at the optimum for the l2 of `digits`: the default fit.

    python experiments/fit.py
    python experiments/fit.py --config=experiments/configs/fit_digits.py:path

1,438 training and 359 test images. No seed takes part. The variant `path` has 15 values of l2 from
1e-7 to 1. docs/benchmarks.md has the scores.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(settings.Fit(data=settings.Data(name="digits"), l2=(1e-4,)))
    return flags.vary(
        config,
        variant,
        smoke={"tol": 0.1},
        path={"l2": settings.log_grid(1e-7, 1.0, 15)},
    )
