"""The U-Net: shapes, choices, and what it must not depend on."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lung_unet.errors import InputError
from lung_unet.model import unet


def run(config, x):
    return unet.build(config, nnx.Rngs(0))(x)


@pytest.mark.parametrize("down, up", itertools.product(unet.DOWN, unet.UP))
def test_logits_lie_on_the_input_grid(config, down, up):
    config.model.update(down=down, up=up)
    x = jnp.zeros((2, 16, 8, 24, 1))
    logits = jax.eval_shape(lambda: run(config, x))
    assert logits.shape == x.shape and logits.dtype == jnp.float32


def test_output_follows_the_input_at_every_level(config):
    """A change of one voxel reaches the deepest level's field of view, and not far beyond."""
    config.model.update(channels=(4, 8, 8), norm="none")
    module = unet.build(config, nnx.Rngs(0))
    apply = jax.jit(lambda x: module(x))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 32, 32, 32, 1)), jnp.float32)
    changed = np.asarray(apply(x.at[0, 16, 16, 16].add(5.0)) != apply(x))[0, ..., 0]
    reach = np.abs(np.argwhere(changed) - 16).max()
    assert 8 < reach < 30


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_norm_takes_out_scale_and_shift_of_intensity(config, norm):
    config.model.norm = norm
    module = unet.build(config, nnx.Rngs(0))
    apply = jax.jit(lambda x: module(x))
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 16, 1))
    np.testing.assert_allclose(apply(x), apply(3 * x), rtol=2e-3, atol=2e-3)


def test_bfloat16_computes_close_to_float32(config):
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 16, 1))
    outputs = []
    for dtype in ("float32", "bfloat16"):
        config.model.dtype = dtype
        module = unet.build(config, nnx.Rngs(0))
        outputs.append(jax.jit(lambda x, m=module: m(x))(x))
    assert outputs[1].dtype == jnp.float32
    np.testing.assert_allclose(*outputs, atol=0.1)
    assert not np.array_equal(*outputs)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"norm": "batch"}, "config.model.norm"),
        ({"activation": "tanh"}, "config.model.activation"),
        ({"down": "average"}, "config.model.down"),
        ({"up": "linear"}, "config.model.up"),
        ({"dtype": "float31"}, "config.model.dtype"),
        ({"channels": (4, 8, 16, 16, 16, 16)}, "config.data.patch"),
        ({"channels": (12, 16), "norm": "group"}, "config.model.channels"),
    ],
)
def test_choice_that_does_not_exist_is_named(config, change, named):
    config.model.update(change)
    with pytest.raises(InputError, match=named):
        unet.build(config, nnx.Rngs(0))


def leaves(config):
    module = nnx.eval_shape(lambda: unet.build(config, nnx.Rngs(0)))
    return {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module))}


def test_deep_supervision_adds_a_head_to_each_level_but_the_lowest_and_keeps_the_result(config):
    config.model.channels = (4, 8, 8, 12, 12)
    plain = leaves(config)
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 32, 1))
    assert len(unet.build(config, nnx.Rngs(0)).all_levels(x)) == 1
    config.model.deep_supervision = True
    added = leaves(config) - plain
    assert added == {f"deep_heads/{i}/{name}" for i in (0, 1) for name in ("kernel", "bias")}
    module = unet.build(config, nnx.Rngs(0))
    levels = module.all_levels(x)
    assert [v.shape[1:4] for v in levels] == [(16, 16, 32), (8, 8, 16), (4, 4, 8)]
    np.testing.assert_array_equal(levels[0], module(x))


@pytest.mark.parametrize("down", unet.DOWN)
def test_rematerialisation_gives_the_same_gradient_in_less_memory(config, down):
    config.model.update(channels=(8, 16, 16), down=down)
    x = jax.random.normal(jax.random.key(0), (1, 24, 24, 24, 1))
    found, memory = [], []
    for config.model.remat in (False, True):
        graph, state = nnx.split(unet.build(config, nnx.Rngs(0)))
        step = jax.jit(jax.grad(lambda s, g=graph: jnp.square(nnx.merge(g, s)(x)).mean()))
        compiled = step.lower(state).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        found.append(jax.tree.leaves(compiled(state)))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert memory[1] < 0.9 * memory[0]
