"""Strictness for all tests, and what several of them share."""

import itertools
import os
import pathlib

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("softmax_jax", "checked_annotations.checked_on_return")

# Meshes need several devices; all else runs on the first one.
jax.config.update("jax_num_cpu_devices", 8)
# Threads of XLA on a CPU, where devices wait for one another.
os.environ.setdefault("NPROC", "32")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TESTS = itertools.count(1)
COMPILED = "/jax/core/compile/backend_compile_duration"
# Tests that XLA compiles without its optimisations: those of `make test`, and most slow ones.
QUICKLY_COMPILED = ("not slow", "slow and not exact")


def pytest_configure(config):
    """Lets all processes of the tests, scripts included, share what they compile.

    Compiling is most of what tests do, so XLA optimises only where those marked ``exact`` are asked
    for. That halves it.
    """
    if config.option.markexpr in QUICKLY_COMPILED:
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
        if jax.__version_info__ < (0, 11, 1):  # later versions end at a flag that is gone
            flags = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"
    folder = os.environ.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("compiled").resolve())
    )
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture
def count_compilations():
    """A function that runs another and returns how many programs XLA compiled meanwhile."""
    # Those of other tests are no programs that were compiled before.
    jax.clear_caches()
    events = []

    def listener(event, duration, **kwargs):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)

    def count(function):
        before = events.count(COMPILED)
        jax.block_until_ready(function())
        return events.count(COMPILED) - before

    yield count
    jax.monitoring.unregister_event_duration_listener(listener)


@pytest.fixture(autouse=True)
def fewer_programs():
    """Drops compiled programs where they are many: Linux gives a process 65,530 mappings at most.

    Each program takes a few of them, and XLA crashes where it gets no more.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    # Counting takes some milliseconds.
    if next(TESTS) % 16 == 0 and maps.exists() and maps.read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """The folder of what TFDS prepares in this session; the default for subprocesses too."""
    folder = tmp_path_factory.getbasetemp() / "tensorflow_datasets"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        yield str(folder)


@pytest.fixture(scope="session")
def idx_folder():
    """A function from ``mnist`` or ``fashion_mnist`` to the folder of its IDX files, or a skip."""
    root = pathlib.Path(os.environ.get("SOFTMAX_JAX_DATA", REPOSITORY.parent / "shared" / "data"))

    def find(name):
        folder = root / name
        if not folder.is_dir():
            pytest.skip(f"the IDX files of {name} are not here; $SOFTMAX_JAX_DATA can name them")
        return folder

    return find
