"""Noise: what is measured is what was put in, and what is drawn is what was measured."""

import numpy as np
import pytest

from lung_unet.implant import noise


def test_strength_and_point_spread_are_measured_beside_anatomy(chest):
    hu, _, grid = chest()
    found = noise.measure(hu, grid)
    assert found.sigma_hu == pytest.approx(15, rel=0.12)
    assert found.psf_mm == pytest.approx(0.6, rel=0.2)


def test_drawn_noise_has_the_strength_and_spectrum_and_independent_slices(known_noise):
    spacing_mm = np.array([2.5, 0.7, 0.7])
    drawn = known_noise(20.0).sample(np.random.default_rng(0), (30, 96, 90), spacing_mm)
    assert drawn.std() == pytest.approx(20, rel=0.05) and abs(drawn.mean()) < 1
    power = (np.abs(np.fft.rfft2(drawn)) ** 2).mean(0)
    radius = noise.frequencies((96, 90), spacing_mm)
    ratio = [
        power[(radius > f) & (radius < f + 0.05)].mean() / (g * np.exp(-4 * (np.pi * 0.6 * g) ** 2))
        for f in (0.1, 0.2, 0.35)
        for g in (f + 0.025,)
    ]
    np.testing.assert_allclose(ratio, ratio[0], rtol=0.15)
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.02
    across = np.corrcoef(drawn[:, :, 1:].ravel(), drawn[:, :, :-1].ravel())[0, 1]
    assert across > 0.5  # in-plane it is correlated, unlike white noise


def test_a_ct_without_soft_tissue_has_the_usual_noise(scan):
    found = noise.measure(np.full((8, 64, 64), -800, np.int16), scan.grid)
    assert (found.sigma_hu, found.psf_mm) == (noise.USUAL_HU, noise.USUAL_PSF_MM)
    assert np.isfinite(found.sample(np.random.default_rng(0), (2, 32, 32), np.ones(3))).all()
