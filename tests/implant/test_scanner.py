"""A new acquisition: real slices averaged, the kernel's gain, the dose's noise, the same place."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from lung_unet.implant import scanner
from lung_unet.implant.scanner import Acquisition, Settings, draw, kernel_gain


def plain(grid, **changes) -> Acquisition:
    """All of a CT as it is."""
    whole = Acquisition(grid, 1, 1, 0, (0, 0), grid.shape[1:], grid.shape[1:], 0.6, 1.0)
    return dataclasses.replace(whole, **changes)


def image(acquisition, hu, noise, seed=0):
    return acquisition.image(hu.astype(np.float32), noise, np.random.default_rng(seed))


def test_an_acquisition_that_changes_nothing_gives_the_ct(scan, known_noise):
    acquisition = plain(scan.grid)
    new = image(acquisition, np.maximum(scan.hu, -1024), known_noise())
    np.testing.assert_allclose(new, np.maximum(scan.hu, -1024), atol=1)
    np.testing.assert_array_equal(acquisition.labels(scan.lungs), scan.lungs)
    np.testing.assert_allclose(acquisition.grid.origin_mm, scan.grid.origin_mm)


def test_a_thick_slice_is_the_mean_of_the_slices_it_covers(scan, known_noise):
    acquisition = plain(scan.grid, averaged=3, step=2, first=1, corner=(8, 16), size=(140, 120),
                        pixels=(140, 120))  # fmt: skip
    new = image(acquisition, scan.hu, known_noise())
    hu = np.maximum(scan.hu, -1024)[:, 8:148, 16:136].astype(float)
    wanted = np.stack([hu[z : z + 3].mean(0) for z in range(1, 58, 2)])
    assert new.shape == wanted.shape == acquisition.grid.shape
    np.testing.assert_allclose(new, wanted, atol=1.5)
    np.testing.assert_allclose(
        acquisition.grid.origin_mm, scan.grid.to_world([2, 8, 16])
    )  # fmt: skip
    np.testing.assert_allclose(acquisition.grid.spacing_mm, [5.0, 1.2, 1.2])
    assert acquisition.thickness_mm == 7.5


@pytest.mark.parametrize("changes", [
    {}, {"averaged": 2, "step": 1}, {"averaged": 3, "step": 3, "first": 2},
    {"corner": (10, 20), "size": (130, 120), "pixels": (200, 185)}, {"pixels": (64, 64)},
])  # fmt: skip
def test_what_is_drawn_lies_where_it_lay_and_keeps_its_volume(scan, changes):
    acquisition = plain(scan.grid, **changes)
    z, y, x = np.meshgrid(*(np.arange(-8, 9),) * 3, indexing="ij")
    ball = np.exp(-((2.5 * z) ** 2 + 1.44 * (y**2 + x**2)) / 40).astype(np.float32)
    low = np.array([20, 60, 70])
    at, share = acquisition.view(ball, low)
    weights = share[..., None] * np.moveaxis(np.indices(share.shape), 0, -1)
    centre = weights.sum((0, 1, 2)) / share.sum() + at
    np.testing.assert_allclose(
        acquisition.grid.to_world(centre), scan.grid.to_world(low + 8), atol=0.15
    )
    volume = share.sum() * np.prod(acquisition.grid.spacing_mm)
    wanted = ball.sum() * np.prod(scan.grid.spacing_mm)
    assert volume == pytest.approx(wanted, rel=0.05)


def test_the_gain_of_a_kernel():
    f = np.linspace(0, 0.7, 50)
    np.testing.assert_allclose(kernel_gain(f, 0.5, 0.5), 1, atol=1e-6)
    softer = np.exp(-2 * np.pi**2 * (0.7**2 - 0.5**2) * f**2)
    np.testing.assert_allclose(kernel_gain(f, 0.5, 0.7), softer, rtol=1e-5)
    sharper = kernel_gain(f, 0.6, 0.4)
    assert sharper[0] == 1 and (np.diff(sharper) > 0).all()
    assert sharper.max() < scanner.MAX_GAIN
    assert np.isfinite(kernel_gain(np.array([50.0]), 0.9, 0.3)).all()


def test_a_soft_kernel_blurs_edges_and_noise_and_a_sharp_one_does_the_reverse(scan, known_noise):
    step = np.where(np.arange(160) < 80, -850.0, 40.0) * np.ones((4, 160, 1))
    step = ndimage.gaussian_filter1d(step, 1.2)
    grid = dataclasses.replace(scan.grid, shape=step.shape)
    widths, sigmas = [], []
    for psf_mm in (0.4, 0.6, 0.9):
        acquisition = plain(grid, psf_mm=psf_mm)
        edge = np.diff(image(acquisition, step, known_noise())[0, 80, 60:100].astype(float))
        at = np.arange(len(edge))
        widths.append((edge * at**2).sum() / edge.sum() - ((edge * at).sum() / edge.sum()) ** 2)
        noisy = known_noise().sample(np.random.default_rng(0), step.shape, grid.spacing_mm)
        sigmas.append(image(acquisition, noisy, known_noise()).std())
    assert sigmas[0] > sigmas[1] > sigmas[2]
    assert widths[1] == pytest.approx(1.2**2, rel=0.02)
    softer, sharper = (np.square([0.9, 0.4]) - 0.6**2) / 1.2**2
    assert widths[2] - widths[1] == pytest.approx(softer, rel=0.1)
    assert 0.5 * sharper > widths[0] - widths[1] > 1.1 * sharper  # its gain is limited


def test_less_dose_is_more_noise_of_the_same_kind(scan, known_noise):
    flat = np.full((24, 160, 160), 40.0)
    grid = dataclasses.replace(scan.grid, shape=flat.shape)
    added = {
        (dose, averaged): image(
            plain(grid, dose=dose, averaged=averaged, step=averaged), flat, known_noise()
        ).std()
        for dose in (1.0, 0.5, 0.25)
        for averaged in (1, 3)
    }
    assert added[1.0, 1] == 0
    assert added[0.5, 1] == pytest.approx(15, rel=0.03)
    assert added[0.25, 1] == pytest.approx(15 * 3**0.5, rel=0.03)
    assert added[0.25, 3] == pytest.approx(15, rel=0.03)


def test_what_a_scanner_did_not_measure_stays_dark(scan, known_noise):
    hu = scan.hu.copy()
    hu[:, :20] = -3024
    new = image(plain(scan.grid, dose=0.3), hu, known_noise())
    assert (new[:, :20] == -1024).all() and (new[:, 24:] > -1024).any()


def test_acquisitions_keep_to_what_is_asked_and_hold_the_lungs(scan, known_noise):
    settings = Settings(thickness_mm=(1, 6), kernel_mm=(0.9, 2.0), dose=(0.3, 0.8), matrix=200)
    seen = set()
    for seed in range(60):
        a = draw(np.random.default_rng(seed), settings, scan.grid, scan.lungs, known_noise())
        assert 2.5 <= a.thickness_mm <= 6 and a.step <= a.averaged <= 2 * a.step
        assert 0.3 <= a.dose <= 0.8 and max(a.grid.shape[1:]) == 200
        assert 0.6 / scanner.SHARPER <= a.psf_mm <= 2.0 / scanner.FWHM
        lungs = a.labels(scan.lungs) > 0
        assert not (lungs[:, [0, -1]].any() or lungs[:, :, [0, -1]].any())
        share = lungs.sum() * np.prod(a.grid.spacing_mm)
        assert share == pytest.approx(
            (scan.lungs > 0).sum() * np.prod(scan.grid.spacing_mm), rel=0.1
        )
        seen.add((a.averaged, a.corner))
    assert len({averaged for averaged, _ in seen}) == 2 and len(seen) > 20
