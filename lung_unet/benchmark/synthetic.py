"""What the measurements run on: batches and scans of the real shapes and types, nothing read."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from lung_unet.data.scan import IGNORE, READERS
from lung_unet.parallel.mesh import BATCH

NOISE_HU = 30.0


def batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """A batch as the pipeline yields it: lung-like int16 HU, a nodule in each patch, ignored voxels
    at a border; as many patches as `config.train.batch_size`."""
    shape = (config.train.batch_size, *config.data.patch)
    rng = np.random.default_rng(config.seed)
    labels = np.zeros(shape, np.uint8)
    inner = tuple(slice(n // 3, n // 2) for n in config.data.patch)
    labels[(slice(None), *inner)] = READERS
    labels[:, 0] = IGNORE
    hu = np.where(labels == READERS, 20, -850) + rng.normal(0, NOISE_HU, shape)
    block = np.full(len(hu), -1, np.int32)
    return {"hu": hu.astype(np.int16), "labels": labels, "block": block}


def abstract_batch(config: ConfigDict, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of such a batch, to compile for; nothing is on a device."""
    sharding = NamedSharding(mesh, BATCH)
    count = config.train.batch_size

    def array(dtype: jnp.dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *shape), dtype, sharding=sharding)

    if config.get("task") == "classification":
        from lung_unet.data.crops import crop_size  # which imports Grain

        crop = crop_size(tuple(config.data.patch))
        return {
            "hu": array(jnp.int16, *crop),
            "nodule": array(jnp.uint8),
            "malignancy": array(jnp.float32),
        }
    patch = config.data.patch
    return {
        "hu": array(jnp.int16, *patch),
        "labels": array(jnp.uint8, *patch),
        "block": array(jnp.int32),
    }


def chest(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(hu int16, lungs uint8 with LUNA16's codes), (z, y, x), of a plain body with two lungs."""
    z, y, x = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    body = np.broadcast_to(y**2 / 0.6 + x**2 / 0.9 < 1, shape)
    lungs = np.zeros(shape, np.uint8)
    for code, side in ((3, 1), (4, -1)):
        lungs[(x - 0.42 * side) ** 2 / 0.11 + y**2 / 0.3 + z**2 / 0.6 < 1] = code
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    hu = np.where(lungs > 0, -850, np.where(body, 40, -1000)) + NOISE_HU * noise
    return hu.astype(np.int16), lungs
