"""262,144 classes of three digits of 64 levels, from 51,200 generated examples.

    python experiments/head.py

The loss of test examples, by many of their labels each, is between that of a guess and the mean
entropy of the labels given the features, which no model gets below. A step takes most of its time
for its labels. The variant `smoke` has 4,096 classes and takes seconds. docs/benchmarks.md has the
losses.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(settings.Head())
    return flags.vary(
        config, variant, smoke={"levels": 16, "steps": 20, "draws": 64, "evaluate_every": 10}
    )
