"""Augmentation: image and labels move together, by key alone, within the window."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.unet3d import get_config
from lung_unet.data.scan import IGNORE
from lung_unet.parallel.mesh import BATCH, make_mesh
from lung_unet.train.augment import augment, window
from lung_unet.train.intensity import INTENSITY
from lung_unet.train.scanners import SCANNERS

SPATIAL = ("rotate", "scale", "elastic")
TURNS = ("flip", "rotate90")


def run(hu, labels, keys, config):
    return jax.jit(partial(augment, config=config))(hu, labels, keys)


def keys(n: int, seed: int = 0):
    return jax.random.split(jax.random.key(seed), n)


def batch(n: int = 8, size: int = 10):
    """Each voxel's HU is its own; a box is labelled 3, another ignored."""
    hu = np.linspace(-900, 300, size**3).reshape(size, size, size).astype(np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    labels[2:5, 3:7, 1:4] = 3
    labels[7:9, 7:9, 7:9] = IGNORE
    return np.stack([hu] * n), np.stack([labels] * n)


def test_without_augmentation_the_image_is_the_windowed_hu(quiet):
    hu, labels = batch(2)
    image, out = run(hu, labels, keys(2), quiet)
    plain = window(jnp.asarray(hu), quiet.data.window_hu)
    np.testing.assert_allclose(image[..., 0], plain, atol=1e-6)
    np.testing.assert_array_equal(out, labels)


def test_window_maps_its_ends_and_clips():
    hu = np.array([-2000, -1000, -300, 400, 3000], np.int16)
    np.testing.assert_allclose(window(jnp.asarray(hu), (-1000, 400)), [-1, -1, 0, 1, 1], atol=1e-6)


def test_turns_move_labels_with_the_image_and_reach_all_sixteen(quiet):
    for name in TURNS:
        quiet.augment[name].probability = 0.5
    hu, labels = batch(400)
    image, out = run(hu, labels, keys(400), quiet)
    plain = np.round(window(jnp.asarray(hu[0]), quiet.data.window_hu), 4)
    of_value = dict(zip(plain.ravel().tolist(), labels[0].ravel().tolist(), strict=True))
    seen = set()
    for one, own in zip(np.round(image[..., 0], 4), np.asarray(out), strict=True):
        np.testing.assert_array_equal(np.sort(one, None), np.sort(plain, None))
        np.testing.assert_array_equal(own.ravel(), [of_value[v] for v in one.ravel().tolist()])
        seen.add(own.tobytes() + one[0, 0, :3].tobytes())
    assert len(seen) == 16  # three flips and a transposition


@pytest.mark.parametrize("name", (*SPATIAL, *TURNS, *INTENSITY, *SCANNERS))
def test_each_change_at_probability_one_changes_every_sample_and_stays_in_the_window(quiet, name):
    quiet.augment.elastic.update(spacing=5, magnitude=(2.0, 3.0))
    quiet.augment.kernel.update(amount=(4.0, 5.0))  # a ramp has little to sharpen
    quiet.augment[name].probability = 1.0
    hu, labels = batch(3)
    image, out = run(hu, labels, keys(3), quiet)
    plain = window(jnp.asarray(hu), quiet.data.window_hu)
    assert image.shape == (*hu.shape, 1) and out.shape == hu.shape and out.dtype == np.uint8
    assert image.min() >= -1 and image.max() <= 1
    assert (np.abs(image[..., 0] - plain).mean((1, 2, 3)) > 1e-3).all()
    same = (np.asarray(out) == labels).all((1, 2, 3))
    assert same.all() if name in INTENSITY | SCANNERS else not same.any()


def test_a_key_decides_and_each_sample_has_its_own(quiet):
    for name in ("rotate", "flip", "noise", "blur", "gamma"):
        quiet.augment[name].probability = 0.5
    hu, labels = batch(4)
    first, again, other = (run(hu, labels, keys(4, seed), quiet) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0][0], first[0][1])
    # a sample does not depend on its neighbours, so any split of the batch draws the same
    quiet.mesh.data = 4
    split = jax.shard_map(
        partial(augment, config=quiet), mesh=make_mesh(quiet), in_specs=BATCH, out_specs=BATCH,
        check_vma=False,
    )  # fmt: skip
    alone = jax.jit(split)(hu, labels, keys(4))
    np.testing.assert_allclose(alone[0], first[0], atol=1e-5)
    np.testing.assert_array_equal(alone[1], first[1])


def test_what_scanners_do_leaves_what_is_drawn_for_the_rest(quiet):
    quiet.augment.noise.probability = 1.0
    hu, labels = batch(2)
    image, _ = run(hu, labels, keys(2), quiet)
    for one, key in zip(image[..., 0], keys(2), strict=True):
        own = jax.random.split(jax.random.split(key, 3)[2], len(INTENSITY))  # nnU-Net's alone
        plain = window(jnp.asarray(hu[0]), quiet.data.window_hu)
        wanted = INTENSITY["noise"](jax.random.split(own[0])[1], quiet.augment.noise, plain)
        np.testing.assert_allclose(one, jnp.clip(wanted, -1, 1), atol=1e-6)
    # HU scaled by 1, always: it changes nothing itself, nor what the others draw.
    quiet.augment.calibration.update(probability=1.0, factor=(1.0, 1.0), shift=(0.0, 0.0))
    after, _ = run(hu, labels, keys(2), quiet)
    np.testing.assert_allclose(after, image, atol=1e-6)


def test_rare_changes_are_as_rare_as_the_config_says(quiet):
    for name in ("brightness", "contrast", "gamma", "noise"):
        quiet.augment[name].probability = 0.15
    hu, labels = batch(300, 4)
    image, _ = run(hu, labels, keys(300), quiet)
    plain = window(jnp.asarray(hu), quiet.data.window_hu)
    changed = np.asarray(jnp.any(jnp.abs(image[..., 0] - plain) > 1e-6, (1, 2, 3))).mean()
    assert abs(changed - (1 - 0.85**4)) < 0.1


def test_the_nnunet_variant_has_the_probabilities_and_ranges_of_nnunet():
    c = get_config("nnunet").augment
    assert {name: change.probability for name, change in c.items()} == {
        "rotate": 0.2, "scale": 0.2, "elastic": 0, "flip": 0.5, "rotate90": 0, "noise": 0.1,
        "blur": 0.2 * 0.5, "brightness": 0.15, "contrast": 0.15, "low_resolution": 0.25 * 0.5,
        "gamma_inverted": 0.1, "gamma": 0.3, **dict.fromkeys(SCANNERS, 0),
    }  # fmt: skip
    assert c.rotate.degrees == (-30, 30) and c.scale.factor == (0.7, 1.4) and c.scale.isotropic
    assert (
        c.noise.sigma == (0, 0.1) and c.blur.sigma == (0.5, 1) and c.low_resolution.zoom[0] == 0.5
    )
    assert c.brightness.factor == c.contrast.factor == (0.75, 1.25) and c.brightness.shift == (0, 0)
    assert c.gamma.power == c.gamma_inverted.power == (0.7, 1.5)
    names = ["noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma"]
    assert list(INTENSITY) == names  # in the order of nnU-Net
