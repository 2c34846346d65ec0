r"""Solves softmax regression to a certified optimum, for one strength of regularisation or a path.

    python experiments/fit.py
    python experiments/fit.py --config.l2=1e-5,1e-4,1e-3 --config.tol=1e-6
    python experiments/fit.py --config.l1=1e-3 --config.l2=0,1e-4
    python experiments/fit.py --config=experiments/configs/path_fashion_mnist.py \
        --config.data.folder=FOLDER --workdir=DIR

Every l2 is paired with every l1. The settings are those of data but validation, mesh (the devices
that share the work, as in --config.mesh.data=8), l2, l1, grouped, tol and max_passes; see `Fit` in
experiments/runs/settings.py for what they mean.

The workdir, a new or an empty folder, gets config.json, path.jsonl (a row a pair of strengths),
summary.json and params.npz, from which `softmax_jax.load` takes the pair with the lowest test loss
or the one asked for; for several pairs path.png, and coefficients.png if they differ in an l1 above
0 alone; for a single pair and images weights.png. A result without a certificate is marked and its
reason given; the exit code stays 0.
"""

from runs import fit_run, script, settings

if __name__ == "__main__":
    script.run(fit_run.fit, fit_run.report, settings.Fit, default="fit_digits")
