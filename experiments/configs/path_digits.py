r"""Digits along a path of 25 values of l1, from 0.1, which leaves next to no weights, to 1e-4.

    python experiments/fit.py --config=experiments/configs/path_digits.py --workdir=DIR

DIR/coefficients.png shows how weights leave zero as the penalty gets weaker.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(
        settings.Fit(l2=(0.0,), l1=settings.log_grid(1e-4, 1e-1, 25), tol=1e-3)
    )
    return flags.vary(config, variant, smoke={"l1": (1e-2, 1e-1), "tol": 0.1})
