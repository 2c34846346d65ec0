"""Handwritten digits of 8x8 pixels, at the optimum for the l2 of `digits`: the default fit.

    python experiments/fit.py
    python experiments/fit.py --config=experiments/configs/fit_digits.py:path

1,438 training and 359 test images, l2 = 1e-4, certified to a relative gap of 1e-4:

    objective      0.08316 nats    in 23 passes
    train loss     0.0390 nats     after the 100 epochs of `digits`: 0.0875
    test loss      0.1063 nats     after the 100 epochs of `digits`: 0.1236
    test accuracy  0.9666          347 of 359

No seed takes part. The variant `path` has 15 values of l2 from 1e-7 to 1: the lowest test loss is
the one above, the highest test accuracy 0.9694 at l2 = 3e-4. With compilation, which is most of it,
2.4 s for one and 4.3 s for the path, on two CPU cores.
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
