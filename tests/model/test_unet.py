"""The U-Net: shapes, choices, and what it must not depend on."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lung_unet.errors import InputError
from lung_unet.model import unet
from lung_unet.train.step import make_apply


def run(config, x):
    return unet.build(config, nnx.Rngs(0))(x)


@pytest.mark.parametrize("down, up", itertools.product(unet.DOWN, unet.UP))
def test_logits_lie_on_the_input_grid(config, down, up):
    config.model.update(down=down, up=up)
    x = jnp.zeros((2, 16, 8, 24, 1))
    logits = jax.eval_shape(lambda: run(config, x))
    assert logits.shape == x.shape and logits.dtype == jnp.float32


def test_each_level_has_its_strides(config):
    config.model.update(
        channels=(2, 3, 4, 5), strides=((1, 2, 2), (2, 2, 1), (2, 2, 2)), deep_supervision=True
    )
    config.data.patch = (4, 8, 20)
    x = jnp.zeros((1, *config.data.patch, 1))

    def shapes():
        module = unet.build(config, nnx.Rngs(0))
        return module.all_levels(x), module._levels(x)

    for config.model.down, config.model.up in itertools.product(unet.DOWN, unet.UP):
        supervised, features = jax.eval_shape(shapes)
        sizes = [(4, 8, 20), (4, 4, 10), (2, 2, 10), (1, 1, 5)]
        assert [v.shape[1:4] for v in supervised] == sizes[:2]
        assert [v.shape[1:] for v in features] == [
            (*n, c)
            for n, c in zip(sizes, (1, 3, 4, 5), strict=True)  # logits, then features
        ]


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


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_a_new_network_takes_few_voxels_for_nodule(config, deep_supervision):
    config.model.update(channels=(4, 4, 4, 4), deep_supervision=deep_supervision)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 16, 1)), jnp.float32)
    for logits in unet.build(config, nnx.Rngs(0)).all_levels(x):
        middle = jnp.median(jax.nn.sigmoid(logits))
        assert unet.PRIOR / 5 < middle < 5 * unet.PRIOR


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
        ({"dtype": "int8"}, "config.model.dtype"),  # a type, with a gradient of 0
        ({"strides": ((2.0, 2, 2),)}, "config.model.strides"),
        ({"channels": (4, 8, 16, 16, 16, 16)}, "config.data.patch"),
        ({"strides": ((2, 2, 2), (2, 2, 2))}, "config.model.strides"),
        ({"strides": (2,)}, "config.model.strides"),
        ({"strides": ((3, 1, 1),)}, "config.model.strides"),
        ({"channels": (12, 16), "norm": "group"}, "config.model.channels"),
        ({"encoder": "dense"}, "config.model.encoder"),
        ({"encoder": "residual", "blocks": (1, 2, 3)}, "config.model.blocks"),
        ({"encoder": "residual", "blocks": (1, 0)}, "config.model.blocks"),
        ({"encoder": "residual", "stochastic_depth": 1.0}, "config.model.stochastic_depth"),
        ({"stochastic_depth": 0.1}, "config.model.stochastic_depth"),
        ({"channels": (4, 8, 8), "deep_supervision": True}, "config.model.deep_supervision"),
    ],
)
def test_choice_that_does_not_exist_is_named(config, change, named):
    config.model.update(change)
    with pytest.raises(InputError, match=named):
        unet.build(config, nnx.Rngs(0))


@pytest.mark.parametrize("patch", [(0, 0, 0), (-16, 16, 16), (15, 16, 16), (16, 16)])
def test_a_patch_that_cannot_be_is_named(config, patch):
    config.data.patch = patch
    with pytest.raises(InputError, match=r"config\.data\.patch = .*multiples of"):
        unet.build(config, nnx.Rngs(0))


def leaves(config):
    module = nnx.eval_shape(lambda: unet.build(config, nnx.Rngs(0)))
    return {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(module))}


def test_deep_supervision_adds_a_head_to_each_level_but_the_lowest_and_keeps_the_result(config):
    config.model.channels = (2, 4, 4, 4, 4)
    plain = leaves(config)
    config.model.deep_supervision = True
    added = leaves(config) - plain
    assert added == {f"deep_heads/{i}/{name}" for i in (0, 1) for name in ("kernel", "bias")}

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(x):
        module = unet.build(config, nnx.Rngs(0))
        return module.all_levels(x), module(x)

    levels, logits = run(jax.random.normal(jax.random.key(0), (1, 16, 16, 32, 1)))
    assert [v.shape[1:4] for v in levels] == [(16, 16, 32), (8, 8, 16), (4, 4, 8)]
    np.testing.assert_allclose(levels[0], logits, atol=1e-6)


def test_rematerialisation_keeps_a_fraction_of_the_activations_for_the_same_gradient(config):
    config.model.channels = (4, 8)
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 16, 1))
    found, kept = [], []
    for config.model.remat in (False, True):
        apply, init = make_apply(config)

        def loss(params, apply=apply):
            return jnp.square(apply(params, x)).mean()

        options = {"xla_backend_optimization_level": 0}
        gradient = jax.jit(lambda f=loss, i=init: jax.grad(f)(i()), compiler_options=options)()
        found.append(jax.tree.leaves(gradient))
        # What the backward pass holds; XLA's CPU backend orders work so that its peak says little.
        residuals = jax.eval_shape(lambda p, f=loss: jax.vjp(f, p)[1], gradient)
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(residuals)))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    voxels = 16**3
    assert kept[0] < 23 * voxels  # without remat; 50 where norms keep what their derivative uses
    assert kept[1] < 8 * voxels
