"""A LUNA16 folder is read as documented, whole or in part; what contradicts itself is refused."""

import dataclasses
import os
import pathlib
import shutil

import numpy as np
import pytest

from lung_unet.data import phantom
from lung_unet.data.luna16 import Luna16, read_scan
from lung_unet.data.outlines import Mark, Region
from lung_unet.data.phantom import write_metaimage
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

UID = "1.2.0"


@pytest.fixture
def folder(luna16, tmp_path) -> pathlib.Path:
    """A copy of the folder `luna16`, to change."""
    return pathlib.Path(shutil.copytree(luna16, tmp_path / "luna16"))


def refused(folder: pathlib.Path, saying: str, read: str | None = None) -> None:
    with pytest.raises(InputError, match=saying) as error:
        dataset = Luna16(folder)
        if read:
            dataset.read(read)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def append(path: pathlib.Path, *rows: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "".join(f"{row}\n" for row in rows))


def row(uid: str, centre_mm, diameter_mm: float) -> str:
    z, y, x = centre_mm
    return f"{uid},{x},{y},{z},{diameter_mm}"


# --- A scan ---------------------------------------------------------------------------------------


def test_a_scan_is_as_documented(luna16, make_scan):
    hu, lungs, grid, centre = make_scan(0)
    scan = read_scan(luna16, UID)
    np.testing.assert_array_equal(scan.hu, hu)
    np.testing.assert_array_equal(scan.lungs, lungs)
    kinds = {"hu": np.int16, "lungs": np.uint8, "votes": np.uint8, "ignore": np.bool_}
    for name, kind in kinds.items():
        assert getattr(scan, name).dtype == kind
        assert getattr(scan, name).shape == grid.shape
    np.testing.assert_allclose(scan.spacing_mm, [5, 3, 3])
    np.testing.assert_allclose(scan.origin_mm, grid.origin_mm)
    assert (scan.series_uid, scan.lungs_source) == (UID, "seg-lungs-LUNA16")
    assert set(np.unique(scan.votes)) == {0, 4}
    lit = np.argwhere(scan.votes)
    np.testing.assert_allclose(grid.to_world(lit.mean(0)), centre, atol=1)
    assert hu[scan.votes > 0].mean() > 0  # the nodule's own voxels


def test_subsets_are_the_folders(luna16):
    dataset = Luna16(luna16)
    assert dataset.subsets == {f"1.2.{i}": i for i in range(4)}
    assert dataset.absent == []


def test_unknown_series(luna16):
    refused(luna16, "1.2.9 is not in subset0..9", read="1.2.9")


# --- Tables ---------------------------------------------------------------------------------------


def test_voxel_coordinates_by_mistake(folder):
    append(folder / "annotations.csv", f"{UID},46,32,15,20")
    refused(folder, r"annotations.csv: line 6: .* outside scan 1\.2\.0", read=UID)


@pytest.mark.parametrize("diameter_mm", [0, -1])
def test_an_annotation_needs_a_diameter(folder, make_scan, diameter_mm):
    centre = make_scan(0)[3]
    append(folder / "annotations.csv", row(UID, centre, diameter_mm))
    refused(folder, "line 6: ", read=UID)


def test_nan_in_a_table(folder):
    append(folder / "annotations_excluded.csv", f"{UID},nan,1,1,5")
    refused(folder, "annotations_excluded.csv: line 2: ")


def test_excluded_findings_are_ignored_and_of_10_mm_where_no_size_is_given(folder, make_scan):
    grid, centre = make_scan(0)[2:]
    rows = [
        (np.array([-20.0, 0, 0]), -1),
        (np.array([20.0, 0, -70]), 24.0),
        (np.array([0, 0, 900]), 5),
    ]
    append(folder / "annotations_excluded.csv", *(row(UID, centre + o, d) for o, d in rows))
    scan = read_scan(folder, UID)
    where = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    expected = np.zeros(grid.shape, bool)
    for offset, diameter_mm in rows[:2]:  # the third lies outside: nothing to ignore
        away = np.linalg.norm(grid.to_world(where) - centre - offset, axis=-1)
        expected |= away <= (diameter_mm if diameter_mm > 0 else 10.0) / 2
    np.testing.assert_array_equal(scan.ignore, expected & (scan.votes == 0))
    assert set(np.unique(scan.votes)) == {0, 4}  # what no reader outlined is no vote
    assert [f.included for f in scan.findings] == [True, False, False]


