"""Weak scaling as the compiler sees it: what a device does when the work grows with the devices."""

import jax
from ml_collections import ConfigDict

from lung_unet.benchmark import synthetic
from lung_unet.benchmark.augment import without_augmentation
from lung_unet.benchmark.collectives import collectives
from lung_unet.benchmark.program import compile_step, program_mb
from lung_unet.benchmark.tables import print_table
from lung_unet.model.backend import accelerator_formulations
from lung_unet.parallel.mesh import make_mesh, put_batch

DEVICES = 8


def measure_scaling(config: ConfigDict) -> dict:
    """FLOPs, bytes accessed and bytes of collectives of a device, by axis and number of devices.

    On one device the batch and patch are what `config.mesh` gives a device. `data` times as many
    patches, and patches `space` times as deep, keep that the same. The convolutions are those of
    accelerators, on the CPU as well. Without augmentation, which every device of `space` does for
    the whole depth, and whose branches XLA would all count.
    """
    one = without_augmentation(config)
    one.train.batch_size = max(1, config.train.batch_size // config.mesh.data)
    depth, *rest = config.data.patch
    one.data.patch = (depth // config.mesh.space, *rest)
    rows = {}
    for axis in ("data", "space"):
        count = 1
        while count <= min(DEVICES, jax.device_count()):
            rows[f"{axis} {count}"] = _measure(one, axis, count)
            count *= 2
    return rows


def _measure(one: ConfigDict, axis: str, count: int) -> dict[str, float]:
    config = one.copy_and_resolve_references()
    config.mesh.update(data=1, space=1)
    config.mesh[axis] = count
    if axis == "data":
        config.train.batch_size *= count
    else:
        depth, *rest = config.data.patch
        config.data.patch = (depth * count, *rest)
    mesh = make_mesh(config)
    batch = put_batch(synthetic.batch(config), mesh)
    with accelerator_formulations():
        compiled, _ = compile_step(config, mesh, batch, cached=True)
    cost = dict(compiled.cost_analysis() or {})
    sent = collectives(compiled)
    return {
        "gflop": cost["flops"] / 1e9,
        "gb": cost["bytes accessed"] / 1e9,
        "collectives_mb": sum(e["bytes"] for e in sent.values()) / 1e6,
        "program_mb": program_mb(compiled),
    }


def show_scaling(result: dict) -> None:
    """Prints what `measure_scaling` returned."""
    print_table(
        "weak scaling, a device",
        ("devices over", "GFLOP", "GB accessed", "MB of collectives", "MB held"),
        [(name, *row.values()) for name, row in result.items()],
    )
