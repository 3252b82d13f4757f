"""The mesh of devices, (data, space), and how arrays lie on it.

A batch is split over `data`, the depth of each patch over `space`; parameters are on every device.
XLA adds halo exchanges and reductions, so the step is the same code on one device and on many.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lung_unet.errors import InputError
from lung_unet.model.levels import scales_of

REPLICATED = PartitionSpec()
BATCH = PartitionSpec("data")
BATCH_AND_DEPTH = PartitionSpec("data", "space")


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that `config.mesh` asks for: over the first devices in one process, over all of them
    in many; or over `devices`, which need not be here, to compile for.

    Raises:
      InputError: more devices than there are, some left over in a job of many processes, or a batch
        or patch that the mesh does not divide.
    """
    data, space = config.mesh.data, config.mesh.space
    processes = 1 if devices else jax.process_count()
    devices = devices or jax.devices()
    found = len(devices)
    if min(data, space) < 1 or data * space > found or (processes > 1 and data * space < found):
        raise InputError(
            f"config.mesh = {data} × {space} (data × space) needs {data * space} devices, "
            f"{found} found; set config.mesh.data and config.mesh.space to a product of {found}"
        )
    own = found // processes
    if processes > 1 and own % space and space % own:
        raise InputError(
            f"config.mesh.space = {space} cuts through the {own} devices of a process; choose a "
            f"divisor or a multiple of {own}"
        )
    parts = config.train.accumulate
    if parts < 1 or config.train.batch_size % (data * parts):
        raise InputError(
            f"config.train.batch_size = {config.train.batch_size} is not a multiple of "
            f"config.mesh.data × config.train.accumulate = {data} × {parts}"
        )
    coarsest = scales_of(config.model)[-1][0] if space > 1 else 1
    if space > 1 and config.data.patch[0] % (space * coarsest):
        raise InputError(
            f"config.data.patch depth {config.data.patch[0]} is not a multiple of "
            f"{space * coarsest} = config.mesh.space {space} × {coarsest}, by which the network's "
            f"strides shrink it"
        )
    return _mesh(devices[: data * space], data, space)


def make_local_mesh(config: ConfigDict) -> Mesh:
    """This process's devices, as many as `config.mesh` asks for or there are, all of them `data`.

    For what is done alone and one patch a device: prediction, with a model of any mesh.
    """
    devices = jax.local_devices()[: config.mesh.data * config.mesh.space]
    return _mesh(devices, len(devices), 1)


def _mesh(devices: Sequence[jax.Device], data: int, space: int) -> Mesh:
    axes = (AxisType.Auto,) * 2
    return Mesh(np.array(devices).reshape(data, space), ("data", "space"), axis_types=axes)


def share_of_batch(mesh: Mesh) -> tuple[int, int]:
    """(i, n): this process feeds the i-th of n equal parts of each batch.

    Processes that hold parts of the depth of the same patches feed the same part.
    """
    own = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
    space = mesh.shape["space"]
    first = next(
        row
        for row, devices in enumerate(mesh.devices)
        if any(d.process_index == jax.process_index() for d in devices)
    )
    rows = max(1, own // space)
    return first // rows, mesh.shape["data"] // rows


def in_parts(x: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """(parts, batch / parts, depth, …) of (batch, depth, …), within a compiled program; each part
    holds patches of every device, so that none moves. What is not a patch has no depth."""
    data = mesh.shape["data"]
    split = x.reshape(data, parts, -1, *x.shape[1:]).swapaxes(0, 1)
    split = split.reshape(parts, -1, *x.shape[1:])
    spec = NamedSharding(mesh, PartitionSpec(None, *(BATCH_AND_DEPTH if x.ndim >= 4 else BATCH)))
    return jax.lax.with_sharding_constraint(split, spec)


def from_parts(x: jax.Array, mesh: Mesh) -> jax.Array:
    """(batch,) of (parts, batch / parts), in the order that `in_parts` was given."""
    return x.reshape(x.shape[0], mesh.shape["data"], -1).swapaxes(0, 1).reshape(-1)


def split_over_data(tree: Any, mesh: Mesh) -> Any:
    """Shardings of a pytree of arrays, each split over `data` along its longest axis that divides
    by it, or whole on every device."""
    parts = mesh.shape["data"]

    def one(x: jax.Array) -> NamedSharding:
        sizes = [n if n % parts == 0 else 0 for n in x.shape]
        if not any(sizes):
            return NamedSharding(mesh, REPLICATED)
        return NamedSharding(mesh, PartitionSpec(*[None] * sizes.index(max(sizes)), "data"))

    return jax.tree.map(one, tree)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch (`share_of_batch`) as global arrays split over `data`."""
    sharding, parts = NamedSharding(mesh, BATCH), share_of_batch(mesh)[1]
    return {
        name: jax.make_array_from_process_local_data(
            sharding, array, (array.shape[0] * parts, *array.shape[1:])
        )
        for name, array in batch.items()
    }
