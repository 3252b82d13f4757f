"""A nodule in HU: its density, its edge, its noise, and what it leaves of the lung."""

import numpy as np
import pytest
from scipy import ndimage

from lung_unet.data.scan import Grid
from lung_unet.implant import lesion as lesions

SPACING = np.array([1.25, 0.7, 0.7])
GRID = Grid((60, 100, 100), SPACING, np.zeros(3))


def grown(shape, seed=0, grid=GRID, psf_mm=0.45):
    return lesions.grow(np.random.default_rng(seed), shape, grid, psf_mm)


def put(shape, known_noise, sigma_hu=0.0, seed=0, background=-860.0, grid=GRID):
    """(lesion, its box of an even lung with the nodule in it)."""
    lesion = grown(shape, seed, grid)
    rng = np.random.default_rng(seed + 100)
    noise = known_noise(sigma_hu)
    hu = np.full(lesion.fill.shape, background, np.float32)
    hu += noise.sample(rng, hu.shape, grid.spacing_mm)
    lesions.insert(rng, lesion, hu, noise, grid.spacing_mm)
    return lesion, hu


@pytest.mark.parametrize("spacing", [(1.25, 0.7, 0.7), (5.0, 0.84, 0.84), (0.6, 0.5, 0.5)])
@pytest.mark.parametrize("radii", [(5.0, 5.0, 5.0), (9.0, 6.0, 12.0)])
def test_outlines_keep_their_volume_on_any_grid_and_at_any_angle(make_shape, spacing, radii):
    grid = Grid((60, 100, 100), np.array(spacing), np.zeros(3))
    for seed in range(3):
        lesion = grown(make_shape(radii), seed, grid)
        volume = lesion.agreed.sum() * np.prod(spacing)
        assert volume == pytest.approx(4 / 3 * np.pi * np.prod(radii), rel=0.08)
        filled = lesion.fill.sum() * np.prod(spacing)
        assert filled == pytest.approx(volume, rel=0.2)  # blur moves nothing, roughness little


def test_a_solid_nodule_is_tissue_and_has_the_noise_of_the_ct(make_shape, known_noise):
    lesion, hu = put(make_shape((12, 12, 12)), known_noise, sigma_hu=60.0)
    core = ndimage.binary_erosion(lesion.fill > 0.99, iterations=2)
    lung = ndimage.binary_erosion(lesion.fill < 1e-3, iterations=2)
    assert core.sum() > 1000 and -10 < hu[core].mean() < 90
    edge = (lesion.fill > 0.3) & (lesion.fill < 0.7)
    residual = hu - (lesion.fill * lesion.tissue_hu + (1 - lesion.fill) * -860)
    for part in (core, edge, lung):
        assert residual[part].std() == pytest.approx(60, rel=0.12)


def test_ground_glass_veils_the_lung_and_leaves_its_vessels(make_shape, known_noise):
    shape = make_shape((9, 9, 9), texture=1.0, subtlety=4.0)
    lesion = grown(shape)
    hu = np.full(lesion.fill.shape, -860, np.float32)
    middle = hu.shape[1] // 2
    hu[:, middle : middle + 2] = 30
    before = hu.copy()
    noise = known_noise(0.0)
    lesions.insert(np.random.default_rng(0), lesion, hu, noise, SPACING)
    inside = ndimage.binary_erosion(lesion.agreed > 0.99, iterations=3)
    vessel = inside & (before > 0)
    glass = inside & (before < -800)
    assert -720 < hu[glass].mean() < -380 and hu[glass].std() > 10  # it is mottled
    np.testing.assert_allclose(hu[vessel], 30, atol=40)


def test_ratings_order_densities(make_shape, known_noise):
    def mean_hu(**ratings):
        means = []
        for seed in range(4):
            lesion, hu = put(make_shape((6, 6, 6), **ratings), known_noise, seed=seed)
            means.append(hu[lesion.agreed > 0.99].mean())
        return np.mean(means)

    by_texture = [mean_hu(texture=t) for t in (1.0, 3.0, 5.0)]
    assert by_texture[0] < by_texture[1] - 100 and by_texture[1] < by_texture[2] - 100
    assert mean_hu(texture=1.0, subtlety=1.0) < mean_hu(texture=1.0, subtlety=5.0) - 100
    plain = mean_hu(calcification=6.0)
    assert all(mean_hu(calcification=float(c)) > plain + 15 for c in (1, 2, 3, 4, 5))


