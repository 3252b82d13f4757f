"""The table of layers agrees with the network and with what XLA counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.unet3d import get_config
from lung_unet.model import layers, summary, unet


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"down": "strided", "up": "nearest", "norm": "group", "deep_supervision": True},
        {"encoder": "residual", "norm": "none"},
    ],
)
def test_summary_counts_every_parameter(config, variant):
    config.model.update(channels=(8, 16, 16, 16), **variant)
    module = nnx.eval_shape(lambda: unet.build(config, nnx.Rngs(0)))
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))
    assert sum(row.parameters for row in summary.layer_rows(config)) == total


def test_resenc_has_the_parameters_of_the_published_network():
    """102,349,770 is PyTorch's count of nnU-Net's ResidualEncoderUNet for one channel and two
    classes: with biases before norms, a channel a class, and a head at the lowest level too."""
    config = get_config("resenc_m")
    channels = config.model.channels
    assert (channels, config.model.convs) == ((32, 64, 128, 256, 320, 320), 1)
    biases = channels[0] + sum(2 * n * c for n, c in zip((1, 3, 4, 6, 6, 6), channels, strict=True))
    biases += sum(channels[:-1])
    heads = sum(2 * (c + 1) for c in channels[:5]) - sum(c + 1 for c in channels[:4])
    ours = sum(row.parameters for row in summary.layer_rows(config))
    assert ours + biases + heads == 102_349_770


@pytest.mark.parametrize(
    "encoder, down, up",
    [
        ("plain", "max_pool", "transpose"),
        ("residual", "strided", "transpose"),
        ("plain", "max_pool", "nearest"),
    ],
)
def test_flops_are_those_of_the_convolutions_that_run(config, encoder, down, up, monkeypatch):
    strides = (2, 2, 2), (1, 2, 2), (2, 2, 1)
    config.model.update(channels=(8, 16, 32, 32), strides=strides, down=down, up=up)
    config.model.update(encoder=encoder, blocks=(1, 2, 1, 1), deep_supervision=True)
    flops = []

    def counting(function, taps):
        def count(x, kernel, *stride):
            y = function(x, kernel, *stride)
            inner = kernel.shape[-2] * (np.prod(kernel.shape[:3]) if taps else 1)
            flops.append(2 * y.size * int(inner))
            return y

        return count

    monkeypatch.setattr(layers, "conv3d", counting(layers.conv3d, taps=True))
    of_parts = counting(layers.conv3d_of_parts, taps=True)
    monkeypatch.setattr(layers, "conv3d_of_parts", of_parts)
    # The head is a part of the norm before it; counted as the convolution that it is without one.
    scored = lambda block, head, *parts: head(block(*parts)).astype(jnp.float32)  # noqa: E731
    monkeypatch.setattr(layers.ConvBlock, "scored", scored)
    transpose = counting(layers.conv3d_transpose, taps=False)
    monkeypatch.setattr(layers, "conv3d_transpose", transpose)
    images = jnp.zeros((1, *config.data.patch, 1))
    jax.eval_shape(lambda: unet.build(config, nnx.Rngs(0)).all_levels(images))
    assert [row.flops for row in summary.layer_rows(config)] == flops
