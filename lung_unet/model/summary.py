"""The network as a table: layers, shapes, parameters and FLOPs."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lung_unet.model import unet
from lung_unet.model.layers import ConvBlock, ResidualBlock
from lung_unet.model.levels import Axes, scales_of


class Layer(NamedTuple):
    """A convolution of the network, for one patch."""

    name: str
    output: tuple[int, ...]  # (z, y, x, channels)
    parameters: int  # with those of its bias and norm
    flops: int  # multiply-adds counted twice
    kernel: tuple[int, ...]  # (z, y, x, channels in, channels out)
    stride: Axes  # the input's size over the output's; the other way round where `transposed`
    transposed: bool


def layer_rows(config: ConfigDict) -> list[Layer]:
    """The convolutions in order. Norms, activations and pooling, a few percent of FLOPs, are not
    counted."""
    rows: list[Layer] = []
    patch, scales = np.array(config.data.patch), scales_of(config.model)

    def add(
        name: str,
        layer: nnx.Module,
        kernel: tuple[int, ...],
        level: int,
        stride: Axes = (1, 1, 1),
        transposed: bool = False,
    ) -> None:
        size = patch // scales[level]
        taps = 1 if transposed else int(np.prod(kernel[:3]))
        flops = 2 * int(np.prod(size)) * kernel[-1] * kernel[-2] * taps
        output = (*map(int, size), kernel[-1])
        parameters = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(layer)))
        rows.append(Layer(name, output, parameters, flops, kernel, stride, transposed))

    def blocks(name: str, stage: nnx.List, level: int) -> None:
        for label, block in _conv_blocks(stage):
            conv = block.conv
            add(f"{name}, {label}", block, conv.kernel.shape, level, conv.stride)

    module = nnx.eval_shape(lambda: unet.build(config, nnx.Rngs(0)))
    for level, stage in enumerate(module.encoder):
        blocks(f"encoder {level}", stage, level)
    for i, (up, stage) in enumerate(zip(module.ups, module.decoder, strict=True)):
        level = len(module.ups) - 1 - i
        kernel = up.kernel.shape
        if up.kind == "transpose":
            add(f"decoder {level}, transpose", up, kernel, level, up.stride, True)
        else:  # convolved before voxels are repeated
            add(f"decoder {level}, {up.kind}", up, kernel, level + 1)
        blocks(f"decoder {level}", stage, level)
    for level, head in enumerate((module.head, *module.deep_heads)):
        add(f"head {level}", head, head.kernel.shape, level)
    return rows


def _conv_blocks(stage: nnx.List) -> Iterator[tuple[str, ConvBlock]]:
    """The convolutions of a stage, named, as they are computed."""
    convs = residuals = 0
    for block in stage:
        if isinstance(block, ResidualBlock):
            residuals += 1
            yield f"block {residuals}, conv 1", block.first
            yield f"block {residuals}, conv 2", block.second
            if block.skip is not None:
                yield f"block {residuals}, skip", block.skip
        else:
            convs += 1
            yield f"conv {convs}", block


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