def test_a_part_solid_nodule_has_a_solid_core_in_glass(make_shape, known_noise):
    lesion, hu = put(make_shape((10, 10, 10), texture=3.0), known_noise)
    z, y, x = np.array(hu.shape) // 2
    rind = (lesion.agreed > 0.99) & ~ndimage.binary_erosion(lesion.agreed > 0.99, iterations=3)
    assert hu[z, y, x] > -80 and hu[rind].mean() < hu[z, y, x] - 200


def test_margin_and_point_spread_soften_the_edge(make_shape):
    def steepness(psf_mm, **ratings):
        fill = grown(make_shape((10, 10, 10), **ratings), psf_mm=psf_mm).fill
        return np.abs(np.diff(fill[fill.shape[0] // 2, fill.shape[1] // 2])).max()

    assert steepness(0.3) > 1.15 * steepness(0.6) > 1.3 * steepness(0.9)
    assert steepness(0.3, margin=5.0) > 1.3 * steepness(0.3, margin=1.0)


def test_spicules_reach_beyond_the_outline(make_shape):
    smooth, spiky = (
        grown(make_shape((8, 8, 8), spiculation=s)) for s in (1.0, 5.0)
    )  # fmt: skip
    outside = ndimage.distance_transform_edt(smooth.agreed < 0.01, sampling=SPACING)
    assert not (smooth.fill[outside > 2.5] > 0.15).any()
    assert (spiky.fill[outside > 2.5] > 0.15).sum() > 20
    np.testing.assert_array_equal(smooth.agreed > 0.5, spiky.agreed > 0.5)


def test_readers_keep_their_own_outlines(make_shape):
    shape = make_shape((6, 6, 6))
    bits = shape.reader_bits.copy()
    bits[:, : bits.shape[1] // 2] &= 1  # one reader outlined the whole, the others a half
    object.__setattr__(shape, "reader_bits", bits)
    lesion = grown(shape)
    volumes = lesion.coverage.sum((1, 2, 3))
    assert lesion.readers == (0, 1, 2, 3)
    assert volumes[0] > 1.7 * volumes[1] and np.ptp(volumes[1:]) < 1
    np.testing.assert_allclose(lesion.agreed, lesion.coverage[1], atol=1e-6)


def test_walls_are_walls_and_vessels_are_none():
    hu = np.full((6, 80, 80), -860, np.float32)
    hu[:, :20] = 40
    hu[:, 50:56, :] = 40  # a vessel of 4 mm
    found = lesions.wall(hu, SPACING)
    assert found[:, :19].all() and not found[:, 24:].any()


def test_a_nodule_at_a_wall_ends_there_and_in_one_piece(make_shape, known_noise):
    lesion = grown(make_shape((6, 6, 6)))
    walls = np.zeros(lesion.fill.shape, bool)
    middle = walls.shape[1] // 2
    walls[:, middle + 2 :] = True
    walls[:, middle + 5 : middle + 7] = False  # a gap in the wall, in which a part would be left
    cut = lesions.within(lesion, walls)
    assert not cut.coverage[:, walls].any()
    assert not cut.coverage[:, :, middle + 2 :].any() and cut.fill[:, middle + 4 :].max() < 0.3
    assert ndimage.label(cut.agreed > 0)[1] == 1
    inner = slice(0, middle)
    np.testing.assert_allclose(cut.coverage[:, :, inner], lesion.coverage[:, :, inner])


def test_bone_stays_bone(make_shape, known_noise):
    lesion = grown(make_shape())
    hu = np.full(lesion.fill.shape, 700, np.float32)
    lesions.insert(np.random.default_rng(0), lesion, hu, known_noise(0.0), SPACING)
    np.testing.assert_allclose(hu, 700, atol=1e-3)
