"""What the devices of a mesh say to each other in a step, read from the compiled program."""

import re
from collections import defaultdict

import jax
import numpy as np
from ml_collections import ConfigDict

from lung_unet.benchmark import synthetic
from lung_unet.benchmark.augment import without_augmentation
from lung_unet.benchmark.program import compile_step, program_mb
from lung_unet.benchmark.tables import print_table
from lung_unet.model.backend import accelerator_formulations
from lung_unet.parallel.mesh import make_mesh, put_batch

_KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
_COLLECTIVE = re.compile(rf" = (.*?) ({_KINDS})(-start)?\((.*)")
_ARRAY = re.compile(r"(pred|[a-z]+\d+)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[\d+,(\d+)\])")


def collectives(compiled: jax.stages.Compiled) -> dict[str, dict[str, int]]:
    """{kind: {"count", "bytes"}} of the collectives in a program; bytes are those of a device's
    results.

    A kind is XLA's name and, after "of", how many devices take part. What is in a loop counts once.
    """
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0})
    for result, kind, start, rest in _COLLECTIVE.findall(compiled.as_text() or ""):
        arrays = _ARRAY.findall(result)
        if start and kind in ("all-gather", "collective-permute"):
            arrays = [array for array in arrays if array[1]]  # (operands, results, context u32[] …)
            arrays = arrays[len(arrays) // 2 :]
        groups = _GROUPS.search(rest)
        size = (len(groups[1].split(",")) if groups[1] else int(groups[2])) if groups else 0
        entry = found[f"{kind} of {size}" if size else kind]
        entry["count"] += 1
        entry["bytes"] += sum(_bytes(*array) for array in arrays)
    return dict(sorted(found.items()))


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub("^[a-z]+", "", dtype))
    return int(np.prod([int(n) for n in shape.split(",") if n])) * bits // 8


def measure_collectives(config: ConfigDict) -> dict:
    """The collectives of the train step on the mesh of a configuration.

    With the accelerators' convolutions, on the CPU as well, and without augmentation, which has
    none.
    """
    mesh = make_mesh(config)
    batch = put_batch(synthetic.batch(config), mesh)
    with accelerator_formulations():
        compiled, _ = compile_step(without_augmentation(config), mesh, batch, cached=True)
    return {
        "data": config.mesh.data,
        "space": config.mesh.space,
        "collectives": collectives(compiled),
        "program_mb": program_mb(compiled),
    }


def show_collectives(result: dict) -> None:
    """Prints what `measure_collectives` returned."""
    print_table(
        f"collectives of a step on a mesh of {result['data']} × {result['space']}, a device",
        ("", "count", "MB"),
        [(kind, e["count"], e["bytes"] / 1e6) for kind, e in result["collectives"].items()],
    )
