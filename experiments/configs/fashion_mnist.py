r"""Fashion-MNIST: 60,000 + 10,000 grey 28x28 images of clothing.

    python experiments/train.py --config=experiments/configs/fashion_mnist.py \
        --config.data.folder=FOLDER

docs/benchmarks.md has the scores.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(
        settings.Train(
            data=settings.Data(name="fashion_mnist"),
            duration="30 epochs",
            batch_size=256,
            learning_rate=0.5,
            schedule="cosine",
        )
    )
    return flags.vary(config, variant, smoke={"duration": "1 epoch"})
