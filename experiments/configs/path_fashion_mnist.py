r"""Fashion-MNIST along a path of 16 values of l2, from 1e-6 to 1e-1.

    python experiments/fit.py --config=experiments/configs/path_fashion_mnist.py \
        --config.data.folder=FOLDER

60,000 training and 10,000 test images, all 16 certified to a relative gap of 1e-3:

    l2         objective    train loss    test loss    test accuracy
    1e-6       0.3255       0.3199        0.4946       0.8364
    1e-5       0.3440       0.3332        0.4559       0.8424
    1e-4       0.3795       0.3581        0.4338       0.8458
    2.15e-4    0.3980       0.3708        0.4337       0.8464    lowest test loss
    1e-3       0.4525       0.4066        0.4496       0.8414
    1e-2       0.6194       0.5116        0.5359       0.8199
    1e-1       0.9990       0.7659        0.7793       0.7694

11 s with compilation on two CPU cores; measuring the results took another 1.4 s. The weakest
strength took 38 passes, the ten strongest 7 or fewer each.
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
