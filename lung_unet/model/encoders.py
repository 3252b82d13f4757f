"""The encoders: a stage of blocks a level, finest first, whose first block has the level's stride.

All are functions (model, strides, **block) of `config.model`, a stride for each level, and what
every block is given.
"""

from itertools import pairwise
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from lung_unet.errors import InputError
from lung_unet.model.layers import ConvBlock, ResidualBlock
from lung_unet.model.levels import Axes


def conv_stage(
    channels_in: int, channels_out: int, convs: int, stride: Axes = (1, 1, 1), **block: Any
) -> nnx.List:
    """So many convolutions, the first of them with a stride."""
    widths = [channels_in] + [channels_out] * convs
    strides = [stride] + [(1, 1, 1)] * (convs - 1)
    return nnx.List(
        ConvBlock(a, b, stride=s, **block)
        for (a, b), s in zip(pairwise(widths), strides, strict=True)
    )


def plain(model: ConfigDict, strides: list[Axes], **block: Any) -> nnx.List:
    """`config.model.convs` convolutions a level (Çiçek et al. 2016, arXiv 1606.06650)."""
    return nnx.List(
        conv_stage(a, b, model.convs, stride, **block)
        for (a, b), stride in zip(pairwise((1, *model.channels)), strides, strict=True)
    )


def residual(model: ConfigDict, strides: list[Axes], **block: Any) -> nnx.List:
    """One convolution, then `config.model.blocks` residual blocks a level, as nnU-Net's ResEnc
    (Isensee et al. 2024, arXiv 2404.09556); their drop rates grow linearly with depth."""
    blocks, channels = blocks_of(model), tuple(model.channels)
    rates = enumerate(np.linspace(0, model.stochastic_depth, sum(blocks) + 1)[1:].tolist())
    stages: list[list[nnx.Module]] = [[ConvBlock(1, channels[0], **block)]]
    stages += [[] for _ in channels[1:]]
    width = channels[0]
    for stage, channels_out, stride, count in zip(stages, channels, strides, blocks, strict=True):
        for i in range(count):
            number, rate = next(rates)
            stage.append(
                ResidualBlock(
                    width,
                    channels_out,
                    stride=(1, 1, 1) if i else stride,
                    number=number,
                    drop_rate=rate,
                    **block,
                )
            )
            width = channels_out
    return nnx.List(map(nnx.List, stages))


ENCODERS = {"plain": plain, "residual": residual}


def blocks_of(model: ConfigDict) -> tuple[int, ...]:
    """Residual blocks a level: `config.model.blocks`, or where that is () nnU-Net's 1, 3, 4, 6, 6 …

    Raises:
      InputError: not one number for each level, or a number below 1.
    """
    levels = len(model.channels)
    blocks = tuple(model.blocks) or (1, 3, 4, *[6] * levels)[:levels]
    if len(blocks) != levels or min(blocks) < 1:
        raise InputError(
            f"config.model.blocks = {blocks}: give {levels} numbers of at least 1, one for each of "
            f"config.model.channels, or () for nnU-Net's"
        )
    return blocks
