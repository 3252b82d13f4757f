"""3D U-Net (Çiçek et al. 2016, arXiv 1606.06650): an encoder, a decoder, and skips between them."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from lung_unet.errors import InputError
from lung_unet.model.conv import max_pool3d
from lung_unet.model.encoders import ENCODERS, conv_stage
from lung_unet.model.fused import ACTIVATIONS
from lung_unet.model.layers import NORMS, Conv, ConvBlock, ResidualBlock, Upsample
from lung_unet.model.levels import scales_of, strides_of

DOWN = ("max_pool", "strided")
UP = ("transpose", "nearest")
DTYPES = ("float32", "bfloat16")  # float16 would need its loss scaled
# What a new network gives every voxel, about. Nodules are rarer still; from 0.5, the first hundred
# steps would do nothing but learn that. Lin et al. 2017, arXiv 1708.02002, section 4.1.
PRIOR = 0.01


class UNet(nnx.Module):
    """Maps images (batch, D, H, W, 1) to logits (batch, D, H, W, 1) float32.

    D, H and W must be multiples of the product of the strides along them.
    """

    def __init__(self, model: ConfigDict, dtype: jnp.dtype, rngs: nnx.Rngs):
        channels = tuple(model.channels)
        block = {"norm": model.norm, "activation": model.activation, "dtype": dtype, "rngs": rngs}
        self.strides = strides_of(model)
        self.pools = model.down == "max_pool"
        self.remat = model.remat

        def head(channels_in: int) -> Conv:
            conv = Conv(channels_in, 1, 1, bias=True, dtype=dtype, rngs=rngs)
            conv.bias = nnx.Param(jnp.full(1, math.log(PRIOR / (1 - PRIOR))))
            return conv

        convolved = ((1, 1, 1),) * len(self.strides) if self.pools else self.strides
        self.encoder = ENCODERS[model.encoder](model, [(1, 1, 1), *convolved], **block)
        steps = list(zip(channels, channels[1:], self.strides, strict=False))[::-1]
        self.ups = nnx.List(
            Upsample(b, a, model.up, stride=stride, dtype=dtype, rngs=rngs)
            for a, b, stride in steps
        )
        self.decoder = nnx.List(conv_stage(2 * a, a, model.convs, **block) for a, _, _ in steps)
        self.head = head(channels[0])
        # nnU-Net has a head at the decoder's lowest level too, and gives it a weight of 0.
        self.deep_heads = nnx.List(map(head, channels[1:-2] if model.deep_supervision else ()))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._levels(x)[0]

    def all_levels(self, x: jax.Array, draws: jax.Array | None = None) -> list[jax.Array]:
        """The logits that training supervises, finest first: each is smaller by a stride than the
        one before, and without draws the first are those of a call.

        `draws` (batch, residual blocks), uniform in 0 … 1, decide the stochastic depth.
        """
        logits, *features = self._levels(x, draws)
        deep = zip(self.deep_heads, features, strict=False)
        return [logits, *(head(x).astype(jnp.float32) for head, x in deep)]

    def _levels(self, x: jax.Array, draws: jax.Array | None = None) -> list[jax.Array]:
        """The logits, then the activations at the end of each level below, finest first."""
        checkpoint = jax.checkpoint if self.remat else lambda stage: stage
        skips = []
        for level in range(len(self.encoder)):
            skip, pooled = checkpoint(partial(self._encode, level))(x, draws)
            x = skip if pooled is None else pooled
            skips.append(skip)
        features = [skips.pop()]
        for i in range(len(self.decoder)):
            features.append(checkpoint(partial(self._decode, i))(features[-1], skips.pop()))
        if not self.decoder:
            features.append(self.head(features[0]).astype(jnp.float32))
        return features[::-1]

    def _encode(
        self, level: int, x: jax.Array, draws: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """(the activations of a level, their maxima where the next one begins with these).

        With remat a level pools what it begins with, so that the maxima need not be kept.
        """
        if level and self.pools and self.remat:
            x = max_pool3d(x, self.strides[level - 1])
        *blocks, last = self.encoder[level]
        for block in blocks:
            x = block(x, draws) if isinstance(block, ResidualBlock) else block(x)
        pools = self.pools and level < len(self.strides) and not self.remat
        if pools and isinstance(last, ConvBlock):
            return last.pooled(x, self.strides[level])
        x = last(x, draws) if isinstance(last, ResidualBlock) else last(x)
        return x, max_pool3d(x, self.strides[level]) if pools else None

    def _decode(self, i: int, x: jax.Array, skip: jax.Array) -> jax.Array:
        """The activations of a level; of the finest the logits."""
        *blocks, last = self.decoder[i]
        parts = [self.ups[i](x), skip]
        for block in blocks:
            parts = [block(*parts)]
        return last.scored(self.head, *parts) if i == len(self.decoder) - 1 else last(*parts)


def build(config: ConfigDict, rngs: nnx.Rngs) -> UNet:
    """The U-Net that `config.model` describes, with fresh parameters.

    Raises:
      InputError: a choice that does not exist, a patch that the strides do not divide, or deep
        supervision of too few levels.
    """
    model = config.model
    check_choices(model, encoder=tuple(ENCODERS), down=DOWN, up=UP)
    if not 0 <= model.stochastic_depth < 1 or (
        model.stochastic_depth and model.encoder != "residual"
    ):
        raise InputError(
            f"config.model.stochastic_depth = {model.stochastic_depth}: must be at least 0 and "
            "below 1, and 0 unless config.model.encoder is residual"
        )
    if model.deep_supervision and len(model.channels) < 4:
        raise InputError(
            f"config.model.deep_supervision: {len(model.channels)} levels have no decoder level "
            "between the finest and the lowest, which is left out; give config.model.channels four"
        )
    patch, multiples = tuple(config.data.patch), scales_of(model)[-1]
    if len(patch) != 3 or any(n < 1 or n % m for n, m in zip(patch, multiples, strict=True)):
        raise InputError(
            f"config.data.patch = {patch}: {len(model.channels)} levels need multiples of "
            f"{multiples}"
        )
    return UNet(model, compute_dtype(model.dtype), rngs)


def check_choices(model: ConfigDict, **choices: tuple[str, ...]) -> None:
    """Refuses what no network can be: `choices` by field, beside those of its blocks.

    Raises:
      InputError: a choice that does not exist, or sizes that cannot be.
    """
    for field, known in ({"norm": NORMS, "activation": tuple(ACTIVATIONS)} | choices).items():
        if model[field] not in known:
            raise InputError(
                f"config.model.{field} = {model[field]!r}: choose one of {', '.join(known)}"
            )
    if not model.channels or min(model.channels) < 1 or model.convs < 1:
        raise InputError("config.model: channels and convs must be at least 1")
    if model.norm == "group" and any(c % min(8, c) for c in model.channels):
        raise InputError("config.model.channels: group norm needs multiples of 8")


def compute_dtype(name: str) -> jnp.dtype:
    """The type that convolutions compute in; `auto` is bfloat16, float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in DTYPES:
        raise InputError(f"config.model.dtype = {name!r}: choose auto, {', '.join(DTYPES)}")
    return jnp.dtype(name)
