"""Holds the analytic derivatives of softmax regression to automatic and numerical ones.

    python experiments/gradcheck.py

Five comparisons:

* ``dl/do``: `jax.grad` of the cross-entropy, and of the textbook's -Σ y log softmax(o), against
  softmax(o) - y (eq. 3.4.10);
* ``dF/dW`` and ``dF/db``: `jax.grad` of the objective against X^T (softmax(O) - Y) / n and
  its row sums;
* ``finite``: central finite differences in float64 against the same closed forms;
* ``d²l/do²``: `jax.hessian` against diag(p) - p p^T.

Each over types, sizes of logits, hard and soft targets, weights or none; plain, jitted, and example
by example under `jax.vmap`. Errors are in ulps of the type at the size of the terms that are
summed, for finite differences relative to that size. The exit code is 1 if any is beyond its limit.
"""

import itertools
import sys
from collections.abc import Sequence

from absl import app, logging

from runs import gradients, output


def main(
    argv: Sequence[str],
    *,
    dtypes: Sequence[str] = gradients.DTYPES,
    sizes: Sequence[str] = tuple(gradients.SIZES),
) -> None:
    """Prints the errors, a line a kind of problem; exits with 1 if one is beyond its limit."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; there are none")
    columns = ("dl/do", "dF/dW", "dF/db", "d²l/do²", "finite")
    print(f"{'type':10}{'logits':18}{'targets':9}" + "".join(f"{c:>10}" for c in columns))
    failed = False
    for dtype, size, soft in itertools.product(dtypes, sizes, (False, True)):
        results = gradients.check(dtype, size, soft)
        failed |= not all(r.passed for r in results.values())
        cells = [
            f"{results[c].error:.2g}" + ("" if results[c].passed else " !") if c in results else "-"
            for c in columns
        ]
        name = "soft" if soft else "hard"
        print(f"{dtype:10}{size:18}{name:9}" + "".join(f"{c:>10}" for c in cells), flush=True)
    print(
        f"\nlimits: {gradients.ULPS:g} ulp of the type, "
        f"finite differences {gradients.RELATIVE:g} relative; "
        + ("some errors are beyond them (!)" if failed else "all errors are within them")
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    output.outlast_readers()
    app.run(main)
