r"""The labels of Fashion-MNIST, in bits: a file as large as the loss, and online codelength.

    python experiments/codelength.py --config=experiments/configs/codelength_fashion_mnist.py \
        --config.data.folder=FOLDER

10,000 test labels are compressed, and 60,000 training labels are sent online. Precision, learning
rate and batch size are those of the fewest bits that were found by hand. docs/benchmarks.md has the
bits.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(
        settings.Codelength(
            data=settings.Data(name="fashion_mnist"), precision=10.0, learning_rate=0.003
        )
    )
    return flags.vary(config, variant, smoke={"l2": 0.1, "tol": 0.1, "percent": (1.0, 100.0)})
