"""The labels of handwritten digits, in bits: a file as large as the loss, and online codelength.

python experiments/codelength.py
"""

import settings


def get_config(variant: str = ""):
    config = settings.to_config(
        settings.Codelength(
            data=settings.Data(name="digits"), precision=0.1, learning_rate=0.03, batch_size=8
        )
    )
    return settings.vary(config, variant, smoke={"tol": 0.1, "percent": (10.0, 100.0)})
