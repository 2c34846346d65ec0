r"""Trains softmax regression from a config, alone or as a sweep, and reports what came of it.

    python experiments/train.py
    python experiments/train.py --config=experiments/configs/fashion_mnist.py \
        --config.data.folder=FOLDER --config.learning_rate=0.05 --workdir=DIR
    python experiments/train.py --config=experiments/configs/digits.py:smoke
    python experiments/train.py --config.sweep.learning_rate=0.1,0.3,1 --config.sweep.l2=0,1e-4,1e-3

The members of a sweep, one for each combination, are trained together in one program. A run that
was stopped or killed goes on when it is started again on its workdir, and ends as if nothing had
been.

Several devices share the work, of examples and of classes:

    python experiments/train.py --config.mesh.data=4 --config.mesh.classes=2

With a validation split, rows of the training data that are not trained on, the result is the step
with the lowest validation loss, and a member ends where its patience does:

    python experiments/train.py --config.data.validation=10% --config.patience=5

The workdir, a new or an empty folder, gets config.json, metrics.jsonl (a row an evaluation, of each
member), event files for TensorBoard, checkpoints, params.npz (for `softmax_jax.load`), pictures,
report.html to look at all that, and last summary.json, with a digest of each of these files: a
finished run of which one is gone or changed is made again from its last checkpoint.
"""

from runs import script, settings, summaries, train_run

if __name__ == "__main__":
    script.run(train_run.train, summaries.text, settings.Train, default="digits")
