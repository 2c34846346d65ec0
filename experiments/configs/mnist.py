"""MNIST: 60,000 + 10,000 grey 28x28 images of handwritten digits.

    python experiments/train.py --config=experiments/configs/mnist.py --config.data.folder=FOLDER

docs/benchmarks.md has the scores.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(
        settings.Train(
            data=settings.Data(name="mnist"),
            duration="30 epochs",
            batch_size=256,
            learning_rate=0.5,
            schedule="cosine",
        )
    )
    return flags.vary(config, variant, smoke={"duration": "1 epoch"})