def test_an_excluded_mark_on_a_counted_nodule_ignores_no_voxel_and_stays_for_froc(
    folder, make_scan
):
    append(folder / "annotations_excluded.csv", row(UID, make_scan(0)[3] + 2.0, 30.0))
    scan = read_scan(folder, UID)
    assert [(f.included, f.diameter_mm) for f in scan.findings] == [(True, 20.0), (False, 30.0)]
    assert not scan.ignore.any()


@pytest.mark.parametrize("order", [1, -1])
def test_each_row_of_the_excluded_is_kept_in_any_order(folder, make_scan, order):
    """LUNA16 lists each reader's mark, and FROC takes each; where balls meet, all is ignored."""
    grid, centre = make_scan(0)[2:]
    away = [centre + np.array([0, 0, -40.0 + x]) for x in (0, 4, 8)][::order]
    append(folder / "annotations_excluded.csv", *(row(UID, at, -1) for at in away))
    scan = read_scan(folder, UID)
    kept = [f for f in scan.findings if not f.included]
    assert [f.diameter_mm for f in kept] == [-1] * 3
    np.testing.assert_allclose([f.centre_mm for f in kept], away)
    where = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    near = [np.linalg.norm(grid.to_world(where) - at, axis=-1) <= 5 for at in away]
    np.testing.assert_array_equal(scan.ignore, np.any(near, 0) & (scan.votes == 0))


def test_what_readers_marked_by_a_point_is_ignored_as_luna16_s_excluded_are(folder, make_scan):
    grid, centre = make_scan(0)[2:]
    at = np.rint(grid.to_voxel(centre)).astype(int)
    at[2] -= 16
    point = Mark(0, "non-nodule", (Region(float(grid.to_world(at)[0]), at[None, 1:]),), {}, "a.xml")
    (folder / "lidc_xml").mkdir(exist_ok=True)
    phantom.write_xml(folder / "lidc_xml" / "a.xml", UID, [point], grid)
    (found,) = [f for f in read_scan(folder, UID).findings if not f.included]
    scan = read_scan(folder, UID)
    assert found.readers == 1 and not found.outlines() and scan.ignore[tuple(at)]
    append(folder / "annotations_excluded.csv", row(UID, grid.to_world(at), -1))
    both = Luna16(folder).read(UID)
    assert len(both.findings) == len(scan.findings) + 1
    np.testing.assert_array_equal(both.ignore, scan.ignore)


def test_a_partial_download_works(folder):
    shutil.rmtree(folder / "subset2")
    dataset = Luna16(folder)
    assert dataset.absent == ["1.2.2"]
    assert sorted(dataset.subsets) == ["1.2.0", "1.2.1", "1.2.3"]
    assert dataset.read("1.2.3").findings


def test_a_series_that_no_table_knows(folder):
    append(folder / "annotations.csv", "1.2.77,0,0,0,5")
    refused(folder, r"annotations.csv: line 6: series 1\.2\.77 is unknown")


def test_only_annotations_are_needed(folder, make_scan):
    shutil.rmtree(folder / "seg-lungs-LUNA16")
    (folder / "annotations_excluded.csv").unlink()
    (folder / "seriesuids.csv").unlink()
    dataset = Luna16(folder)
    assert dataset.absent == []
    scan = dataset.read(UID)
    assert scan.lungs_source == "computed"
    true = make_scan(0)[1]
    assert 2 * ((scan.lungs > 0) & (true > 0)).sum() > 0.9 * (
        (scan.lungs > 0).sum() + (true > 0).sum()
    )
    (folder / "annotations.csv").unlink()
    refused(folder, "annotations.csv: no such file")


