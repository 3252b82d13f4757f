"""The network as a table: layers, shapes, parameters and FLOPs."""

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from lung_unet.model import unet


def layer_rows(config: ConfigDict) -> list[tuple[str, tuple[int, ...], int, int]]:
    """(name, output shape, parameters, FLOPs) of each convolution for one patch, in order.

    FLOPs are multiply-adds counted twice; norms and activations, a few percent, are not counted.
    """
    rows: list[tuple[str, tuple[int, ...], int, int]] = []
    patch = np.array(config.data.patch)

    def add(name: str, kernel: tuple[int, ...], level: int, extra: int, taps: int) -> None:
        size = patch // 2**level
        rows.append(
            (name, (*map(int, size), kernel[-1]), int(np.prod(kernel)) + extra,
             2 * int(np.prod(size)) * kernel[-1] * kernel[-2] * taps)
        )  # fmt: skip

    module = nnx.eval_shape(lambda: unet.build(config, nnx.Rngs(0)))

    def extra(layer: nnx.Module, kernel: tuple[int, ...]) -> int:
        leaves = jax.tree.leaves(nnx.state(layer))
        return sum(int(np.prod(leaf.shape)) for leaf in leaves) - int(np.prod(kernel))

    def blocks(name: str, stage: nnx.List, level: int) -> None:
        for i, block in enumerate(stage):
            kernel = block.conv.kernel.shape
            add(f"{name}, conv {i + 1}", kernel, level, extra(block, kernel), 27)

    for level, stage in enumerate(module.encoder):
        blocks(f"encoder {level}", stage, level)
    for i, (up, stage) in enumerate(zip(module.ups, module.decoder, strict=True)):
        level = len(module.ups) - 1 - i
        kernel = up.kernel.shape
        add(f"decoder {level}, {up.kind}", kernel, level, extra(up, kernel), 1)
        blocks(f"decoder {level}", stage, level)
    for level, head in enumerate((module.head, *module.deep_heads)):
        kernel = head.kernel.shape
        add(f"head {level}", kernel, level, extra(head, kernel), 1)
    return rows


def print_summary(config: ConfigDict) -> None:
    """Prints the table for one patch."""
    rows = layer_rows(config)
    table = Table(title=f"U-Net, one patch of {' × '.join(map(str, config.data.patch))}")
    for column in ("layer", "output", "parameters", "GFLOP"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for name, shape, parameters, flops in rows:
        table.add_row(name, "×".join(map(str, shape)), f"{parameters:,}", f"{flops / 1e9:.2f}")
    table.add_section()
    table.add_row(
        "total", "", f"{sum(r[2] for r in rows):,}", f"{sum(r[3] for r in rows) / 1e9:.2f}"
    )
    Console().print(table)
