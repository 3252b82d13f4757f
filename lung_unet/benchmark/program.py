"""The compiled train step, a way to run it again and again, and the memory that it takes."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lung_unet.allocator import release_freed_memory
from lung_unet.train.optimizer import make_optimizer
from lung_unet.train.step import (
    Batch,
    TrainState,
    abstract_state,
    init_state,
    make_apply,
    make_gradient,
    make_train_step,
)


def compile_step(
    config: ConfigDict,
    mesh: Mesh,
    batch: Batch,
    cached: bool = False,
    make_gradient: Callable = make_gradient,
) -> tuple[jax.stages.Compiled, float]:
    """(the compiled step, seconds that it took), by default without the cache on disk."""
    apply, init = make_apply(config)
    optimizer = make_optimizer(config)
    step = make_train_step(config, apply, optimizer, mesh, make_gradient)
    assert isinstance(step, jax.stages.Wrapped)  # a jitted function
    state = abstract_state(config, init, optimizer, mesh)
    print("compiling the train step")
    lowered = step.lower(state, batch)
    compiled, seconds = compile_lowered(lowered, cached)
    release_freed_memory()
    return compiled, seconds


def compile_lowered(
    lowered: jax.stages.Lowered, cached: bool = False
) -> tuple[jax.stages.Compiled, float]:
    """(the compiled program, seconds that it took), by default without the cache on disk."""
    with contextlib.nullcontext() if cached else _no_cache():
        start = time.perf_counter()
        compiled = lowered.compile()
        return compiled, time.perf_counter() - start


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # whether to use it is looked up once
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def runner(
    config: ConfigDict, mesh: Mesh, compiled: jax.stages.Compiled, batch: Batch
) -> Callable[[], dict]:
    """A function that trains one step further each time it is called, and returns the metrics."""
    state: TrainState = init_state(config, make_apply(config)[1], make_optimizer(config), mesh)

    def run() -> dict:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    return run


def device_peak_mb() -> float | None:
    """The most that the first device has held since the process began; None where it keeps no count
    (the CPU)."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 1e6 if stats else None


def program_mb(compiled: jax.stages.Compiled) -> float:
    """What a compiled program holds while it runs: arguments, results and temporaries."""
    m = compiled.memory_analysis()
    assert m is not None  # all backends tell
    arguments = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return (arguments + m.temp_size_in_bytes) / 1e6
