"""What a user may give to be predicted: found whole, named apart, or refused by name."""

import os
import pathlib
import unicodedata

import numpy as np
import pydicom
import pytest

from lung_unet.data.images import write_image
from lung_unet.data.inputs import find_inputs, fingerprint, read_input
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

OUTPUT = pathlib.Path("/nowhere/out")


def write_file(path: pathlib.Path) -> pathlib.Path:
    grid = Grid((2, 2, 2), np.ones(3), np.zeros(3))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.full(grid.shape, -900, np.int16), grid)
    return path


def names(path: pathlib.Path, output: pathlib.Path = OUTPUT) -> list[str]:
    return [s.name for s in find_inputs(path, output).scans]


def test_a_file_a_folder_of_files_a_series_a_folder_of_series(tmp_path, write_series):
    assert names(write_file(tmp_path / "files" / "a.nii.gz")) == ["a"]
    write_file(tmp_path / "files" / "b.nrrd")
    write_file(tmp_path / "files" / ".0123abcd.c.nrrd")  # what a killed run left
    (tmp_path / "files" / "b.raw").write_bytes(b"voxels")
    assert names(tmp_path / "files") == ["a", "b"]
    write_series(tmp_path / "patients" / "1" / "chest", "1.2.1")
    assert names(tmp_path / "patients" / "1" / "chest") == ["chest"]
    write_series(tmp_path / "patients" / "2" / "thorax", "1.2.2")
    assert names(tmp_path / "patients") == ["chest", "thorax"]
    write_series(tmp_path / "patients" / "2" / "thorax", "1.2.3", name="other-{}.dcm")
    write_file(tmp_path / "patients" / "d.mha")
    assert sorted(names(tmp_path / "patients")) == [
        "chest", "d", "thorax_1.2.2", "thorax_1.2.3"
    ]  # fmt: skip


def test_no_two_scans_share_a_name(tmp_path, write_series):
    for name in ("scan.mha", "Scan.nrrd", "scan.nii.gz", "other.nii", "scan.nrrd_.nii"):
        write_file(tmp_path / name)
    for number in (1, 2):
        write_series(tmp_path / str(number) / "scan", f"1.2.{number}")
    write_series(tmp_path / "scan.mha_", "1.2.3")
    write_series(tmp_path / "3" / "scan.mha", "1.2.4")
    found = names(tmp_path)
    assert len({n.lower() for n in found}) == len(found) == 9
    assert {"other", "scan.nii.gz", "scan_1.2.1", "scan_1.2.2", "scan.mha", "scan.mha_"} <= {*found}


def test_names_that_differ_in_the_form_of_their_letters_alone(tmp_path):
    for name in ("\u00e9.nii", "e\u0301.mha", "stra\u00dfe.nii", "STRASSE.mha"):
        write_file(tmp_path / name)
    found = names(tmp_path)
    assert len({unicodedata.normalize("NFC", n).casefold() for n in found}) == 4


