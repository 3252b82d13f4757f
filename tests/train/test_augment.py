"""Augmentation: image and labels move together, by key alone, within the window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lung_unet.data.scan import IGNORE
from lung_unet.train.augment import augment, window


@pytest.fixture
def quiet(config):
    """No change at all."""
    config.augment.update(flip=False, rotate90=False, affine_probability=0.0)
    config.augment.intensity_probability = 0.0
    return config


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
    image, out = augment(hu, labels, keys(2), quiet)
    np.testing.assert_allclose(image[..., 0], window(jnp.asarray(hu), quiet.data.window_hu))
    np.testing.assert_array_equal(out, labels)


def test_window_maps_its_ends_and_clips():
    hu = np.array([-2000, -1000, -300, 400, 3000], np.int16)
    np.testing.assert_allclose(window(jnp.asarray(hu), (-1000, 400)), [-1, -1, 0, 1, 1], atol=1e-6)


def test_turns_move_labels_with_the_image_and_reach_all_sixteen(quiet):
    quiet.augment.update(flip=True, rotate90=True)
    hu, labels = batch(400)
    image, out = augment(hu, labels, keys(400), quiet)
    plain = np.asarray(window(jnp.asarray(hu[:1]), quiet.data.window_hu))[0]
    of_value = dict(zip(plain.ravel().tolist(), labels[0].ravel().tolist(), strict=True))
    seen = set()
    for one, own in zip(np.asarray(image[..., 0]), np.asarray(out), strict=True):
        np.testing.assert_array_equal(own.ravel(), [of_value[v] for v in one.ravel().tolist()])
        seen.add(own.tobytes() + one[0, 0, :3].tobytes())
    assert len(seen) == 16  # three flips and a transposition


def test_affine_turns_labels_with_the_image_and_ignores_what_it_did_not_see(quiet):
    quiet.augment.update(affine_probability=1.0, rotate_degrees=20.0, scale=(0.6, 0.7))
    size = 24
    ball = np.linalg.norm(np.indices((size,) * 3) - (size - 1) / 2, axis=0) < 8
    off = np.roll(ball, (2, -3, 1), (0, 1, 2))
    hu = np.where(off, 400, -1000).astype(np.int16)
    image, labels = augment(hu[None], off.astype(np.uint8)[None] * 4, keys(1), quiet)
    bright, marked = np.asarray(image[0, ..., 0]) > 0, np.asarray(labels[0]) == 4
    assert 2 * (bright & marked).sum() / (bright.sum() + marked.sum()) > 0.97
    assert 0.15 < marked.sum() / ball.sum() < 0.5  # shrunk by 0.6 to 0.7 an axis
    assert (np.asarray(labels[0])[0, 0, 0]) == IGNORE and image[0, 0, 0, 0, 0] == -1


def test_a_key_decides_and_each_sample_has_its_own(config):
    config.augment.update(affine_probability=1.0, intensity_probability=1.0)
    hu, labels = batch(3)
    run = jax.jit(lambda k: augment(hu, labels, k, config))
    first, again, other = run(keys(3)), run(keys(3)), run(keys(3, 1))
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0][0], first[0][1])
    # a sample does not depend on its neighbours, so any split of the batch draws the same
    alone = augment(hu[:1], labels[:1], keys(3)[:1], config)
    np.testing.assert_allclose(alone[0][0], first[0][0], atol=1e-5)


def test_intensity_changes_stay_in_the_window_and_leave_labels(quiet):
    quiet.augment.intensity_probability = 1.0
    hu, labels = batch(4)
    image, out = augment(hu, labels, keys(4), quiet)
    assert image.min() >= -1 and image.max() <= 1
    plain = window(jnp.asarray(hu), quiet.data.window_hu)
    assert (np.abs(image[..., 0] - plain).mean((1, 2, 3)) > 0.01).all()
    np.testing.assert_array_equal(out, labels)


def test_rare_changes_are_as_rare_as_the_config_says(quiet):
    quiet.augment.intensity_probability = 0.15
    hu, labels = batch(300, 4)
    image, _ = augment(hu, labels, keys(300), quiet)
    plain = window(jnp.asarray(hu), quiet.data.window_hu)
    changed = np.asarray(jnp.any(image[..., 0] != plain, (1, 2, 3))).mean()
    assert abs(changed - (1 - 0.85**4)) < 0.1
