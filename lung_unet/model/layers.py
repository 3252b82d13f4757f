"""The layers of the U-Net. Activations are (batch, depth, height, width, channel)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lung_unet.model.conv import conv3d, conv3d_of_parts, conv3d_transpose, max_pool3d, mean_pool3d
from lung_unet.model.fused import ACTIVATIONS, Follows, activate, normalise
from lung_unet.model.levels import Axes

NORMS = ("instance", "group", "none")
HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


class Conv(nnx.Module):
    """A 3D convolution. It has a bias only where no norm follows, which would take it out again."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int,
        *,
        stride: Axes = (1, 1, 1),
        bias: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shape = (size, size, size, channels_in, channels_out)
        self.kernel = nnx.Param(HE_NORMAL(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels_out)) if bias else None
        self.stride = stride
        self.dtype = dtype

    def __call__(self, *parts: jax.Array) -> jax.Array:
        """The convolution of an array, or at stride 1 of several joined along their channels."""
        kernel = self.kernel[...].astype(self.dtype)
        if len(parts) == 1:
            y = conv3d(parts[0].astype(self.dtype), kernel, self.stride)
        else:
            y = conv3d_of_parts([part.astype(self.dtype) for part in parts], kernel)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class Upsample(nnx.Module):
    """Enlarges each axis by the stride: a transposed convolution, or nearest and a 1×1×1 one."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kind: str,
        *,
        stride: Axes,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        size = stride if kind == "transpose" else (1, 1, 1)
        shape = (*size, channels_in, channels_out)
        # Every output voxel sees one tap of the kernel, so the fan-in is the channels alone.
        std = (1.0 / channels_in) ** 0.5
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(channels_out))
        self.kind = kind
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        if self.kind == "transpose":
            y = conv3d_transpose(x.astype(self.dtype), kernel)
        else:  # the 1×1×1 convolution commutes with repeating voxels, and is cheaper before it
            y = conv3d(x.astype(self.dtype), kernel)
            for axis, n in enumerate(self.stride, 1):
                y = jnp.repeat(y, n, axis)
        return y + self.bias[...].astype(self.dtype)


class Norm(nnx.Module):
    """Instance or group normalisation; statistics in float32 (`fused.py`)."""

    def __init__(self, channels: int, kind: str, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.groups = channels if kind == "instance" else min(8, channels)

    def __call__(
        self, x: jax.Array, *head: jax.Array, activation: str | None = None, **follows: Any
    ) -> Any:
        """x normalised, then its activation and what `Follows(**follows)` says."""
        return normalise(
            x,
            self.scale[...],
            self.bias[...],
            *head,
            groups=self.groups,
            activation=activation,
            follows=Follows(**follows),
        )


class ConvBlock(nnx.Module):
    """Convolution → norm → activation, if there is one."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        size: int = 3,
        stride: Axes = (1, 1, 1),
        norm: str,
        activation: str | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.conv = Conv(
            channels_in,
            channels_out,
            size,
            stride=stride,
            bias=norm == "none",
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = None if norm == "none" else Norm(channels_out, norm, rngs=rngs)
        self.activation = activation

    def __call__(self, *parts: jax.Array) -> jax.Array:
        x = self.conv(*parts)
        if self.norm is not None:
            return self.norm(x, activation=self.activation)
        return activate(self.activation, x)

    def pooled(self, x: jax.Array, window: Axes) -> tuple[jax.Array, jax.Array]:
        """(what a call returns, its maxima over blocks of window)."""
        if self.norm is None:
            y = self(x)
            return y, max_pool3d(y, window)
        return self.norm(self.conv(x), activation=self.activation, pool=window)

    def scored(self, head: Conv, *parts: jax.Array) -> jax.Array:
        """float32: the head's product with what a call returns."""
        if self.norm is None or head.bias is None:
            return head(self(*parts)).astype(jnp.float32)
        given = head.kernel[...], head.bias[...]
        return self.norm(self.conv(*parts), *given, activation=self.activation, heads=True)


class ResidualBlock(nnx.Module):
    """A basic block of ResNet-D (He et al. 2019, arXiv 1812.01187), as in nnU-Net's ResEnc.

    Convolution → norm → activation → convolution → norm, plus the input, → activation. The input is
    averaged over the stride, and where the channels change it goes through a 1×1×1 convolution and
    norm.

    With `draws` (batch, blocks), uniform in 0 … 1, a sample whose draw for block `number` is below
    `drop_rate` passes by the convolutions, and they count for more in the others (stochastic depth,
    Huang et al. 2016, arXiv 1603.09382), so that without draws the expectation is the same.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        stride: Axes = (1, 1, 1),
        number: int = 0,
        drop_rate: float = 0.0,
        norm: str,
        activation: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        conv = partial(ConvBlock, norm=norm, dtype=dtype, rngs=rngs)
        self.first = conv(channels_in, channels_out, stride=stride, activation=activation)
        self.second = conv(channels_out, channels_out, activation=None)
        if self.second.norm is not None:  # it begins as if the convolutions were not there
            self.second.norm.scale = nnx.Param(jnp.zeros(channels_out))
        same = channels_in == channels_out
        self.skip = None if same else conv(channels_in, channels_out, size=1, activation=None)
        self.stride = stride
        self.number = number
        self.drop_rate = drop_rate
        self.activation = activation

    def __call__(self, x: jax.Array, draws: jax.Array | None = None) -> jax.Array:
        y = self.second(self.first(x))
        if draws is not None:
            kept = draws[:, self.number, None, None, None, None] >= self.drop_rate
            y = jnp.where(kept, y / (1 - self.drop_rate), 0)
        x = mean_pool3d(x, self.stride)
        if self.skip is not None:
            x = self.skip(x)
        return ACTIVATIONS[self.activation](x + y)