def test_what_is_no_volume_of_ct_is_left_out_and_named(tmp_path, write_series):
    write_series(tmp_path / "ct")
    write_series(tmp_path / "mr", "1.2.5", tags={"0008|0060": "MR"})
    write_series(tmp_path / "single", "1.2.6", hu=np.zeros((1, 8, 8), np.int16))
    scout = {"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}
    write_series(tmp_path / "scouts", "1.2.7", hu=np.zeros((2, 8, 8), np.int16), tags=scout)
    write_series(tmp_path / "ct", hu=np.zeros((1, 8, 8), np.int16), tags=scout, name="x{}.dcm")
    found = find_inputs(tmp_path, OUTPUT)
    assert [(s.name, len(s.slices)) for s in found.scans] == [("ct", 4)] and not found.errors
    assert found.left_out == "1 CT of one slice, 1 MR series, 1 localizer or captured screen"
    with pytest.raises(InputError, match=r"holds no image file and no CT series.*1 MR series"):
        find_inputs(tmp_path / "mr", OUTPUT)


def test_a_damaged_folder_and_a_series_in_two_are_errors_and_the_rest_is_found(
    tmp_path, write_series
):
    for name, uid in (("good", "1.2.1"), ("damaged", "1.2.2"), ("one", "1.2.3"), ("two", "1.2.3")):
        write_series(tmp_path / name, uid)
    broken = tmp_path / "damaged" / "0.dcm"
    broken.write_bytes(broken.read_bytes()[:-50])
    found = find_inputs(tmp_path, OUTPUT)
    assert [s.name for s in found.scans] == ["good"]
    damaged, double = map(str, found.errors)
    assert str(broken) in damaged
    assert str(tmp_path / "one") in double and str(tmp_path / "two") in double


def test_one_bad_file_ends_its_own_series_and_no_other(tmp_path, write_series):
    for uid in ("1.2.1", "1.2.2", "1.2.3"):
        write_series(tmp_path / "ct", uid, name=uid + "-{}.dcm")
    for number in (0, 2):
        path = tmp_path / "ct" / f"1.2.2-{number}.dcm"
        path.write_bytes(path.read_bytes()[:-50])
    found = find_inputs(tmp_path, OUTPUT)
    assert [s.series_uid for s in found.scans] == ["1.2.1", "1.2.3"]
    (error,) = map(str, found.errors)
    assert "1.2.2-0.dcm" in error and "series 1.2.2" in error and "1 more files" in error
    assert [s.warnings for s in found.scans] == [(), ()]


def test_a_bad_file_of_no_known_series_is_an_error_and_a_warning_beside_it(tmp_path, write_series):
    write_series(tmp_path / "ct")
    write_series(tmp_path / "other", "1.2.9")
    (tmp_path / "ct" / "x.dcm").write_bytes(b"\0" * 200)
    found = find_inputs(tmp_path, OUTPUT)
    beside, other = found.scans
    (error,) = map(str, found.errors)
    assert str(tmp_path / "ct" / "x.dcm") in error
    (warning,) = beside.warnings
    assert "x.dcm" in warning and warning in read_input(beside).warnings
    assert other.warnings == ()


def test_values_that_are_no_hu_are_refused_with_what_was_guessed(
    tmp_path, make_slices, save_slices
):
    rng = np.random.default_rng(0)
    air, tissue = rng.normal(0, 20, (2, 6, 32, 32)), rng.normal(1060, 40, (2, 6, 32, 32))
    stored = np.where(rng.random(air.shape) < 0.5, air, tissue)[0].clip(0).astype(int)
    slices = make_slices(stored, RescaleSlope=None, RescaleIntercept=None)
    (source,) = find_inputs(save_slices(tmp_path / "ct", slices), OUTPUT).scans
    with pytest.raises(InputError, match=r"no rescale intercept.*stored values"):
        read_input(source)


def test_a_ct_of_many_frames_in_a_file_is_named_and_not_taken_for_a_localizer(
    tmp_path, write_series
):
    write_series(tmp_path / "ct")
    folder = write_series(tmp_path / "enhanced", "1.2.6", np.zeros((1, 8, 8), np.int16))
    enhanced = pydicom.dcmread(folder / "0.dcm")
    enhanced.NumberOfFrames = 40
    enhanced.save_as(folder / "0.dcm")
    found = find_inputs(tmp_path, OUTPUT)
    assert [s.name for s in found.scans] == ["ct"]
    (error,) = map(str, found.errors)
    assert error.startswith(str(folder)) and "CT of 40 frames in one file" in error


def test_a_series_in_parts_is_not_told_to_lose_one(tmp_path, write_series):
    for number, path in enumerate(write_series(tmp_path / "a").iterdir()):
        if number % 2:
            (tmp_path / "b").mkdir(exist_ok=True)
            path.rename(tmp_path / "b" / path.name)
    (error,) = find_inputs(tmp_path, OUTPUT).errors
    assert str(error).endswith("put all of them into one folder")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"caf\xe9.nii.gz", "caf\\xe9.nii.gz: its name is not UTF-8"),
        (b"two\nlines.nii.gz", "two\\nlines.nii.gz: its name has a control character"),
        (b"x" * 240 + b".nii.gz", "its name has 240 bytes"),
        ("é".encode() * 120 + b".mha", "its name has 240 bytes"),
    ],
)
def test_names_that_results_cannot_have_are_named_and_cost_no_other(tmp_path, name, said):
    good = write_file(tmp_path / "good.nii.gz")
    bad = tmp_path / os.fsdecode(name)
    bad.write_bytes(good.read_bytes())
    found = find_inputs(tmp_path, OUTPUT)
    assert [source.name for source in found.scans] == ["good"]
    (error,) = map(str, found.errors)
    assert said in error and "rename it" in error and "\n" not in error
    assert error.encode()  # it can be printed
    if len(name) < 100:
        with pytest.raises(InputError, match="rename it"):
            find_inputs(bad, OUTPUT)
        with pytest.raises(InputError, match="rename it"):
            find_inputs(good, bad)


