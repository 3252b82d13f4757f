"""The phantom is laid out as LUNA16 and LIDC-IDRI are, tells the truth, and follows its seed."""

import csv
import pathlib

import numpy as np
import pytest
import SimpleITK as sitk
from defusedxml import ElementTree
from scipy import ndimage

from lung_unet.data import nodules, outlines, phantom
from lung_unet.errors import InputError

LIDC = {"l": "http://www.nih.gov"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("phantom")
    phantom.build(root, scans=2, seed=3, workers=2)
    return root


def uids(root: pathlib.Path) -> list[str]:
    return (root / "seriesuids.csv").read_text(encoding="utf-8").splitlines()


def image(path: pathlib.Path) -> sitk.Image:
    return sitk.ReadImage(str(path))


def scans(root: pathlib.Path):
    """(uid, CT image, HU, lungs, truth) of each scan."""
    for number, uid in enumerate(uids(root)):
        ct = image(root / f"subset{number}" / f"{uid}.mhd")
        files = (root / "seg-lungs-LUNA16" / f"{uid}.mhd", root / "truth" / f"{uid}.nii.gz")
        lungs, truth = (sitk.GetArrayFromImage(image(file)) for file in files)
        yield uid, ct, sitk.GetArrayFromImage(ct), lungs, truth


def rows(root: pathlib.Path, name: str) -> list[dict[str, str]]:
    with open(root / name, newline="") as file:
        return list(csv.DictReader(file))


def test_headers_are_luna16s(root):
    geometry = set()
    for number, uid in enumerate(uids(root)):
        for folder, kind in ((f"subset{number}", "MET_SHORT"), ("seg-lungs-LUNA16", "MET_UCHAR")):
            lines = (root / folder / f"{uid}.mhd").read_text(encoding="utf-8").splitlines()
            header = dict(line.split(" = ") for line in lines)
            assert header["ElementType"] == kind
            assert header["CompressedData"] == "True"
            assert header["TransformMatrix"] == "1 0 0 0 1 0 0 0 1"
            assert header["ElementDataFile"] == f"{uid}.zraw"
        x, y, z = map(float, header["ElementSpacing"].split())
        assert x == y != z
        assert all(float(v) for v in header["Offset"].split())
        geometry |= {header["ElementSpacing"], header["Offset"]}
    assert len(geometry) == 4
    assert list(rows(root, "annotations.csv")[0]) == [
        *("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
    ]
    assert {row["seriesuid"] for row in rows(root, "annotations.csv")} == set(uids(root))
    assert {float(row["diameter_mm"]) for row in rows(root, "annotations_excluded.csv")} == {-1}


def test_bytes_depend_on_seed_and_number_alone(root, tmp_path):
    phantom.build(tmp_path, scans=1, seed=3, workers=1)
    written = [path for path in tmp_path.rglob("*.*") if path.suffix != ".csv" and path.is_file()]
    assert len(written) == 6
    for path in written:
        assert path.read_bytes() == (root / path.relative_to(tmp_path)).read_bytes(), path.name
    alone = (tmp_path / "annotations.csv").read_text(encoding="utf-8")
    assert (root / "annotations.csv").read_text(encoding="utf-8").startswith(alone)
    assert phantom.series_uid(3, 0) != phantom.series_uid(4, 0)


def test_annotations_are_what_three_readers_outlined(root):
    for uid, ct, _, _, truth in scans(root):
        regions, _ = ndimage.label(truth >= 2)
        listed = [row for row in rows(root, "annotations.csv") if row["seriesuid"] == uid]
        for row in listed:
            world = [float(row[f"coord{axis}"]) for axis in "XYZ"]
            at = ct.TransformPhysicalPointToIndex(world)[::-1]
            assert truth[at] >= 3
            volume = (regions == regions[at]).sum() * np.prod(ct.GetSpacing())
            diameter = (6 * volume / np.pi) ** (1 / 3)
            assert diameter == pytest.approx(float(row["diameter_mm"]), abs=max(ct.GetSpacing()))
        assert len(listed) == ndimage.label(truth >= 3)[1]


def test_outlines_rasterise_to_the_truth(root):
    for uid, ct, _, _, truth in scans(root):
        tree = ElementTree.parse(root / "lidc_xml" / f"{uid}.xml")
        assert tree.findtext("l:ResponseHeader/l:SeriesInstanceUid", namespaces=LIDC) == uid
        sessions = tree.findall("l:readingSession", LIDC)
        assert len(sessions) == 4
        votes = np.zeros_like(truth)
        for session in sessions:
            own = np.zeros(truth.shape, bool)
            for roi in session.iterfind("l:unblindedReadNodule/l:roi", LIDC):
                z_mm = float(roi.findtext("l:imageZposition", namespaces=LIDC))
                z = (z_mm - ct.GetOrigin()[2]) / ct.GetSpacing()[2]
                assert abs(z - round(z)) < 1e-6
                x, y = (
                    [int(e.text) for e in roi.iterfind(f"l:edgeMap/l:{axis}Coord", LIDC)]
                    for axis in "xy"
                )
                edge = np.zeros(truth.shape[1:], bool)
                edge[y, x] = True
                own[round(z)] |= ndimage.binary_fill_holes(edge) & ~edge
            votes += own
        np.testing.assert_array_equal(votes, truth)
        assert set(np.unique(truth)) == {0, 1, 2, 3, 4}  # they agree on the core, not on the rim


def test_lungs_hold_air_and_bright_vessels(root):
    for _, ct, hu, lungs, truth in scans(root):
        assert set(np.unique(lungs)) == {0, 3, 4, 5}
        left, right = lungs == 3, lungs == 4
        assert np.argwhere(left)[:, 2].min() > np.argwhere(right)[:, 2].mean()
        litres = (left | right).sum() * np.prod(ct.GetSpacing()) / 1e6
        assert 2.5 < litres < 7.5
        assert -900 < hu[left | right].mean() < -750
        assert hu[lungs == 5].mean() < -800
        inner = ndimage.binary_erosion(left | right, iterations=3)
        vessels = inner & (hu > -300) & ~ndimage.binary_dilation(truth > 0, iterations=2)
        assert vessels.sum() > 300


def test_sizes_suit_a_small_network():
    drawn = [
        list(nodules.draw_lesions(np.random.default_rng(seed), clear=False)) for seed in range(200)
    ]
    sure = [lesion for lesions in drawn for lesion in lesions if lesion.chance > 0.5]
    sizes = np.array([lesion.diameter_mm for lesion in sure])
    assert 10 < np.median(sizes) < 14
    assert (sizes < 5).mean() < 0.1
    assert sizes.min() > 3 and sizes.max() <= 30
    assert all(any(lesion.chance == 1 for lesion in lesions) for lesions in drawn)
    clear = nodules.draw_lesions(np.random.default_rng(0), clear=True)
    assert "nodule" not in {lesion.kind for lesion in clear}


@pytest.mark.parametrize("seed", range(20))
def test_an_outline_lies_just_outside(seed):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(24, 24)), 2)
    labels, _ = ndimage.label(noise > 0.05)
    region = labels == 1
    path = nodules.outline(region)
    steps = np.abs(np.diff(path, axis=0, append=path[:1])).max(axis=1)
    assert steps.max() == 1
    inside = np.zeros((28, 28), bool)
    inside[tuple((outlines.enclosed(path) + 2).T)] = True
    region = np.pad(region, 2)
    assert inside[region].all()
    filled = ndimage.binary_fill_holes(ndimage.binary_dilation(region))
    assert filled[inside].all()


def test_bad_arguments_are_told(root, tmp_path):
    with pytest.raises(InputError, match="give 1 or more scans"):
        phantom.build(tmp_path, scans=0)
    with pytest.raises(InputError, match="another dataset"):
        phantom.build(root, scans=2, seed=4)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="give a folder"):
        phantom.build(tmp_path / "file")
