"""3D U-Net (Çiçek et al. 2016, arXiv 1606.06650): an encoder, a decoder, and skips between them."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from lung_unet.errors import InputError
from lung_unet.model.layers import ACTIVATIONS, NORMS, Conv, ConvBlock, Upsample, max_pool

DOWN = ("max_pool", "strided")
UP = ("transpose", "nearest")


class UNet(nnx.Module):
    """Maps images (batch, D, H, W, 1) to logits (batch, D, H, W, 1) float32.

    D, H and W must be divisible by 2^(levels - 1).
    """

    def __init__(self, model: ConfigDict, dtype: jnp.dtype, rngs: nnx.Rngs):
        channels = tuple(model.channels)
        block = {"norm": model.norm, "activation": model.activation, "dtype": dtype, "rngs": rngs}
        self.pools = model.down == "max_pool"
        self.remat = model.remat

        def stage(channels_in: int, channels_out: int, stride: int) -> nnx.List:
            widths = [channels_in] + [channels_out] * model.convs
            return nnx.List(
                ConvBlock(a, b, stride=stride if i == 0 else 1, **block)
                for i, (a, b) in enumerate(pairwise(widths))
            )

        def head(channels_in: int) -> Conv:
            return Conv(channels_in, 1, 1, bias=True, dtype=dtype, rngs=rngs)

        stride = 1 if self.pools else 2
        self.encoder = nnx.List(
            stage(a, b, 1 if i == 0 else stride)
            for i, (a, b) in enumerate(pairwise((1, *channels)))
        )
        pairs = list(pairwise(channels))[::-1]
        self.ups = nnx.List(Upsample(b, a, model.up, dtype=dtype, rngs=rngs) for a, b in pairs)
        self.decoder = nnx.List(stage(2 * a, a, 1) for a, _ in pairs)
        self.head = head(channels[0])
        # nnU-Net has a head at the decoder's lowest level too, and gives it a weight of 0.
        self.deep_heads = nnx.List(map(head, channels[1:-2] if model.deep_supervision else ()))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self._features(x)[0]).astype(jnp.float32)

    def all_levels(self, x: jax.Array) -> list[jax.Array]:
        """The logits that training supervises, finest first: each has half the voxels an axis of
        the one before, and the first are those of a call."""
        heads = (self.head, *self.deep_heads)
        return [
            head(features).astype(jnp.float32)
            for head, features in zip(heads, self._features(x), strict=False)
        ]

    def _features(self, x: jax.Array) -> list[jax.Array]:
        """The activations at the end of the network and of each level below it, finest first."""
        checkpoint = jax.checkpoint if self.remat else lambda stage: stage
        skips = []
        for level in range(len(self.encoder)):
            x = checkpoint(partial(self._encode, level))(x)
            skips.append(x)
        features = [skips.pop()]
        for i in range(len(self.decoder)):
            features.append(checkpoint(partial(self._decode, i))(features[-1], skips.pop()))
        return features[::-1]

    def _encode(self, level: int, x: jax.Array) -> jax.Array:
        if level and self.pools:
            x = max_pool(x)
        for conv in self.encoder[level]:
            x = conv(x)
        return x

    def _decode(self, i: int, x: jax.Array, skip: jax.Array) -> jax.Array:
        x = jnp.concatenate([self.ups[i](x), skip], -1)
        for conv in self.decoder[i]:
            x = conv(x)
        return x


def build(config: ConfigDict, rngs: nnx.Rngs) -> UNet:
    """The U-Net that `config.model` describes, with fresh parameters.

    Raises:
      InputError: a choice that does not exist, or a patch that the levels do not divide.
    """
    model = config.model
    for field, known in (
        ("norm", NORMS), ("activation", tuple(ACTIVATIONS)), ("down", DOWN), ("up", UP)
    ):  # fmt: skip
        if model[field] not in known:
            raise InputError(
                f"config.model.{field} = {model[field]!r}: choose one of {', '.join(known)}"
            )
    if not model.channels or min(model.channels) < 1 or model.convs < 1:
        raise InputError("config.model: channels and convs must be at least 1")
    if model.norm == "group" and any(c % min(8, c) for c in model.channels):
        raise InputError("config.model.channels: group norm needs multiples of 8")
    multiple = 2 ** (len(model.channels) - 1)
    if any(n % multiple for n in config.data.patch):
        raise InputError(
            f"config.data.patch = {tuple(config.data.patch)}: {len(model.channels)} levels need "
            f"multiples of {multiple}"
        )
    return UNet(model, compute_dtype(model.dtype), rngs)


def compute_dtype(name: str) -> jnp.dtype:
    """The type that convolutions compute in; `auto` is bfloat16, float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    try:
        return jnp.dtype(name)
    except TypeError:
        raise InputError(
            f"config.model.dtype = {name!r}: choose auto, float32, bfloat16 or float16"
        ) from None
