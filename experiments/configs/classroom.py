"""The textbook's example: 2x2 grey images of a cat, a chicken or a dog; 12 weights, 3 biases.

    python experiments/train.py --config=experiments/configs/classroom.py

3,000 training and 3,000 test images, drawn around one prototype a class (see
`softmax_jax.data.classroom`), for which softmax regression is the true model: its scores should
come close to those of the true parameters. See docs/benchmarks.md for both.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(
        settings.Train(
            data=settings.Data(name="classroom"),
            duration="50 epochs",
            batch_size=100,
            optimizer="momentum",
            learning_rate=1.0,
            schedule="cosine",
        )
    )
    return flags.vary(config, variant, smoke={"duration": "1 epoch"})
