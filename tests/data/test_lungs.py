"""Lungs found by their air, whatever touches them, whichever way the scan is turned."""

import numpy as np
import pytest

from lung_unet.data.dicom_series import read_volume, series_in
from lung_unet.data.hounsfield import hounsfield
from lung_unet.data.lungs import LEFT, RIGHT, scan_with_lungs, segment_lungs
from lung_unet.data.scan import Grid, Scan
from lung_unet.evaluation.candidates import NEAR_MM, grown
from lung_unet.evaluation.prediction import lung_of


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("seed", range(3))
def test_lungs_of_a_plain_chest(make_scan, seed):
    hu, lungs, grid, _ = make_scan(seed)
    found = segment_lungs(hu, grid)
    assert found.dtype == np.uint8
    assert found.shape == hu.shape
    for code in (LEFT, RIGHT):
        assert dice(found == code, lungs == code) > 0.9


def test_a_nodule_that_touches_the_wall_belongs_to_the_lung(make_scan):
    hu, lungs, grid, _ = make_scan(0)
    left = np.argwhere(lungs == LEFT)
    edge = left[np.lexsort((-left[:, 2], abs(left[:, 0] - 15)))[0]]  # the lateral wall, mid height
    where = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    away = np.linalg.norm(grid.to_world(where) - grid.to_world(edge) + [0, 0, 8], axis=-1)
    nodule = (away < 7) & (lungs == LEFT)
    assert nodule.sum() > 20
    hu[nodule] = 40
    found = segment_lungs(hu, grid)
    assert (found[nodule] == LEFT).mean() > 0.6
    assert dice(found > 0, lungs > 0) > 0.9


def test_orientation_does_not_matter(make_scan, direction):
    """The same patient, scanned with the axes another way round: the same voxels are lung."""
    hu, _, grid, _ = make_scan(1)
    expected = segment_lungs(hu, grid)
    turned = Grid(grid.shape, grid.spacing_mm, grid.origin_mm, direction)
    _, axes, flips = turned.to_lps()
    back = np.argsort(axes)
    own_hu = hu[flips].transpose(back)
    own = Grid(own_hu.shape, grid.spacing_mm[back], turned.origin_mm, direction)
    np.testing.assert_array_equal(segment_lungs(own_hu, own), expected[flips].transpose(back))


@pytest.mark.parametrize("hu", [-1000, 40])
def test_no_lungs(hu):
    grid = Grid((12, 30, 30), np.full(3, 5.0), np.zeros(3))
    found = segment_lungs(np.full(grid.shape, hu, np.int16), grid)
    assert found.shape == grid.shape
    assert not found.any()


def test_air_outside_the_body_is_no_lung(make_scan):
    hu, lungs, grid, _ = make_scan(2)
    found = segment_lungs(np.where(lungs > 0, 40, hu).astype(np.int16), grid)
    assert not found.any()


def test_lungs_of_a_real_chest(real_data):
    ((uid, slices),) = series_in((real_data / "chest_ct_dicom").iterdir()).items()
    array, grid, _ = read_volume(slices, real_data)
    found = segment_lungs(hounsfield(array, uid), grid)
    litres = np.prod(grid.spacing_mm) * 1e-6
    middle = {}
    for code in (LEFT, RIGHT):
        assert 1 < (found == code).sum() * litres < 4
        middle[code] = grid.to_world(np.argwhere(found == code).mean(0))
    assert middle[LEFT][2] - middle[RIGHT][2] > 80  # x grows to the patient's left
    assert set(np.unique(found)) == {0, LEFT, RIGHT}


# --- Whether they are plausible -------------------------------------------------------------------


def test_plausible_lungs_are_searched_alone(make_scan):
    hu, lungs, grid, _ = make_scan(0)
    scan = scan_with_lungs("1.2", grid, hu)
    assert scan.body is None and scan.sides_known and scan.warnings == ()
    assert dice(scan.searched, lungs > 0) > 0.9
    middle = grid.to_world(np.argwhere(lungs > 0).mean(0))
    assert abs(scan.midline.left_mm(middle)) < 6


