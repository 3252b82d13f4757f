"""The ONNX graph computes what the module computes, for every choice of the configuration."""

import sys

import jax
import numpy as np
import pytest
from flax import nnx

from lung_unet.errors import InputError
from lung_unet.evaluation.session import BACKENDS, session_apply
from lung_unet.model import unet
from lung_unet.model.encoders import ENCODERS
from lung_unet.model.layers import ACTIVATIONS, NORMS


def module_of(config) -> unet.UNet:
    """The configuration's module with random parameters, so that no scale is 1 and no bias 0."""
    rng = np.random.default_rng(0)

    def fill(shape):
        values = rng.normal(size=shape) * (2 / np.prod(shape[:-1])) ** 0.5
        return values.astype(np.float32)

    module = nnx.eval_shape(lambda: unet.build(config, nnx.Rngs(0)))
    nnx.update(module, jax.tree.map(lambda x: fill(x.shape), nnx.state(module)))
    return module


@pytest.mark.parametrize("number", range(4))
def test_equals_the_module(config, number):
    """Each choice occurs in one of the networks at least."""
    config.model.channels = (8, 16)
    for field, known in (("norm", NORMS), ("activation", tuple(ACTIVATIONS)), ("up", unet.UP)):
        config.model[field] = known[number % len(known)]
    config.model.down = unet.DOWN[number // 2 % len(unet.DOWN)]
    config.model.strides = (((2, 2, 2),), ((1, 2, 2),))[number % 2]
    config.model.update(encoder=tuple(ENCODERS)[number % len(ENCODERS)], blocks=(1, 2))
    module = module_of(config)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 4, 8, 6, 1)).astype(np.float32)
    wanted = jax.jit(lambda x: module(x))(images)
    assert np.std(wanted) > 0.1
    for backend in BACKENDS:
        logits = jax.jit(session_apply(module, backend))({}, images)
        np.testing.assert_allclose(logits, wanted, atol=1e-4, err_msg=backend)


@pytest.mark.parametrize("package", ["onnx", "openvino"])
def test_a_missing_package_is_named_with_the_remedy(config, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "lung_unet.model.onnx", raising=False)
    with pytest.raises(InputError, match=f"{package}: pip install -r requirements-export.txt"):
        session_apply(module_of(config), "openvino")
