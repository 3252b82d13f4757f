"""Intensity augmentation: what each change does to the numbers, and what it leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy.ndimage import gaussian_filter

from lung_unet.train import intensity

KEY = jax.random.key(0)


@pytest.fixture
def image():
    """A smooth image, with some noise."""
    rng = np.random.default_rng(0)
    volume = gaussian_filter(rng.normal(size=(12, 16, 14)), 2) * 3 + rng.normal(
        0, 0.02, (12, 16, 14)
    )
    return jnp.asarray(np.clip(volume - 0.3, -1, 1), jnp.float32)


def test_noise_has_mean_zero_and_its_deviation(image):
    c = ConfigDict({"sigma": (0.1, 0.1)})
    added = np.asarray(intensity.noise(KEY, c, image) - image)
    assert abs(added.mean()) < 0.01 and added.std() == pytest.approx(0.1, rel=0.1)


def test_blur_is_a_gaussian_that_keeps_constants_and_takes_variance(image):
    c = ConfigDict({"sigma": (0.8, 0.8)})
    blurred = np.asarray(intensity.blur(KEY, c, image))
    inner = (slice(4, -4),) * 3
    expected = gaussian_filter(np.asarray(image), 0.8, truncate=8)
    np.testing.assert_allclose(blurred[inner], expected[inner], atol=1e-4)
    assert blurred.var() < 0.99 * image.var()
    flat = jnp.full_like(image, 0.7)
    np.testing.assert_allclose(intensity.blur(KEY, c, flat), flat, rtol=1e-6)


def test_brightness_multiplies_and_adds(image):
    c = ConfigDict({"factor": (1.2, 1.2), "shift": (0.1, 0.1)})
    np.testing.assert_allclose(intensity.brightness(KEY, c, image), 1.2 * image + 0.1, rtol=1e-6)


def test_contrast_spreads_about_the_mean_within_the_range(image):
    for factor in (0.8, 1.25):
        c = ConfigDict({"factor": (factor, factor)})
        new = intensity.contrast(KEY, c, image)
        assert new.std() == pytest.approx(factor * float(image.std()), rel=0.05)
        assert new.mean() == pytest.approx(float(image.mean()), abs=0.02)
        assert new.min() >= image.min() and new.max() <= image.max()


def test_low_resolution_keeps_every_second_voxel_and_interpolates_between():
    c, x = ConfigDict({"zoom": (0.5, 0.5)}), np.random.default_rng(0).normal(size=10)
    where = (np.arange(10) + 0.5) / 2 - 0.5
    expected = np.interp(where, np.arange(5), x[1::2])
    for axis in range(3):
        volume = np.broadcast_to(np.expand_dims(x, [a for a in range(3) if a != axis]), (10,) * 3)
        out = np.moveaxis(
            np.asarray(intensity.low_resolution(KEY, c, jnp.asarray(volume))), axis, 0
        )
        np.testing.assert_allclose(out[:, 3, 3], expected, atol=1e-5)


def test_low_resolution_keeps_shape_mean_and_what_is_not_reduced(image):
    for zoom, tolerance in ((1.0, 1e-6), (0.73, 0.05)):
        c = ConfigDict({"zoom": (zoom, zoom)})
        out = intensity.low_resolution(KEY, c, image)
        assert out.shape == image.shape
        assert out.mean() == pytest.approx(float(image.mean()), abs=tolerance)
        assert bool(np.allclose(out, image, atol=1e-6)) == (zoom == 1)


def test_gamma_keeps_mean_and_deviation_and_bends_one_end(image):
    c = ConfigDict({"power": (1.5, 1.5)})
    plain = intensity.INTENSITY["gamma"](KEY, c, image)
    inverted = intensity.INTENSITY["gamma_inverted"](KEY, c, image)
    for new in (plain, inverted):
        assert new.mean() == pytest.approx(float(image.mean()), abs=1e-4)
        assert new.std() == pytest.approx(float(image.std()), rel=1e-4)
        order = np.argsort(image, axis=None)
        assert (np.diff(np.asarray(new).ravel()[order]) > -1e-5).all()  # it stays monotonic
    np.testing.assert_allclose(
        inverted, -intensity.INTENSITY["gamma"](KEY, c, -image), atol=1e-5
    )  # fmt: skip
    top, bottom = (np.unravel_index(f(image), image.shape) for f in (np.argmax, np.argmin))
    assert plain[top] > image[top] and inverted[bottom] < image[bottom]


def test_a_flat_image_survives_gamma():
    c, flat = ConfigDict({"power": (0.7, 0.7)}), jnp.full((4, 4, 4), -1.0)
    np.testing.assert_allclose(intensity.gamma(KEY, c, flat), flat, atol=1e-6)


def test_factors_are_below_one_as_often_as_above():
    draws = np.asarray(
        jax.vmap(lambda k: intensity._factor(k, (0.7, 1.5)))(jax.random.split(KEY, 2000))
    )
    assert draws.min() >= 0.7 and draws.max() <= 1.5
    assert (draws < 1).mean() == pytest.approx(0.5, abs=0.04)
    assert draws[draws < 1].mean() == pytest.approx(0.85, abs=0.02)
    assert draws[draws > 1].mean() == pytest.approx(1.25, abs=0.02)
