"""Layers against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lung_unet.model.layers import ConvBlock, Norm, Upsample

RNGS = nnx.Rngs(0)


@pytest.mark.parametrize("kind, groups", [("instance", 16), ("group", 8)])
def test_norm_gives_each_group_of_a_sample_mean_zero_and_variance_one(kind, groups):
    x = 5 + 3 * jax.random.normal(jax.random.key(0), (2, 4, 6, 8, 16))
    y = np.asarray(Norm(16, kind, rngs=RNGS)(x)).reshape(2, -1, groups, 16 // groups)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(y.var((1, 3)), 1, atol=1e-3)


def test_norm_keeps_float32_statistics_of_bfloat16_activations():
    x = (200 + jax.random.normal(jax.random.key(0), (1, 8, 8, 8, 2))).astype(jnp.bfloat16)
    y = Norm(2, "instance", rngs=RNGS)(x)
    assert y.dtype == jnp.bfloat16
    assert np.asarray(y, np.float32).std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", ["transpose", "nearest"])
@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2)])
def test_upsampling_places_each_voxel_in_its_block(kind, stride):
    layer = Upsample(3, 5, kind, stride=stride, dtype=jnp.float32, rngs=RNGS)
    x = jnp.zeros((1, 4, 4, 4, 3)).at[0, 1, 2, 3].set(1.0)
    y = layer(x) - layer(jnp.zeros_like(x))
    assert y.shape == (1, *(4 * n for n in stride), 5)
    filled = np.argwhere(np.abs(np.asarray(y[0])).max(-1) > 0)
    first = np.multiply(stride, (1, 2, 3))
    assert (filled.min(0) == first).all() and (filled.max(0) == first + stride - 1).all()


def test_a_bias_is_kept_only_where_no_norm_takes_it_out():
    def leaves(norm):
        block = ConvBlock(2, 4, norm=norm, activation="relu", dtype=jnp.float32, rngs=RNGS)
        return {path[0] + "." + path[1] for path, _ in nnx.to_flat_state(nnx.state(block))}

    assert leaves("none") == {"conv.kernel", "conv.bias"}
    assert leaves("instance") == {"conv.kernel", "norm.scale", "norm.bias"}
