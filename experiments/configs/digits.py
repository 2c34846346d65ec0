"""Handwritten digits of 8x8 pixels, shipped with scikit-learn: the default experiment.

    python experiments/train.py

1,438 training and 359 test images. The problem is convex, so seeds hardly matter. The optimum, for
which see `fit_digits`, is further than these epochs go. With early stopping, by
--config.data.validation=10% --config.patience=5, the seed chooses the images held out, and with
them where training ends; the model hardly overfits, so that it costs a little accuracy here and
saves steps. docs/benchmarks.md has the scores.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(
        settings.Train(
            data=settings.Data(name="digits"),
            duration="100 epochs",
            batch_size=32,
            learning_rate=0.5,
            schedule="cosine",
            l2=1e-4,
        )
    )
    return flags.vary(config, variant, smoke={"duration": "2 epochs"})