@pytest.mark.parametrize(("opaque", "word"), [(LEFT, "left"), (RIGHT, "right")])
@pytest.mark.parametrize("height", [30, 16, 13])  # all of it, and its lower part
def test_where_a_lung_is_opaque_the_body_is_searched(make_scan, direction, opaque, word, height):
    hu, lungs, grid, _ = make_scan(0)
    hu[:height][lungs[:height] == opaque] = 30
    turned = Grid(grid.shape, grid.spacing_mm, grid.origin_mm, direction)
    _, axes, flips = turned.to_lps()
    back = np.argsort(axes)
    own = Grid(hu[flips].transpose(back).shape, grid.spacing_mm[back], grid.origin_mm, direction)
    scan = scan_with_lungs("1.2", own, hu[flips].transpose(back), warnings=("one",))
    assert len(scan.warnings) == 2 and scan.warnings[0] == "one"
    assert word in scan.warnings[1] and "body" in scan.warnings[1]
    lungs = lungs[flips].transpose(back)
    assert scan.body[lungs > 0].all()
    assert scan.body.mean() < 0.75  # without the air outside
    for code, side in ((LEFT, "left"), (RIGHT, "right")):
        (box,) = (tuple(map(slice, w.min(0), w.max(0) + 1)) for w in [np.argwhere(lungs == code)])
        assert lung_of(lungs[box] == code, box, scan) == side


def test_slices_without_an_image_are_told(make_scan):
    hu, _, grid, _ = make_scan(0)
    hu[[10, 11, 20]] = -3024
    scan = scan_with_lungs("1.2", grid, hu)
    assert "3 of 30 slices" in scan.warnings[0] and scan.body is None
    assert not scan_with_lungs("1.2", grid, make_scan(0)[0]).warnings


def test_no_lungs_too_much_of_them_and_sides_that_are_unknown_are_not_plausible(make_scan):
    hu, lungs, grid, _ = make_scan(0)
    without = scan_with_lungs("1.2", grid, np.where(lungs > 0, 40, hu).astype(np.int16))
    assert "no lungs" in without.warnings[0] and without.body[lungs > 0].all()
    huge = Grid(grid.shape, grid.spacing_mm * 3, grid.origin_mm)
    assert "too many" in scan_with_lungs("1.2", huge, hu).warnings[0]
    half = np.s_[:, 12:52, 36:56]
    one = scan_with_lungs("1.2", grid.crop((0, 12, 36), (30, 52, 56)), hu[half])
    assert "told apart" in one.warnings[0] and not one.sides_known and one.midline is None
    assert one.body[lungs[half] > 0].all()
    nothing = scan_with_lungs("1.2", grid, np.full_like(hu, -1000))
    assert nothing.searched.all()  # not even a body


def test_air_left_out_is_not_plausible(make_scan):
    """Between the lungs, as dense as gas, in parts that are each too small to be a lung."""
    hu, lungs, grid, _ = make_scan(0)
    assert scan_with_lungs("1.2", grid, hu).body is None
    gas = np.zeros(hu.shape, bool)
    gas[6:24, 14:50, 29:36] = True
    gas[:, ::9] = False
    gas &= lungs == 0
    scan = scan_with_lungs("1.2", grid, np.where(gas, -1000, hu).astype(np.int16))
    assert "beside" in scan.warnings[0] and scan.body[gas].all()


def test_a_mask_that_came_with_the_scan_is_kept_and_checked(make_scan):
    hu, lungs, grid, _ = make_scan(0)

    def checked(mask: np.ndarray) -> Scan:
        scan = scan_with_lungs("1.2", grid, hu, mask=mask, source="seg-lungs-LUNA16")
        np.testing.assert_array_equal(scan.lungs, mask)
        assert scan.lungs_source == "seg-lungs-LUNA16"
        return scan

    assert checked(lungs).body is None
    half = lungs.copy()
    half[:15] = 0
    for mask, word in (
        (half, "covers"),
        (np.zeros_like(lungs), "empty"),
        (lungs[::-1, ::2].repeat(2, 1) * (lungs == LEFT), "covers"),
    ):
        scan = checked(mask)
        assert word in scan.warnings[0] and scan.body[lungs > 0].all()


# --- Of a real chest ------------------------------------------------------------------------------


def real_chest(real_data) -> tuple[np.ndarray, Grid]:
    ((uid, slices),) = series_in((real_data / "chest_ct_dicom").iterdir()).items()
    array, grid, _ = read_volume(slices, real_data)
    hu = hounsfield(array, uid)[:, ::2, ::2]  # half as fine, to be quick
    return hu, Grid(hu.shape, grid.spacing_mm * [1, 2, 2], grid.origin_mm, grid.direction)


