"""Whole-scan inference equals a plain reference, whatever the scan's size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.evaluation.sliding_window import Predictor, gaussian, window_starts
from lung_unet.parallel.mesh import make_mesh


def brightness(params, images):
    """A network that sees a little context, so that windows disagree where they overlap."""
    context = images.mean((1, 2, 3), keepdims=True)
    return params["gain"] * images + context


PARAMS = {"gain": jnp.float32(3.0)}


def make(config, **mesh):
    config.mesh.update(**mesh)
    return Predictor(config, brightness, PARAMS, make_mesh(config))


def reference(config, hu, lungs):
    """Every window by itself, in float64."""
    size = tuple(config.data.patch)
    pad = [(0, max(0, m - n)) for n, m in zip(hu.shape, size, strict=True)]
    padded, lungs = np.pad(hu, pad, constant_values=-1024), np.pad(lungs, pad)
    low, high = config.data.window_hu
    image = np.clip((padded.astype(float) - low) / (high - low) * 2 - 1, -1, 1)
    total, weight = np.zeros(padded.shape), np.zeros(padded.shape)
    blend = gaussian(size).astype(float)
    for start in window_starts(padded.shape, size, config.evaluation.overlap, lungs):
        box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        logits = 3 * image[box] + image[box].mean()
        total[box] += blend / (1 + np.exp(-logits))
        weight[box] += blend
    out = total / np.maximum(weight, 1e-9)
    return out[tuple(map(slice, hu.shape))]


@pytest.mark.parametrize("shape", [(40, 33, 20), (16, 16, 16), (10, 50, 7)])
@pytest.mark.parametrize("overlap", [0.5, 0.0])
def test_equals_the_reference(config, shape, overlap):
    config.evaluation.update(overlap=overlap, batch_size=3)
    rng = np.random.default_rng(1)
    hu = rng.integers(-1100, 500, shape).astype(np.int16)
    lungs = np.zeros(shape, bool)
    lungs[: shape[0] // 2] = True
    np.testing.assert_allclose(
        make(config)(hu, lungs), reference(config, hu, lungs), atol=1e-5
    )  # fmt: skip


def test_the_mesh_does_not_change_the_result(config):
    rng = np.random.default_rng(1)
    hu = rng.integers(-1100, 500, (30, 30, 30)).astype(np.int16)
    lungs = np.ones(hu.shape, bool)
    config.evaluation.batch_size = 3
    one = make(config)(hu, lungs)
    np.testing.assert_allclose(one, make(config, data=2)(hu, lungs), atol=1e-6)


def test_the_network_compiles_once_for_scans_of_any_size(config):
    traces = []

    def counting(params, images):
        traces.append(images.shape)
        return brightness(params, images)

    predictor = Predictor(config, counting, PARAMS, make_mesh(config))
    for n in (16, 23, 40):
        predictor(np.zeros((n, n, n), np.int16), np.ones((n, n, n), bool))
    assert len(traces) == 1


def test_every_lung_voxel_is_seen_and_nothing_else_costs_time():
    lungs = np.zeros((100, 80, 60), bool)
    lungs[10:30, 5:20, 40:60] = True
    starts = window_starts(lungs.shape, (32, 32, 32), 0.5, lungs)
    seen = np.zeros(lungs.shape, bool)
    for low in starts:
        box = tuple(map(slice, low, low + 32))
        assert lungs[box].any()
        seen[box] = True
    assert seen[lungs].all()
    everywhere = window_starts(lungs.shape, (32, 32, 32), 0.5, np.ones_like(lungs))
    assert len(starts) < len(everywhere) / 3
    assert (everywhere.max(0) + 32 == lungs.shape).all()


def test_no_lungs_no_windows(config):
    hu = np.zeros((20, 20, 20), np.int16)
    assert not make(config)(hu, np.zeros(hu.shape, bool)).any()


def test_gaussian_is_symmetric_and_positive():
    weights = gaussian((8, 16, 12))
    assert weights.shape == (8, 16, 12) and weights.max() == 1 and weights.min() >= 1e-3
    for axis in range(3):
        np.testing.assert_allclose(weights, np.flip(weights, axis), rtol=1e-6)
    assert jax.numpy.asarray(weights).dtype == jnp.float32