def test_a_folder_of_dicom_whose_name_is_not_utf8(tmp_path, write_series):
    write_series(tmp_path / "good", "1.2.1")
    bad = write_series(tmp_path / "bad", "1.2.2")
    bad.rename(tmp_path / os.fsdecode(b"caf\xe9"))  # SimpleITK cannot write there
    found = find_inputs(tmp_path, OUTPUT)
    assert [source.name for source in found.scans] == ["good"]
    (error,) = map(str, found.errors)
    assert "caf\\xe9" in error and "not UTF-8" in error


@pytest.mark.parametrize(
    "name", ["a scan.NII.gz", "-a.Nii.Gz", "ÄÖ ü.NRRD", "a.b.c.MhA", "#'\"$.nii"]
)
def test_names_in_any_case_and_with_any_letters_are_read(tmp_path, name):
    suffix = pathlib.Path(name).suffix.lower().replace(".gz", ".nii.gz")
    good = write_file(tmp_path / f"good{suffix}")
    good.rename(tmp_path / name)
    (source,) = find_inputs(tmp_path / name, OUTPUT).scans
    assert name.startswith(source.name) and source.name.lower() not in ("", name.lower())
    assert read_input(source).hu.shape == (2, 2, 2)


def test_links_are_read_and_broken_ones_named(tmp_path):
    store = tmp_path / "store"
    write_file(store / "a.nii.gz").rename(store / "key")  # as git-annex and DVC store it
    farm = tmp_path / "farm"
    farm.mkdir()
    (farm / "a.nii.gz").symlink_to("../store/key")
    (farm / "b.nii.gz").symlink_to("../store/gone")
    found = find_inputs(farm, OUTPUT)
    one, broken = found.scans
    assert read_input(one).hu.shape == (2, 2, 2)
    with pytest.raises(InputError, match=r"b\.nii\.gz: is a broken link, to \.\./store/gone"):
        read_input(broken)
    assert fingerprint(one) and fingerprint(broken) is None


def test_a_pair_is_left_out_and_said(tmp_path):
    write_file(tmp_path / "good.nii.gz")
    for name in ("a.hdr", "a.img"):
        (tmp_path / name).write_bytes(b"x" * 348)
    assert "2 files of ANALYZE or NIfTI pairs" in find_inputs(tmp_path, OUTPUT).left_out
    (source,) = find_inputs(tmp_path / "a.img", OUTPUT).scans
    with pytest.raises(InputError, match="half of an ANALYZE or NIfTI pair"):
        read_input(source)


def test_a_fingerprint_knows_of_detached_voxels(tmp_path):
    path = write_file(tmp_path / "a.nhdr")
    (source,) = find_inputs(path, OUTPUT).scans
    before = fingerprint(source)
    (data,) = (p for p in tmp_path.iterdir() if p != path)
    os.utime(data, ns=(1, 1))
    assert None is not before != fingerprint(source)


def test_results_are_no_input(tmp_path, write_series):
    write_series(tmp_path / "ct")
    write_series(tmp_path / "out" / "ct", "1.2.7")
    assert names(tmp_path, tmp_path / "out") == ["ct"]
    with pytest.raises(InputError, match="give another as --output"):
        find_inputs(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["missing.mhd", "empty"])
def test_nothing_to_read_is_one_error_that_names_it(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name):
        find_inputs(tmp_path / name, OUTPUT)


def test_a_series_and_a_file_are_read_alike(tmp_path, write_series, make_scan):
    hu, lungs, grid, _ = make_scan(0)
    write_image(tmp_path / "scan.nii.gz", hu, grid)
    write_series(tmp_path / "ct", "1.2.8", hu, grid)
    scans = {s.series_uid: read_input(s) for s in find_inputs(tmp_path, OUTPUT).scans}
    assert scans.keys() == {"scan", "1.2.8"}
    for scan in scans.values():
        np.testing.assert_array_equal(scan.hu, hu)
        np.testing.assert_allclose(scan.origin_mm, grid.origin_mm, atol=1e-4)
        overlap = (scan.lungs == lungs)[lungs > 0].mean()
        assert overlap > 0.8
