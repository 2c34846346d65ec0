"""Handwritten digits of 8x8 pixels, shipped with scikit-learn: the default experiment."""

import settings


def get_config(variant: str = ""):
    config = settings.to_config(
        settings.Train(
            data=settings.Data(name="digits"),
            epochs=100,
            batch_size=32,
            learning_rate=0.5,
            schedule="cosine",
            l2=1e-4,
        )
    )
    return settings.vary(config, variant, smoke={"epochs": 2})
