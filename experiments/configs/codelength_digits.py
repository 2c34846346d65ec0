"""The labels of handwritten digits, in bits: a file as large as the loss, and online codelength.

    python experiments/codelength.py

359 test labels are compressed, and 1,438 training labels are sent online. Of labels that features
tell nothing about the refitted models learn too much by heart: their control task is above the
uniform code. A prior of low precision suits these data. docs/benchmarks.md has the bits.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(
        settings.Codelength(
            data=settings.Data(name="digits"), precision=0.1, learning_rate=0.03, batch_size=8
        )
    )
    return flags.vary(config, variant, smoke={"tol": 0.1, "percent": (10.0, 100.0)})
