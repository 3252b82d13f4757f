"""The mesh of devices, (data, space), and how arrays lie on it.

A batch is split over `data`, the depth of each patch over `space`; parameters are on every device.
XLA adds halo exchanges and reductions, so the step is the same code on one device and on many.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lung_unet.errors import InputError

REPLICATED = PartitionSpec()
BATCH = PartitionSpec("data")
BATCH_AND_DEPTH = PartitionSpec("data", "space")


def make_mesh(config: ConfigDict) -> Mesh:
    """The mesh that `config.mesh` asks for, over the first devices.

    Raises:
      InputError: more devices than there are, or a batch or patch that the mesh does not divide.
    """
    data, space = config.mesh.data, config.mesh.space
    found = jax.device_count()
    if min(data, space) < 1 or data * space > found:
        raise InputError(
            f"config.mesh = {data} × {space} (data × space) needs {data * space} devices, "
            f"{found} found; set config.mesh.data and config.mesh.space to a product of {found}"
        )
    if config.train.batch_size % data:
        raise InputError(
            f"config.train.batch_size = {config.train.batch_size} is not a multiple of "
            f"config.mesh.data = {data}"
        )
    multiple = space * 2 ** (len(config.model.channels) - 1)
    if space > 1 and config.data.patch[0] % multiple:
        raise InputError(
            f"config.data.patch depth {config.data.patch[0]} is not a multiple of {multiple} = "
            f"config.mesh.space {space} × 2^{len(config.model.channels) - 1}"
        )
    devices = np.array(jax.devices()[: data * space]).reshape(data, space)
    return Mesh(devices, ("data", "space"), axis_types=(AxisType.Auto,) * 2)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch as global arrays split over `data`."""
    sharding = NamedSharding(mesh, BATCH)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
