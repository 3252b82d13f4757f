"""A folder of DICOM is read as TCIA ships LIDC-IDRI, and nothing of the patient leaves it."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import hypothesis
import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from hypothesis import strategies as st

from lung_unet.data.dicom import Dicom
from lung_unet.data.dicom_series import series_in
from lung_unet.data.manifest import SPLITS, Dataset
from lung_unet.data.patients import patient_key, subset_of
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def folder(lidc_idri, tmp_path) -> pathlib.Path:
    """A copy of the folder `lidc_idri`, to change."""
    return pathlib.Path(shutil.copytree(lidc_idri, tmp_path / "lidc_idri"))


def refused(folder: pathlib.Path, saying: str) -> None:
    with pytest.raises(InputError, match=saying) as error:
        Dicom(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def files_of(folder: pathlib.Path, uid: str) -> list[pathlib.Path]:
    return sorted(folder.glob(f"*/*/{uid}/*.dcm"))


# --- What is read ---------------------------------------------------------------------------------


def test_scans_are_as_they_were_written(lidc_idri, make_scan):
    source = Dicom(lidc_idri)
    assert list(source.subsets) == [f"1.2.{i}" for i in range(5)]
    assert source.absent == []
    for number, uid in enumerate(source.subsets):
        hu, lungs, grid, centre = make_scan(number)
        scan, matches = source.read_matched(uid)
        np.testing.assert_array_equal(scan.hu, hu)
        assert scan.series_uid == uid
        assert scan.grid.to_json() == grid.to_json()
        assert ((scan.lungs > 0) == (lungs > 0)).mean() > 0.98
        (finding,) = scan.findings
        assert (finding.readers, finding.included, matches) == (4, True, [])
        assert np.linalg.norm(finding.centre_mm - centre) < 5  # its voxel
        assert (scan.votes > 0).sum() == 3 * 7 * 7  # within the outline of 9 × 9, in 3 slices


def test_fewer_readers_count_if_they_are_enough(folder, write_reading, make_scan):
    path = next(folder.glob("*/*/1.2.0/07.xml"))
    text = path.read_text(encoding="utf-8")
    sessions = re.findall(r"<readingSession>.*?</readingSession>", text, re.DOTALL)
    for session in sessions[2:]:
        text = text.replace(session, "<readingSession/>", 1)
    path.write_text(text)
    for least, included in ((2, True), (3, False)):
        (finding,) = Dicom(folder, min_readers=least).read_matched("1.2.0")[0].findings
        assert finding.included == included
        assert finding.readers <= 2


def test_a_real_series(real_data, tmp_path, write_reading):
    shutil.copytree(real_data / "chest_ct_dicom", tmp_path / "patient" / "study")
    (uid,) = series_in((real_data / "chest_ct_dicom").iterdir())
    shape, spacing_mm = (64, 512, 512), np.array([5, 0.841796875, 0.841796875])
    grid = Grid(shape, spacing_mm, np.array([-439, -93.0631599, -228.036842]))
    write_reading(tmp_path / "xml" / "1.xml", uid, grid, (30, 256, 150))
    source = Dicom(tmp_path)
    scan, _ = source.read_matched(uid)
    assert scan.grid.shape == shape
    np.testing.assert_allclose(scan.spacing_mm, spacing_mm, rtol=1e-6)
    np.testing.assert_allclose(scan.origin_mm, grid.origin_mm)
    litres = np.isin(scan.lungs, (3, 4)).sum() * np.prod(spacing_mm) * 1e-6
    assert 2 < litres < 8
    assert scan.findings[0].box == (slice(29, 32), slice(253, 260), slice(147, 154))
    assert source.patients[uid] == patient_key("Lung_Dx-A0001")


def test_readings_in_a_folder_of_their_own(folder, tmp_path):
    expected = Dicom(folder).read_matched("1.2.1")[0].votes
    for number, path in enumerate(folder.rglob("*.xml")):
        path.rename(tmp_path / f"{number}.xml")
    refused(folder, "no reader's XML names")
    source = Dicom(folder, tmp_path)
    np.testing.assert_array_equal(source.read_matched("1.2.1")[0].votes, expected)
    with pytest.raises(InputError, match="no such folder; give the folder of LIDC-IDRI's XML"):
        Dicom(folder, tmp_path / "none")


def test_several_series_in_one_folder(folder, make_scan):
    for number in (0, 1):
        for path in files_of(folder, f"1.2.{number}"):
            path.rename(folder / f"{number}-{path.name}")
    source = Dicom(folder)
    assert list(source.subsets) == [f"1.2.{i}" for i in range(5)]
    for number in (0, 1):
        hu = source.read_matched(f"1.2.{number}")[0].hu
        np.testing.assert_array_equal(hu, make_scan(number)[0])


def test_the_content_changes_with_each_input_and_no_other(folder):
    seen = {Dicom(folder).scan_files("1.2.0").content()}
    (xml,) = folder.glob("*/*/1.2.0/*.xml")
    for path in (*files_of(folder, "1.2.0")[:2], xml):
        path.write_bytes(path.read_bytes() + b"\n")
        found = Dicom(folder).scan_files("1.2.0").content()
        assert found not in seen
        seen.add(found)
    path = files_of(folder, "1.2.1")[0]
    path.write_bytes(path.read_bytes() + b"\n")
    assert Dicom(folder).scan_files("1.2.0").content() in seen


# --- What is left out, and what is refused --------------------------------------------------------


def test_what_cannot_be_used_is_left_out_and_told(folder):
    files_of(folder, "1.2.0")[3].unlink()
    next(folder.glob("*/*/1.2.1/*.xml")).unlink()
    source = Dicom(folder)
    assert list(source.subsets) == ["1.2.2", "1.2.3", "1.2.4"]
    gap, unread, other = source.notes
    assert re.fullmatch(r"series 1\.2\.0 is left out: slices are missing between z .* mm", gap)
    assert unread == "1 CTs that no reader's XML names are left out: 1.2.1"
    assert other == "series that are no CT are left out: 1 DX series"
    for uid in ("1.2.0", "1.2.1", "1.2.9"):
        with pytest.raises(InputError, match=rf"series {re.escape(uid)} is not in it, or cannot"):
            source.read_matched(uid)


def test_what_is_no_image_is_left_out(folder):
    """A structured report of the same folder: an object without pixels."""
    path = files_of(folder, "1.2.0")[0]
    data = path.read_bytes()
    report = data[: data.index(b"\x28\0\2\0")].replace(b"CT", b"SR")
    path.with_name("report.dcm").write_bytes(report.replace(b"1.2.0\0", b"1.2.8\0"))
    assert Dicom(folder).notes == ["series that are no CT are left out: 1 DX series, 1 SR series"]


def test_series_that_are_not_on_disk_are_counted(folder):
    for path in files_of(folder, "1.2.2"):
        path.unlink()
    source = Dicom(folder)
    assert source.absent == ["1.2.2"]
    assert "1 of the series that were read are not on disk" in source.notes


def test_nothing_that_can_be_used(folder, tmp_path):
    for path in folder.rglob("*.dcm"):
        if "1.2.9" not in str(path) and path.parent.name != "x":
            path.unlink()
    refused(folder, r"holds no CT that can be used \(.*1 DX.*--lidc_xml")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no DICOM series in it")


def test_a_damaged_file_is_named_and_ends_no_other_scan(folder, make_scan):
    path = files_of(folder, "1.2.0")[4]
    path.write_bytes(path.read_bytes()[:-100])
    source = Dicom(folder)
    with pytest.raises(InputError, match=rf"1\.2\.0/{path.name}: .*copy it again"):
        source.read_matched("1.2.0")
    np.testing.assert_array_equal(source.read_matched("1.2.1")[0].hu, make_scan(1)[0])
    assert "damaged" not in " ".join(source.notes)


def test_a_damaged_file_of_no_known_series_is_an_error_of_its_folders_series(folder):
    path = files_of(folder, "1.2.0")[4]
    path.write_bytes(b"\0" * 200)
    source = Dicom(folder)
    assert "1.2.0" in source.files
    with pytest.raises(InputError, match=path.name):
        source.read_matched("1.2.0")
    source.read_matched("1.2.1")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "x.dcm").write_bytes(b"\0" * 200)
    assert "1 damaged DICOM files more are left out" in Dicom(folder).notes


def test_a_series_in_two_folders(folder):
    shutil.copytree(files_of(folder, "1.2.0")[0].parent, folder / "copy")
    refused(folder, r"series 1\.2\.0 is also in .*; remove one")


def test_values_that_are_no_hu(tmp_path, write_series, write_reading):
    grid = Grid((4, 16, 16), np.array([1.0, 0.5, 0.5]), np.array([5.0, -20.0, -10.0]))
    write_series(tmp_path, hu=np.full(grid.shape, 100, np.int16), grid=grid)
    write_reading(tmp_path / "1.xml", "1.2.3.4", grid)
    with pytest.raises(InputError, match="give a chest CT in HU"):
        Dicom(tmp_path).read_matched("1.2.3.4")


# --- Patients -------------------------------------------------------------------------------------


def test_a_patient_is_in_one_subset_whatever_else_is_there(folder):
    source = Dicom(folder)
    assert source.patients["1.2.0"] == source.patients["1.2.4"] == patient_key("MRN-774900")
    assert source.subsets == {uid: subset_of(key) for uid, key in source.patients.items()}
    before = source.subsets
    shutil.rmtree(folder / "Quixote-1")
    after = Dicom(folder).subsets
    assert after.items() <= before.items()


def test_without_a_patient_id_the_study_is_the_patient(tmp_path, write_series, write_reading):
    grid = Grid((4, 16, 16), np.array([1.0, 0.5, 0.5]), np.array([5.0, -20.0, -10.0]))
    for uid, study in (("1.2.1", "1.3"), ("1.2.2", "1.3"), ("1.2.3", "1.4")):
        write_series(tmp_path / uid, uid, tags={"0010|0020": "", "0020|000d": study})
        write_reading(tmp_path / uid / "1.xml", uid, grid)
    patients = Dicom(tmp_path).patients
    assert patients["1.2.1"] == patients["1.2.2"] != patients["1.2.3"]


def test_patients_csv_joins_what_patient_ids_do_not(folder):
    source = Dicom(folder)
    other = next(uid for uid in source.files if source.patients[uid] != source.patients["1.2.0"])
    (folder / "patients.csv").write_text(f"seriesuid,patient\n1.2.0,P\n{other},P\n9.9,P\n")
    joined = Dicom(folder)
    assert joined.patients["1.2.0"] == joined.patients[other] == patient_key("P")
    assert joined.subsets["1.2.0"] == joined.subsets[other] == subset_of(patient_key("P"))
    assert joined.patients.keys() == source.patients.keys()


@pytest.fixture(scope="module")
def command(lidc_idri, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """The folder that the command prepared, and what it printed."""
    out = tmp_path_factory.mktemp("command") / "out"
    flags = ["spacing_mm=4", "margin_mm=8", "block=(20,20,20)", "nodule_blocks=2"]
    done = subprocess.run(
        [sys.executable, "-m", "lung_unet.prepare", f"--luna16={lidc_idri}", f"--out={out}",
         *(f"--config.data.{flag}" for flag in flags)],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done.stdout + done.stderr


def test_nothing_of_the_patient_is_written(command, lidc_idri, personal):
    out, told = command
    written = told.replace(str(lidc_idri), "").encode()
    for path in sorted(out.rglob("*")):
        written += str(path.relative_to(out)).encode()
        if path.is_file():
            written += path.read_bytes()
        if path.suffix == ".arrayrecord":  # its records are compressed in it
            source = ArrayRecordDataSource([str(path)])
            written += b"".join(source[i] for i in range(len(source)))
    assert b'"series_uid":"1.2.0"' in written  # so that this would find them
    assert b"1 DX" in written
    secrets = [*personal.values(), "MRN-774", "Quixote", "Planted", "planted", "1.2.777"]
    assert [s for s in secrets if s.encode() in written] == []


def test_prepared_patients_are_in_one_split(command):
    out, _ = command
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"] == "DICOM"
    assert manifest["notes"] == ["series that are no CT are left out: 1 DX series"]
    assert manifest["counts"]["scans_with_outlines"] == manifest["counts"]["nodules"] == 5
    for fold in range(4):
        dataset = Dataset(out, fold)
        patients = {s: {e["patient"] for e in dataset.scans(s)} for s in SPLITS}
        assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 4


# --- Fuzz -----------------------------------------------------------------------------------------

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "flip", "cut", "remove", "copy"]),
        st.integers(0, 3),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, write_series, write_reading) -> dict[str, bytes]:
    """The files of a series of four slices, and its reading."""
    folder = tmp_path_factory.mktemp("tiny")
    grid = Grid((4, 16, 16), np.array([1.0, 0.5, 0.5]), np.array([5.0, -20.0, -10.0]))
    write_series(folder)
    write_reading(folder / "reading.xml", "1.2.3.4", grid, (2, 8, 8))
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@hypothesis.given(CHANGES)
@hypothesis.settings(derandomize=True, deadline=None, max_examples=500, database=None)
def test_any_damage_gives_a_scan_or_an_error(tiny, changes):
    files = dict(tiny)
    for kind, number, where, change in changes:
        name = f"{number}.dcm"
        data = bytearray(files.get(name, b""))
        at = 128 + int(where * (len(data) - 128)) if len(data) > 128 else 0
        if kind == "remove":
            files.pop(name, None)
        elif kind == "copy":
            files[f"copy{number}.dcm"] = bytes(data)
        elif kind == "cut":
            files[name] = bytes(data[:at])
        elif data:
            data[at] ^= change
            files[name] = bytes(data)
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        try:
            source = Dicom(folder)
            scans = [source.read_matched(uid)[0] for uid in source.subsets]
        except InputError as error:
            assert "\n" not in str(error)
            assert root in str(error)
            return
    for scan in scans:
        assert scan.hu.dtype == np.int16
        assert scan.hu.shape == scan.lungs.shape == scan.grid.shape