def with_balls(hu: np.ndarray, grid: Grid, lungs: np.ndarray) -> tuple[np.ndarray, list]:
    """40 balls of 6 to 18 mm centred in the lungs: (hu, (world mm, radius, code) of each)."""
    rng = np.random.default_rng(7)
    hu, balls = hu.copy(), []
    for at in rng.permutation(np.argwhere(lungs > 0))[:40]:
        radius = rng.uniform(3, 9)
        reach = np.ceil(radius / grid.spacing_mm).astype(int)
        low, high = np.maximum(0, at - reach), np.minimum(hu.shape, at + reach + 1)
        box = tuple(map(slice, low, high))
        where = np.stack(np.mgrid[box], -1)
        hu[box][np.linalg.norm((where - at) * grid.spacing_mm, axis=-1) <= radius] = 40
        balls.append((grid.to_world(at), radius, int(lungs[tuple(at)])))
    return hu, balls


def changed(name: str, hu: np.ndarray, grid: Grid, lungs: np.ndarray) -> tuple[np.ndarray, Grid]:
    hu = hu.copy()
    filled = np.flatnonzero((lungs > 0).any((1, 2)))
    first, middle, last = filled[0], filled[len(filled) // 2], filled[-1]
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in hu.shape[1:]), indexing="ij")
    kind, *values = name.split()
    crop = [slice(0, n) for n in hu.shape]
    if kind == "blank":
        hu[
            {"one": [middle], "three": range(middle, middle + 3), "third": range(first, last, 3)}[
                values[0]
            ]
        ] = int(values[1])
    elif kind == "ring":
        hu[:, y**2 + x**2 > float(values[0]) ** 2] = int(values[1])
    elif kind == "box":
        hu[:, np.abs(x + 0.2 * y) > 0.9] = int(values[0])
    elif kind == "opaque":
        code = {"left": LEFT, "right": RIGHT}[values[0]]
        hu[
            (lungs == code)
            & (np.arange(len(hu))[:, None, None] < {"all": last + 1, "lower": middle}[values[1]])
        ] = 30
    elif kind == "field":
        crop = {
            "right": [slice(None), slice(20, 200), slice(0, 150)],
            "left": [slice(None), slice(20, 200), slice(110, 256)],
            "one": [slice(None), slice(40, 200), slice(30, 105)],
            "within": [slice(None), slice(64, 190), slice(50, 206)],
            "upper": [slice(middle, None), slice(None), slice(None)],
            "lower": [slice(0, middle), slice(None), slice(None)],
            "slices": [slice(middle, middle + 3), slice(None), slice(None)],
        }[values[0]]
    low, high = np.array([s.indices(n)[:2] for s, n in zip(crop, hu.shape, strict=True)]).T
    return hu[tuple(crop)], grid.crop(low, high)


@pytest.mark.parametrize(
    "name",
    [
        "none", "blank one -1024", "blank one 0", "blank three -3024", "blank third 0",
        "ring 0.98 0",
        "ring 0.7 -2000", "ring 0.5 32767", "ring 0.85 -3024", "box 0", "box -2000", "field right",
        "field left", "field one", "field within", "field upper", "field lower", "field slices",
        "opaque left all", "opaque right all", "opaque left lower", "opaque right lower",
    ],
)  # fmt: skip
def test_no_ball_is_lost_and_none_on_the_wrong_side(real_data, name):
    hu, grid = real_chest(real_data)
    lungs = segment_lungs(hu, grid)
    hu, balls = with_balls(hu, grid, lungs)
    litres = scan_with_lungs("", grid, hu).lung_litres
    seen, own = changed(name, hu, grid, lungs)
    scan = scan_with_lungs("1.2", own, seen)
    reach = np.ceil(NEAR_MM / own.spacing_mm).astype(int)
    inside = 0
    for centre_mm, radius, code in balls:
        at = np.rint(own.to_voxel(centre_mm)).astype(int)
        if ((at < 0) | (at >= own.shape)).any() or (seen[tuple(at)] != 40 and "opaque" not in name):
            continue
        inside += 1
        box = tuple(slice(i, i + 1) for i in at)
        near = grown(box, np.ceil(radius / own.spacing_mm).astype(int) + reach)
        assert scan.searched[near].any()
        side = lung_of(np.ones((1, 1, 1), bool), box, scan)
        assert side in ("unknown", {LEFT: "left", RIGHT: "right"}[code])
        assert side != "unknown" or scan.body is not None
    assert inside >= (1 if name == "field slices" else 8)
    kept = name.startswith(("none", "blank", "box")) or name in ("ring 0.98 0", "ring 0.85 -3024")
    if kept:
        assert scan.body is None
        assert scan.lung_litres == pytest.approx(litres, rel=0.02)
    if name.startswith("opaque") or name in ("field right", "field one"):
        assert scan.body is not None and scan.warnings
