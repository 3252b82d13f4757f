"""What other scanners would have made: means kept, noise correlated, slices along z alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.ndimage import gaussian_filter

from configs.unet3d import get_config
from lung_unet.train import scanners

KEYS = jax.random.split(jax.random.key(0), 6)


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    volume = gaussian_filter(rng.normal(size=(16, 24, 20)), 1.5) * 2 - 0.3
    return jnp.asarray(np.clip(volume, -1, 1), jnp.float32)


def test_slices_are_means_along_z_and_leave_the_plane(image):
    c = ConfigDict({"thickness": (4.0, 4.0)})
    for key in KEYS:
        thick = scanners.slices(key, c, image)
        alone = scanners.slices(key, c, image[:, 3:5, 7:9])
        np.testing.assert_allclose(thick[:, 3:5, 7:9], alone, atol=1e-6)
        assert thick.mean() == pytest.approx(float(image.mean()), abs=0.05)
        assert thick.std() < image.std()
        assert np.abs(np.diff(thick, axis=0)).max() < 0.6 * np.abs(np.diff(image, axis=0)).max()
    offsets = {np.asarray(scanners.slices(key, c, image)).tobytes() for key in KEYS}
    assert len(offsets) == len(KEYS)


def test_slices_of_a_voxel_change_nothing_and_even_volumes_stay(image):
    whole = scanners._sliced(16, jnp.float32(1), jnp.float32(0))
    np.testing.assert_allclose(whole, np.eye(16), atol=1e-6)
    for thickness in (1.0, 1.7, 3.0, 5.3, 40.0):
        for begin in (0.0, -0.5, -0.98):
            rows = np.asarray(scanners._sliced(16, jnp.float32(thickness), begin * thickness))
            assert (rows >= 0).all()
            np.testing.assert_allclose(rows.sum(1), 1, atol=1e-5)


def test_slices_that_meet_the_voxels_are_their_means():
    ramp = jnp.arange(16.0)
    rows = scanners._sliced(16, jnp.float32(4), jnp.float32(0))
    at = np.array([1.5, 5.5, 9.5, 13.5])  # the middle of each slice, and its mean
    np.testing.assert_allclose(rows @ ramp, np.clip(np.arange(16), at[0], at[-1]), atol=1e-5)


def test_a_kernel_of_minus_one_blurs_in_plane_zero_does_nothing_and_more_sharpens(image):
    def with_amount(amount):
        c = ConfigDict({"sigma": (0.8, 0.8), "amount": (amount, amount)})
        return np.asarray(scanners.kernel(KEYS[0], c, image))

    blurred = gaussian_filter(np.asarray(image), (0, 0.8, 0.8), truncate=8)
    inner = (slice(None), slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(with_amount(-1.0)[inner], blurred[inner], atol=1e-4)
    np.testing.assert_allclose(with_amount(0.0), image, atol=1e-6)
    np.testing.assert_allclose(
        with_amount(1.5)[inner], image[inner] + 1.5 * (image[inner] - blurred[inner]), atol=1e-4
    )
    for amount in (-0.8, 1.5):
        flat = jnp.full_like(image, 0.4)
        c = ConfigDict({"sigma": (1.0, 1.0), "amount": (amount, amount)})
        np.testing.assert_allclose(scanners.kernel(KEYS[1], c, flat), flat, atol=1e-5)


@pytest.mark.parametrize("length", [0.5, 1.0, 1.5])
def test_noise_has_its_deviation_everywhere_and_its_correlation_length(length):
    c = ConfigDict({"sigma": (0.1, 0.1), "length": (length, length)})
    flat = jnp.zeros((24, 32, 28))
    added = np.stack([scanners.correlated_noise(key, c, flat) for key in KEYS])
    assert abs(added.mean()) < 0.01 and added.std() == pytest.approx(0.1, rel=0.05)
    for face in (added[:, 0], added[:, :, -1]):  # at the ends as inside
        assert face.std() == pytest.approx(0.1, rel=0.1)
    for axis in (1, 2, 3):
        n = added.shape[axis]
        near = (np.take(added, range(n - 1), axis), np.take(added, range(1, n), axis))
        found = np.corrcoef(*(a.ravel() for a in near))[0, 1]
        taps = np.exp(-0.5 * (np.arange(-9, 10) / length) ** 2)
        wanted = (taps[1:] * taps[:-1]).sum() / (taps**2).sum()
        assert found == pytest.approx(wanted, abs=0.04)


def test_calibration_leaves_air_and_scales_what_is_denser(image):
    c = ConfigDict({"factor": (1.05, 1.05), "shift": (0.0, 0.0)})
    flat = jnp.array([-1.0, -0.2, 0.5])
    np.testing.assert_allclose(
        scanners.calibration(KEYS[0], c, flat), [-1.0, -0.16, 0.575], atol=1e-6
    )
    c = ConfigDict({"factor": (1.0, 1.0), "shift": (0.03, 0.03)})
    np.testing.assert_allclose(scanners.calibration(KEYS[0], c, image), image + 0.03, atol=1e-6)


def test_by_default_none_is_drawn_in_any_variant():
    for variant in ("", "smoke", "cpu", "nnunet"):
        c = get_config(variant).augment
        assert all(c[name].probability == 0 for name in scanners.SCANNERS)
