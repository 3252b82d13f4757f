"""The levels of the network, finest first: their strides, and what a patch must be multiples of."""

from typing import Any

from ml_collections import ConfigDict

from lung_unet.errors import InputError

Axes = tuple[int, int, int]  # z, y, x


def strides_of(model: ConfigDict) -> tuple[Axes, ...]:
    """The stride of each step down, by `config.model.strides`; where that is (), 2 on every axis.

    Raises:
      InputError: not one stride for each step, or a stride that is not three times 1 or 2.
    """
    steps = len(model.channels) - 1
    if not model.strides:
        return ((2, 2, 2),) * steps
    if len(model.strides) != steps or not all(map(_is_stride, model.strides)):
        raise InputError(
            f"config.model.strides = {model.strides}: give {steps} strides (z, y, x) of 1 or 2, as "
            f"(1, 2, 2), for the steps between {steps + 1} channels, or () for 2 everywhere"
        )
    return tuple((z, y, x) for z, y, x in model.strides)


def _is_stride(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and [type(n) for n in value] == [int] * 3
        and ({*value} <= {1, 2})
    )


def scales_of(model: ConfigDict) -> list[Axes]:
    """Voxels of the patch in a voxel of each level along z, y, x: (1, 1, 1), then products of the
    strides. A patch must be multiples of the last.

    Raises:
      InputError: as `strides_of`.
    """
    scales = [(1, 1, 1)]
    for z, y, x in strides_of(model):
        scales.append((scales[-1][0] * z, scales[-1][1] * y, scales[-1][2] * x))
    return scales