def test_tables_where_luna16_packs_them(folder):
    expected = read_scan(folder, UID).votes
    (folder / "evaluationScript" / "annotations").mkdir(parents=True)
    for name in ("annotations.csv", "annotations_excluded.csv", "seriesuids.csv"):
        shutil.move(folder / name, folder / "evaluationScript" / "annotations" / name)
    np.testing.assert_array_equal(Luna16(folder).read(UID).votes, expected)


# --- Files ----------------------------------------------------------------------------------------


def test_no_folder_or_no_subsets(tmp_path):
    refused(tmp_path / "none", "no such folder")
    refused(tmp_path, "no subset0..9")
    (tmp_path / "subset10").mkdir()
    (tmp_path / "subset10" / "1.2.mhd").touch()
    refused(tmp_path, "no subset0..9")


def test_a_scan_in_two_subsets(folder):
    shutil.copy(folder / "subset0" / f"{UID}.mhd", folder / "subset3" / f"{UID}.mhd")
    refused(folder, r"subset3/1\.2\.0\.mhd: is also in .*subset0")


@pytest.mark.parametrize("kind", ["subset0", "seg-lungs-LUNA16"])
def test_a_file_cut_short(folder, kind):
    data = folder / kind / f"{UID}.zraw"
    data.write_bytes(data.read_bytes()[:-200])
    refused(folder, rf"{kind}/1\.2\.0\.mhd: .* copy it again", read=UID)


def test_a_lung_mask_of_another_size(folder, make_scan):
    _, lungs, grid, _ = make_scan(0)
    write_metaimage(folder / "seg-lungs-LUNA16" / f"{UID}.mhd", lungs[:-1], grid)
    refused(folder, r"seg-lungs-LUNA16/1\.2\.0\.mhd: .*copy both again", read=UID)


def test_a_lung_mask_that_lies_elsewhere(folder, make_scan):
    _, lungs, grid, _ = make_scan(0)
    path = folder / "seg-lungs-LUNA16" / f"{UID}.mhd"
    write_metaimage(path, lungs, dataclasses.replace(grid, origin_mm=grid.origin_mm + 50))
    refused(folder, r"1\.2\.0\.mhd: lies up to 86\.60 mm from .*copy both again", read=UID)
    write_metaimage(path, lungs, dataclasses.replace(grid, direction=np.diag([1.0, -1.0, -1.0])))
    refused(folder, r"1\.2\.0\.mhd: lies up to .*direction differ", read=UID)


def test_a_lung_mask_with_other_numbers(folder, make_scan):
    _, lungs, grid, _ = make_scan(0)
    path = folder / "seg-lungs-LUNA16" / f"{UID}.mhd"
    write_metaimage(path, (lungs > 0).astype(np.uint8), grid)
    refused(folder, r"1\.2\.0\.mhd: holds \[1\] but no lungs, which LUNA16 numbers", read=UID)


def test_hidden_files_are_no_scans(folder):
    (folder / "subset0" / "._1.2.0.mhd").write_bytes(b"Mac OS X")
    assert sorted(Luna16(folder).paths) == ["1.2.0", "1.2.1", "1.2.2", "1.2.3"]


def test_a_subset_that_cannot_be_read_is_told(folder, monkeypatch):
    listed = pathlib.Path.iterdir

    def denied(path):
        if path.name == "subset3":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(pathlib.Path, "iterdir", denied)
    refused(folder, r"subset3: cannot be read \(Permission denied\)")


# --- Outlines -------------------------------------------------------------------------------------


