"""Whole-scan inference equals a plain reference, whatever the scan's size."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.errors import InputError
from lung_unet.evaluation.sliding_window import Predictor, gaussian, window_starts
from lung_unet.parallel.mesh import make_mesh

COMPILED = "/jax/core/compile/backend_compile_duration"


def network(params, images):
    """Logits that depend on context and on the side, so that windows and mirrors disagree."""
    z, y, x = (jnp.linspace(0, k, images.shape[k]) for k in (1, 2, 3))
    ramp = (z[:, None, None] + y[:, None] + x)[..., None]
    return params["gain"] * images + images.mean((1, 2, 3), keepdims=True) + ramp


PARAMS = {"gain": jnp.float32(3.0)}


def make(config, apply=network, **mesh):
    config.mesh.update(**mesh)
    return Predictor(config, apply, PARAMS, make_mesh(config))


def scan(shape, seed=1):
    return np.random.default_rng(seed).integers(-1100, 500, shape).astype(np.int16)


def reference(config, hu, lungs):
    """Every window and every mirror by itself, in float64."""
    size = tuple(config.evaluation.window or config.data.patch)
    pad = [(0, max(0, m - n)) for n, m in zip(hu.shape, size, strict=True)]
    padded, lungs = np.pad(hu, pad, constant_values=-1024), np.pad(lungs, pad)
    low, high = config.data.window_hu
    image = np.clip((padded.astype(float) - low) / (high - low) * 2 - 1, -1, 1)
    lines = [np.exp(-0.5 * ((np.arange(m) - (m - 1) / 2) / (m / 8)) ** 2) for m in size]
    blend = lines[0][:, None, None] * lines[1][:, None] * lines[2]
    blend = np.maximum(blend / blend.max(), 1e-3)
    z, y, x = np.meshgrid(*(np.linspace(0, k + 1, m) for k, m in enumerate(size)), indexing="ij")
    starts = []
    for axis, (n, m) in enumerate(zip(padded.shape, size, strict=True)):
        filled = np.flatnonzero(lungs.any(tuple({0, 1, 2} - {axis})))
        filled = np.clip([filled[0] - round(m / 16), filled[-1] + round(m / 16)], 0, n - 1)
        steps, step = 0, round(m * (1 - config.evaluation.overlap))
        while m + steps * step < filled[-1] + 1 - filled[0]:
            steps += 1
        room = min(n - m, steps * step)
        spare = room + m - (filled[-1] + 1 - filled[0])
        begin = min(max(0, filled[0] - int(np.ceil(spare / 2))), n - m - room)
        starts.append([int(np.rint(begin + room * i / max(1, steps))) for i in range(steps + 1)])
    views = list(
        product(*((1, -1) if a in config.evaluation.mirror_axes else (1,) for a in range(3)))
    )
    total, weight = np.zeros(padded.shape), np.zeros(padded.shape)
    for start in product(*starts):
        box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        if not lungs[box].any():
            continue
        for view in views:
            turned = tuple(slice(None, None, step) for step in view)
            logits = 3 * image[box][turned] + image[box].mean() + z + y + x
            total[box] += blend / (1 + np.exp(-logits[turned]))
            weight[box] += blend
    out = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
    return out[tuple(map(slice, hu.shape))]


@pytest.mark.parametrize("shape", [(40, 33, 20), (16, 16, 16), (10, 50, 7)])
@pytest.mark.parametrize(
    ("overlap", "mirrors"), [(0.5, ()), (0.0, (2,)), (0.6, ()), (0.5, (0, 1, 2))]
)
def test_equals_the_reference(config, shape, overlap, mirrors):
    config.evaluation.update(overlap=overlap, mirror_axes=mirrors, batch_size=3)
    hu, lungs = scan(shape), np.zeros(shape, bool)
    lungs[: shape[0] // 2, :20] = True
    wanted = reference(config, hu, lungs)
    np.testing.assert_allclose(make(config)(hu, lungs), wanted, atol=1e-5)


def test_what_no_window_saw_has_probability_zero(config):
    hu, lungs = scan((40, 40, 40)), np.zeros((40, 40, 40), bool)
    lungs[:4, :4, :4] = True
    found, wanted = make(config)(hu, lungs), reference(config, hu, lungs)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert (found[:16, :16, :16] > 0).all() and not found[16:].any()
    assert not make(config)(hu, np.zeros_like(lungs)).any()


def test_the_window_may_differ_from_the_patch(config):
    config.evaluation.window = (24, 16, 8)
    hu = scan((40, 33, 20))
    lungs = np.ones(hu.shape, bool)
    np.testing.assert_allclose(make(config)(hu, lungs), reference(config, hu, lungs), atol=1e-5)


@pytest.mark.parametrize("mesh", [{"data": 4}, {"data": 2, "space": 2}])
def test_every_device_of_the_mesh_works_and_the_result_is_the_same(config, mesh):
    shards = []

    def watched(params, images):
        jax.debug.inspect_array_sharding(
            images,
            callback=lambda s: shards.append((len(s.device_set), s.shard_shape(images.shape))),
        )
        return network(params, images)

    hu = scan((30, 30, 30))
    lungs = np.ones(hu.shape, bool)
    config.train.batch_size = 4
    config.evaluation.batch_size = 3  # rounded up
    one = make(config)(hu, lungs)
    np.testing.assert_allclose(make(config, watched, **mesh)(hu, lungs), one, atol=1e-6)
    assert shards and set(shards) == {(4, (1, 16, 16, 16, 1))}


def test_nothing_compiles_again_for_a_scan_of_another_size(config):
    predictor = make(config)
    predictor(scan((20, 20, 20)), np.ones((20, 20, 20), bool))
    compiled = []
    listener = lambda name, *_, **__: compiled.append(name) if name == COMPILED else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for shape in ((16, 16, 16), (40, 33, 23), (9, 50, 31)):
            predictor(scan(shape), np.ones(shape, bool))
        assert not compiled
        jax.jit(lambda x: x + 1)(np.ones(3))
        assert compiled  # the event is still called so
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_every_lung_voxel_is_seen_by_few_windows():
    lungs = np.zeros((100, 80, 70), bool)
    lungs[32:60, 7:58, 22:40] = lungs[32:60, 7:10, 40:58] = True
    starts = window_starts(lungs, (32, 32, 32), 0.5)
    seen = np.zeros(lungs.shape, bool)
    for low in starts:
        box = tuple(map(slice, low, low + 32))
        assert lungs[box].any() and seen[box].shape == (32, 32, 32)
        seen[box] = True
    assert seen[lungs].all()
    assert len(starts) < 1 * 3 * 3  # the box, less a corner without lungs
    everywhere = window_starts(np.ones_like(lungs), (32, 32, 32), 0.5)
    assert (everywhere.min(0) == 0).all() and (everywhere.max(0) + 32 == lungs.shape).all()


def test_what_windows_have_to_spare_is_seen_around_the_lungs():
    lungs = np.zeros((60, 60, 60), bool)
    lungs[10:50, 2:42, 20:28] = True  # 40 wide: two windows reach over 48
    starts = window_starts(lungs, (32, 32, 32), 0.5)
    assert np.unique(starts[:, 0]).tolist() == [6, 22]  # four voxels on both sides
    assert np.unique(starts[:, 1]).tolist() == [0, 16]  # the volume begins two voxels before
    assert np.unique(starts[:, 2]).tolist() == [8]


def test_gaussian_is_symmetric_and_positive():
    weights = gaussian((8, 16, 12))
    assert weights.shape == (8, 16, 12) and weights.max() == 1 and weights.min() >= 1e-3
    assert weights.dtype == np.float32
    for axis in range(3):
        np.testing.assert_allclose(weights, np.flip(weights, axis), rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [("window", (16, 16)), ("window", (16, 16, 15)), ("overlap", 1.0), ("batch_size", 0),
     ("mirror_axes", (1, 3))],
)  # fmt: skip
def test_impossible_settings_are_refused(config, field, value):
    config.evaluation[field] = value
    with pytest.raises(InputError, match=f"config.evaluation.{field}"):
        make(config)
