"""The options that programs of the solvers are compiled with."""

from functools import partial

import jax

# With XLA:CPU's newer emitters of fused loops it takes twice as long to compile, and just as long
# to run. Versions from 0.11.1 on have no choice.
compiled = partial(
    jax.jit,
    compiler_options={"xla_cpu_use_fusion_emitters": False}
    if jax.__version_info__ < (0, 11, 1)
    else None,
)
"""`jax.jit` with the options of the solvers."""