def write_xml(
    path: pathlib.Path, uid: str, grid: Grid, *readers: list[tuple[int, int, int]]
) -> None:
    """LIDC-IDRI's XML: each reader outlined squares of 6 × 6 pixels around voxels, in 3 slices."""

    def outline(z: int, y: int, x: int) -> str:
        ring = [(y - 4, x + d) for d in range(-4, 4)] + [(y + d, x + 4) for d in range(-4, 4)]
        ring += [(y + 4, x - d) for d in range(-4, 4)] + [(y - d, x - 4) for d in range(-4, 4)]
        edge = "".join(
            f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for y, x in ring
        )
        height = grid.to_world([z, 0, 0])[0]
        return (
            f"<roi><imageZposition>{height}</imageZposition><inclusion>TRUE</inclusion>{edge}</roi>"
        )

    sessions = ""
    for nodules in readers:
        marks = "".join(
            "<unblindedReadNodule><characteristics><subtlety>3</subtlety></characteristics>"
            + "".join(outline(z + d, y, x) for d in (-1, 0, 1))
            + "</unblindedReadNodule>"
            for z, y, x in nodules
        )
        sessions += f"<readingSession>{marks}</readingSession>"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        '<?xml version="1.0"?><LidcReadMessage xmlns="http://www.nih.gov"><ResponseHeader>'
        f"<SeriesInstanceUid>{uid}</SeriesInstanceUid></ResponseHeader>{sessions}</LidcReadMessage>"
    )


def test_an_annotation_takes_the_readers_outline_or_becomes_a_sphere(folder, make_scan):
    grid, centre = make_scan(0)[2:]
    outlined = tuple(int(v) for v in np.rint(grid.to_voxel(centre + np.array([0, 3, -3]))))
    other, lone = (outlined[0], outlined[1], 18), (outlined[0] - 7, outlined[1], 46)
    write_xml(folder / "lidc_xml" / "a.xml", UID, grid, [outlined], [outlined, other], [outlined])
    append(folder / "annotations.csv", row(UID, grid.to_world(lone), 16.0))
    scan, matches = Luna16(folder).read_matched(UID)
    assert [m.finding is None for m in matches] == [False, True]
    found = scan.findings[matches[0].finding]
    z, y, x = outlined
    expected = np.zeros(grid.shape, np.uint8)
    expected[z - 1 : z + 2, y - 3 : y + 4, x - 3 : x + 4] = 3
    drawn = np.zeros(grid.shape, np.uint8)
    drawn[found.box] = found.votes
    np.testing.assert_array_equal(drawn, expected)  # the outline is the readers'
    np.testing.assert_allclose(found.centre_mm, centre)  # position and diameter are LUNA16's
    assert (found.diameter_mm, found.readers, found.included) == (20.0, 3, True)
    assert scan.votes[lone] == 4  # a sphere, of all readers
    assert scan.votes[other] == 1  # one reader of three: does not count
    assert scan.ignore[other]
    assert not scan.ignore[outlined]


@pytest.mark.parametrize("nearest_first", [True, False])
def test_an_outline_is_that_of_the_nearest_annotation_alone(folder, make_scan, nearest_first):
    """A second row near it is a nodule of its own, wherever it stands in the table."""
    grid, centre = make_scan(0)[2:]
    outlined = tuple(int(v) for v in np.rint(grid.to_voxel(centre)))
    write_xml(folder / "lidc_xml" / "a.xml", UID, grid, *[[outlined]] * 3)
    table = folder / "annotations.csv"
    header, *rows = table.read_text(encoding="utf-8").splitlines()
    other = row(UID, centre + np.array([0, 0, 9.0]), 6.0)
    rows = [*rows, other] if nearest_first else [other, *rows]
    table.write_text("\n".join([header, *rows]) + "\n")
    scan, matches = Luna16(folder).read_matched(UID)
    assert {m.mark.diameter_mm: m.finding for m in matches} == {20.0: 0, 6.0: None}
    assert [f.diameter_mm for f in scan.findings] == [20.0, 6.0]
    np.testing.assert_allclose(scan.findings[0].centre_mm, centre)


def test_an_outline_that_joins_two_lesions_is_still_the_annotation_s(folder, make_scan):
    """One reader drew both as one, so that the centre lies beyond the annotation's radius."""
    grid, centre = make_scan(0)[2:]
    at = tuple(int(v) for v in np.rint(grid.to_voxel(centre)))
    chain = [(at[0], at[1], at[2] - 5 * n) for n in range(5)]
    write_xml(folder / "lidc_xml" / "a.xml", UID, grid, *[chain] * 3)
    table = folder / "annotations.csv"
    table.write_text(
        table.read_text(encoding="utf-8").replace(row(UID, centre, 20.0), row(UID, centre, 4.0))
    )
    scan, matches = Luna16(folder).read_matched(UID)
    counted = [f for f in scan.findings if f.included]
    assert [m.finding for m in matches] == [0] and len(counted) == 1
    assert counted[0].diameter_mm == 4.0


