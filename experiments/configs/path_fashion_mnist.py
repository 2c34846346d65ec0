r"""Fashion-MNIST along a path of 16 values of l2, from 1e-6 to 1e-1.

    python experiments/fit.py --config=experiments/configs/path_fashion_mnist.py \
        --config.data.folder=FOLDER

60,000 training and 10,000 test images, all 16 certified to a relative gap of 1e-3:

    l2         objective    train loss    test loss    test accuracy
    1e-6       0.3255       0.3199        0.4948       0.8361
    1e-5       0.3440       0.3331        0.4560       0.8419
    1e-4       0.3795       0.3580        0.4337       0.8460
    2.15e-4    0.3980       0.3708        0.4336       0.8462    lowest test loss
    1e-3       0.4525       0.4069        0.4497       0.8411
    1e-2       0.6194       0.5110        0.5353       0.8195
    1e-1       0.9989       0.7669        0.7800       0.7693

39 s with compilation on two CPU cores beside other work; measuring the results took another 2 s.
The weakest strength took 80 passes, the ten strongest 13 or fewer each.
"""

import settings


def get_config(variant: str = ""):
    config = settings.to_config(
        settings.Fit(
            data=settings.Data(name="fashion_mnist"),
            l2=settings.log_grid(1e-6, 1e-1, 16),
            tol=1e-3,
        )
    )
    return settings.vary(config, variant, smoke={"l2": (1e-2, 1e-1), "tol": 0.1})
