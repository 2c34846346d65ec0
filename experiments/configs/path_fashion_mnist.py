r"""Fashion-MNIST along a path of 16 values of l2, from 1e-6 to 1e-1.

    python experiments/fit.py --config=experiments/configs/path_fashion_mnist.py \
        --config.data.folder=FOLDER

60,000 training and 10,000 test images. The lowest test loss is in the middle of the path; the
weaker the strength, the more passes it takes. docs/benchmarks.md has the scores.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(
        settings.Fit(
            data=settings.Data(name="fashion_mnist"),
            l2=settings.log_grid(1e-6, 1e-1, 16),
            tol=1e-3,
        )
    )
    return flags.vary(config, variant, smoke={"l2": (1e-2, 1e-1), "tol": 0.1})
