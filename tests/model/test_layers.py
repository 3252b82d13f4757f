"""Layers against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lung_unet.model.conv import conv3d
from lung_unet.model.layers import ConvBlock, Norm, ResidualBlock, Upsample

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


BLOCK = {"norm": "instance", "activation": "relu", "dtype": jnp.float32, "rngs": RNGS}


def residual(*widths, **options):
    """A block whose convolutions count, as after some training."""
    block = ResidualBlock(*widths, **options, **BLOCK)
    block.second.norm.scale = nnx.Param(jnp.full(widths[1], 0.5))
    return block


def test_a_residual_block_adds_its_convolutions_to_its_input_before_activation():
    x = jax.random.normal(jax.random.key(0), (2, 2, 4, 6, 3))
    block = residual(3, 5, stride=(1, 2, 2))
    pooled = x.reshape(2, 2, 2, 2, 3, 2, 3).mean((3, 5))
    inner = jax.nn.relu(block.first.norm(conv3d(x, block.first.conv.kernel[...], (1, 2, 2))))
    y = block.second.norm(conv3d(inner, block.second.conv.kernel[...]))
    skip = block.skip.norm(conv3d(pooled, block.skip.conv.kernel[...]))
    np.testing.assert_allclose(block(x), jax.nn.relu(y + skip), atol=1e-5)
    assert residual(3, 3).skip is None  # the input as it is


def test_a_fresh_residual_block_passes_its_input_on():
    x = jax.random.normal(jax.random.key(0), (1, 2, 2, 4, 3))
    np.testing.assert_array_equal(ResidualBlock(3, 3, **BLOCK)(x), jax.nn.relu(x))


def test_stochastic_depth_skips_a_block_for_single_samples_and_keeps_the_expectation():
    x = 20 + jax.random.normal(jax.random.key(0), (4, 2, 2, 4, 3))  # so that relu changes nothing
    block = residual(3, 3, number=1, drop_rate=0.25)
    draws = jnp.stack([jnp.zeros(4), jnp.array([0.1, 0.24, 0.26, 0.9])], 1)
    plain, drawn = block(x), block(x, draws)
    np.testing.assert_array_equal(drawn[:2], x[:2])
    assert np.abs(drawn[2:] - x[2:]).max() > 0.1
    np.testing.assert_allclose(0.25 * x[2:] + 0.75 * drawn[2:], plain[2:], atol=1e-5)
