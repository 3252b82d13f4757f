"""What the device can do at most, measured: matrix products and copies."""

from functools import partial

import jax
import jax.numpy as jnp

from lung_unet.benchmark.timing import measure

SIZES = {"cpu": (1024, 2048)}  # of square matrices; the best counts
SIZES_ELSEWHERE = (4096, 8192, 16384)
COPY_BYTES = {"cpu": 1 << 28}  # far above any cache
COPY_BYTES_ELSEWHERE = 1 << 31


def matrix_product_tflops(dtype: jnp.dtype, repeats: int) -> float:
    """The best rate of a product of two square matrices in a type, one device."""
    product = jax.jit(jnp.matmul)
    best = 0.0
    for n in SIZES.get(jax.default_backend(), SIZES_ELSEWHERE):
        a, b = (jax.random.normal(jax.random.key(i), (n, n), dtype) for i in range(2))
        best = max(best, 2 * n**3 / measure(partial(product, a, b), repeats).ms / 1e9)
    return best


def copy_gb_per_s(repeats: int) -> float:
    """The rate at which one device reads an array and writes another, both counted."""
    count = COPY_BYTES.get(jax.default_backend(), COPY_BYTES_ELSEWHERE) // 4
    source, target = jnp.ones(count, jnp.float32), jnp.zeros(count, jnp.float32)
    # XLA would leave a plain copy out; into memory that is there, for new pages cost more than it.
    copy = jax.jit(lambda _, source: -source, donate_argnums=0, keep_unused=True)

    def run() -> jax.Array:
        nonlocal target
        target = copy(target, source)
        return target

    return 2 * source.nbytes / measure(run, repeats).ms / 1e6
