"""The textbook's example: 2x2 grey images of a cat, a chicken or a dog; 12 weights, 3 biases."""

import settings


def get_config(variant: str = ""):
    config = settings.to_config(
        settings.Train(
            data=settings.Data(name="classroom"),
            epochs=50,
            batch_size=100,
            learning_rate=1.0,
            schedule="cosine",
        )
    )
    return settings.vary(config, variant, smoke={"epochs": 1})
