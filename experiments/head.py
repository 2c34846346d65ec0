r"""Trains a head of 262,144 classes on generated data, down to the loss that nothing can beat.

    python experiments/head.py
    python experiments/head.py --config=experiments/configs/head.py:smoke
    python experiments/head.py --config.levels=100 --config.batch_size=32 --workdir=DIR

A class is a number of ``features`` digits, each one of ``levels``. Given ``x ~ Normal(0, I)``, the
digits are drawn independently, the f-th one with logits ``sharpness · x_f · u``, ``u`` evenly
spaced in [-1, 1]. Over the classes these are logits linear in ``x``: the model is right, and the
lowest possible loss, the mean entropy of the digits, is an integral over one dimension. Each
example has many labels, drawn from its distribution and given as sparse targets. The head starts
from zero and knows nothing of digits. Its logits, one for each class and example, are never held;
see `softmax_jax.head`.

The workdir, a new or an empty folder, gets config.json, metrics.jsonl, params.npz (for
`softmax_jax.load`), curve.png and summary.json.
"""

from runs import head_run, script, settings

if __name__ == "__main__":
    script.run(head_run.train, head_run.report, settings.Head, default="head")
