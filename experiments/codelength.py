r"""Measures labels in bits: in a compressed file, and online, while the model is learned.

    python experiments/codelength.py
    python experiments/codelength.py --config=experiments/configs/codelength_fashion_mnist.py \
        --config.data.folder=FOLDER --workdir=DIR
    python experiments/codelength.py --config.precision=0.01 --config.percent=1,10,100

A model fitted to the training data compresses the labels of the test data into a file, which is
read back and decoded: its size is the loss. And the labels of the training data are sent online,
see `softmax_jax.codelength.online`, with models that are refitted and with one that takes a single
pass; the same for the control task, the same labels in another order.

The workdir, a new or an empty folder, gets config.json, labels.smxl (the file), params.npz (which
decodes it, see `softmax_jax.load`), codelength.jsonl (a row a point of the curves), codelength.png
and summary.json.
"""

from runs import codelength_run, script, settings

if __name__ == "__main__":
    script.run(
        codelength_run.codelength,
        codelength_run.report,
        settings.Codelength,
        default="codelength_digits",
    )
