"""Fashion-MNIST, 28x28 grey images of clothing."""

import settings


def get_config(variant: str = ""):
    config = settings.to_config(
        settings.Train(
            data=settings.Data(name="fashion_mnist"),
            epochs=30,
            batch_size=256,
            learning_rate=0.5,
            schedule="cosine",
        )
    )
    return settings.vary(config, variant, smoke={"epochs": 1})