def test_outlines_in_a_folder_of_their_own(folder, tmp_path, make_scan):
    grid, centre = make_scan(0)[2:]
    at = tuple(int(v) for v in np.rint(grid.to_voxel(centre)))
    write_xml(tmp_path / "xml" / "a.xml", UID, grid, [at], [at], [at], [at])
    scan = read_scan(folder, UID, tmp_path / "xml")
    assert scan.votes.max() == 4
    assert (scan.votes > 0).sum() == 3 * 49
    with pytest.raises(InputError, match="no such folder"):
        Luna16(folder, tmp_path / "none")


# --- Content --------------------------------------------------------------------------------------


def test_the_content_changes_with_the_bytes_of_each_input_and_nothing_else(folder, make_scan):
    grid, centre = make_scan(0)[2:]
    at = tuple(int(v) for v in np.rint(grid.to_voxel(centre)))
    xml = folder / "lidc_xml" / "a.xml"
    seen = {Luna16(folder).scan_files(UID).content()}

    def changes(expected: bool) -> None:
        found = Luna16(folder).scan_files(UID).content()
        assert (found not in seen) == expected
        seen.add(found)

    changes(False)
    for name in (f"subset0/{UID}", f"seg-lungs-LUNA16/{UID}"):
        for suffix in (".mhd", ".zraw"):
            path = folder / f"{name}{suffix}"
            later = path.stat().st_mtime_ns + 1
            os.utime(path, ns=(later, later))
            changes(False)
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            changes(True)
            os.utime(path, ns=(later, later))
            changes(False)
            data[-1] ^= 1
            path.write_bytes(data)
            changes(False)  # as it was
    write_xml(xml, UID, grid, [at])
    changes(True)
    write_xml(xml, UID, grid, [at], [at])
    changes(True)
    append(folder / "annotations.csv", row(UID, centre + 20.0, 6.0))
    changes(True)
    append(folder / "annotations_excluded.csv", row(UID, centre - 20.0, -1))
    changes(True)
    (folder / "seg-lungs-LUNA16" / f"{UID}.mhd").unlink()
    changes(True)

    write_xml(folder / "lidc_xml" / "b.xml", "1.2.1", grid, [at])
    append(folder / "annotations.csv", row("1.2.1", centre, 6.0))
    (folder / "subset0" / f"{UID}.5.zraw").write_bytes(b"of another series")
    changes(False)


# --- Choices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("min_readers", "counted"), [(1, {1, 2, 3}), (2, {2, 3}), (3, {3}), (4, set())]
)
def test_findings_of_fewer_readers_are_ignored(folder, make_scan, min_readers, counted):
    """Also a nodule that annotations.csv lists: LUNA16 asks for three readers."""
    grid, centre = make_scan(0)[2:]
    three = tuple(int(v) for v in np.rint(grid.to_voxel(centre)))
    two, one = (three[0], three[1], 18), (three[0] - 7, three[1], 46)
    write_xml(folder / "lidc_xml" / "a.xml", UID, grid, [three, two, one], [three, two], [three])
    scan, matches = Luna16(folder, min_readers=min_readers).read_matched(UID)
    assert [m.finding is None for m in matches] == [False]  # no sphere takes its place
    assert {f.readers for f in scan.findings} == {1, 2, 3}
    assert {f.readers for f in scan.findings if f.included} == counted
    for readers, at in enumerate((one, two, three), 1):
        assert scan.votes[at] == readers
        assert scan.ignore[at] == (readers not in counted)


