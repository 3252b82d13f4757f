"""The network as a table: layers, shapes, parameters and FLOPs."""

from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lung_unet.model import unet


class Layer(NamedTuple):
    """A convolution of the network, for one patch."""

    name: str
    output: tuple[int, ...]  # (z, y, x, channels)
    parameters: int  # with those of its bias and norm
    flops: int  # multiply-adds counted twice
    kernel: tuple[int, ...]  # (z, y, x, channels in, channels out)
    stride: int  # 2 halves the size, or doubles it where `transposed`
    transposed: bool


def layer_rows(config: ConfigDict) -> list[Layer]:
    """The convolutions in order. Norms and activations, a few percent of FLOPs, are not counted."""
    rows: list[Layer] = []
    patch = np.array(config.data.patch)

    def add(
        name: str,
        kernel: tuple[int, ...],
        level: int,
        extra: int,
        stride: int = 1,
        transposed: bool = False,
    ) -> None:
        size = patch // 2**level
        taps = 1 if transposed else int(np.prod(kernel[:3]))
        flops = 2 * int(np.prod(size)) * kernel[-1] * kernel[-2] * taps
        output = (*map(int, size), kernel[-1])
        parameters = int(np.prod(kernel)) + extra
        rows.append(Layer(name, output, parameters, flops, kernel, stride, transposed))

    module = nnx.eval_shape(lambda: unet.build(config, nnx.Rngs(0)))

    def extra(layer: nnx.Module, kernel: tuple[int, ...]) -> int:
        leaves = jax.tree.leaves(nnx.state(layer))
        return sum(int(np.prod(leaf.shape)) for leaf in leaves) - int(np.prod(kernel))

    def blocks(name: str, stage: nnx.List, level: int) -> None:
        for i, block in enumerate(stage):
            kernel = block.conv.kernel.shape
            add(f"{name}, conv {i + 1}", kernel, level, extra(block, kernel), block.conv.stride)

    for level, stage in enumerate(module.encoder):
        blocks(f"encoder {level}", stage, level)
    for i, (up, stage) in enumerate(zip(module.ups, module.decoder, strict=True)):
        level = len(module.ups) - 1 - i
        kernel = up.kernel.shape
        if up.kind == "transpose":
            add(f"decoder {level}, transpose", kernel, level, extra(up, kernel), 2, True)
        else:  # convolved before voxels are repeated
            add(f"decoder {level}, {up.kind}", kernel, level + 1, extra(up, kernel))
        blocks(f"decoder {level}", stage, level)
    for level, head in enumerate((module.head, *module.deep_heads)):
        kernel = head.kernel.shape
        add(f"head {level}", kernel, level, extra(head, kernel))
    return rows


def print_summary(config: ConfigDict) -> None:
    """Prints the table for one patch."""
    from rich.console import Console  # here: the benchmark counts FLOPs without it
    from rich.table import Table

    rows = layer_rows(config)
    table = Table(title=f"U-Net, one patch of {' × '.join(map(str, config.data.patch))}")
    for column in ("layer", "output", "parameters", "GFLOP"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for row in rows:
        shape = "×".join(map(str, row.output))
        table.add_row(row.name, shape, f"{row.parameters:,}", f"{row.flops / 1e9:.2f}")
    table.add_section()
    table.add_row(
        "total",
        "",
        f"{sum(r.parameters for r in rows):,}",
        f"{sum(r.flops for r in rows) / 1e9:.2f}",
    )
    Console().print(table)
