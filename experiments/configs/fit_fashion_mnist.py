r"""Fashion-MNIST at the optimum for l2 = 1e-4.

    python experiments/fit.py --config=experiments/configs/fit_fashion_mnist.py \
        --config.data.folder=FOLDER

60,000 training and 10,000 test images. docs/benchmarks.md has the scores.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(settings.Fit(data=settings.Data(name="fashion_mnist"), l2=(1e-4,)))
    return flags.vary(config, variant, smoke={"l2": (0.1,), "tol": 0.1})