def test_spheres_instead_of_outlines(folder, make_scan):
    grid, centre = make_scan(0)[2:]
    expected = Luna16(folder).read(UID)
    at = tuple(int(v) for v in np.rint(grid.to_voxel(centre)))
    write_xml(folder / "lidc_xml" / "a.xml", UID, grid, [at], [at], [at])
    assert (Luna16(folder).read(UID).votes != expected.votes).any()
    dataset = Luna16(folder, outlines="sphere")
    np.testing.assert_array_equal(dataset.read(UID).votes, expected.votes)
    assert UID not in dataset.outlines


# --- What is dropped is told ----------------------------------------------------------------------


@pytest.mark.parametrize("change", [".mhd,", " ,", "\u00a0,", ".MHD ,"])
def test_rows_are_of_the_scan_however_its_name_is_written(folder, change):
    table = folder / "annotations.csv"
    head, *rows = table.read_text(encoding="utf-8").splitlines()
    text = "\n".join([head, *(r.replace(",", change, 1) for r in rows)])
    table.write_text(text + "\n", encoding="utf-8")
    source = Luna16(folder)
    assert source.rows["annotations.csv"] == {"rows": 4, "matched": 4, "left": 0}
    assert len(source.read(UID).findings) == 1


def test_rows_of_scans_that_are_not_on_disk_are_counted(folder):
    shutil.rmtree(folder / "subset2")
    expected = {"rows": 4, "matched": 3, "left": 1}
    assert Luna16(folder).rows["annotations.csv"] == expected
    (folder / "seriesuids.csv").unlink()
    source = Luna16(folder)
    assert source.rows["annotations.csv"] == expected
    assert any("no seriesuids.csv" in note for note in source.notes)


@pytest.mark.parametrize("table", ["annotations.csv", "annotations_excluded.csv"])
def test_a_row_of_no_scan_is_refused_also_without_a_list_of_series(folder, table):
    append(folder / table, "case 7,0,0,0,5")
    refused(folder, rf"{table}: line \d: series case 7 is unknown")
    (folder / "seriesuids.csv").unlink()
    refused(folder, rf"{table}: line \d: series case 7 is unknown.*seriesuids.csv")


def test_an_annotation_twice_is_refused(folder):
    first = (folder / "annotations.csv").read_text(encoding="utf-8").splitlines()[1]
    append(folder / "annotations.csv", first.replace(",", ".mhd,", 1))
    refused(folder, "line 6 repeats line 2")


def test_a_scan_that_the_list_of_series_lacks_is_told(folder):
    (folder / "seriesuids.csv").write_text("1.2.0\n1.2.1\n1.2.2\n")
    assert any("1 scans are not in seriesuids.csv" in note for note in Luna16(folder).notes)


def test_luna16_s_list_decides_what_of_the_outlines_counts(folder, make_scan):
    grid, centre = make_scan(0)[2:]
    listed = tuple(int(v) for v in np.rint(grid.to_voxel(centre)))
    other = (listed[0], listed[1], 18)
    write_xml(folder / "lidc_xml" / "a.xml", UID, grid, *[[listed, other]] * 3)
    scan, matches = Luna16(folder).read_matched(UID)
    assert [f.included for f in scan.findings].count(True) == 1
    assert scan.ignore[other] and not scan.ignore[listed]
    (unlisted,) = [m.finding for m in matches if m.mark is None]
    np.testing.assert_allclose(scan.findings[unlisted].centre_mm, grid.to_world(other), atol=1)
    scan, matches = Luna16(folder, min_readers=2).read_matched(UID)  # asks for more than the list
    assert [f.included for f in scan.findings].count(True) == 2
    assert sum(m.mark is None for m in matches) == 1


def test_what_lies_outside_the_scan_is_counted(folder, make_scan):
    grid, centre = make_scan(0)[2:]
    at = tuple(int(v) for v in np.rint(grid.to_voxel(centre)))
    write_xml(folder / "lidc_xml" / "a.xml", UID, grid, *[[at, (99, *at[1:])]] * 3)
    append(folder / "annotations_excluded.csv", row(UID, (900.0, 0, 0), -1))
    outlines, rows, *_ = Luna16(folder).read(UID).warnings
    assert outlines.startswith("9 of 18 outlines")
    assert rows.startswith("1 of 1 excluded findings")
