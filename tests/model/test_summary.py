"""The table of layers agrees with the network and with what XLA counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lung_unet.model import layers, summary, unet


@pytest.mark.parametrize(
    "variant", [{}, {"down": "strided", "up": "nearest", "norm": "group", "deep_supervision": True}]
)
def test_summary_counts_every_parameter(config, variant):
    config.model.update(channels=(8, 16, 16, 16), **variant)
    module = unet.build(config, nnx.Rngs(0))
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module)))
    assert sum(row.parameters for row in summary.layer_rows(config)) == total


@pytest.mark.parametrize(
    "down, up", [("max_pool", "transpose"), ("strided", "transpose"), ("max_pool", "nearest")]
)
def test_flops_are_those_of_the_convolutions_that_run(config, down, up, monkeypatch):
    strides = (2, 2, 2), (1, 2, 2), (2, 2, 1)
    config.model.update(channels=(8, 16, 32, 32), strides=strides, down=down, up=up)
    config.model.deep_supervision = True
    flops = []

    def counting(function, taps):
        def count(x, kernel, *stride):
            y = function(x, kernel, *stride)
            inner = kernel.shape[-2] * (np.prod(kernel.shape[:3]) if taps else 1)
            flops.append(2 * y.size * int(inner))
            return y

        return count

    monkeypatch.setattr(layers, "conv3d", counting(layers.conv3d, taps=True))
    transpose = counting(layers.conv3d_transpose, taps=False)
    monkeypatch.setattr(layers, "conv3d_transpose", transpose)
    module = unet.build(config, nnx.Rngs(0))
    jax.eval_shape(lambda: module.all_levels(jnp.zeros((1, *config.data.patch, 1))))
    assert [row.flops for row in summary.layer_rows(config)] == flops
