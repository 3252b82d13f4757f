"""LUNA16 folders as one, each a split."""

import shutil

import numpy as np
import pytest

from lung_unet.data.combined import combine, combine_patients
from lung_unet.data.luna16 import Luna16
from lung_unet.data.manifest import split_subsets
from lung_unet.data.patients import patient_key
from lung_unet.errors import InputError


@pytest.fixture
def folders(luna16, tmp_path):
    """The folder `luna16`, a scan of it in each of four folders, all in subset5."""
    folders = []
    for number in range(4):
        folder = tmp_path / f"set{number}"
        shutil.copytree(luna16 / f"subset{number}", folder / "subset5")
        shutil.copytree(luna16 / "seg-lungs-LUNA16", folder / "seg-lungs-LUNA16")
        for table in luna16.glob("annotations*.csv"):
            shutil.copy(table, folder)
        folders.append(folder)
    return folders


def test_scans_are_as_they_were_and_in_the_split_of_their_folder(folders, luna16, tmp_path):
    whole = Luna16(luna16)
    for _ in range(2):  # again over what is there
        splits = {"train": folders[:2], "validation": folders[2:3], "test": folders[3:]}
        combine(splits, tmp_path / "out")
    combined = Luna16(tmp_path / "out")
    subsets = split_subsets(list(combined.subsets.values()), 0)
    for split, uids in {
        "train": {"1.2.0", "1.2.1"}, "validation": {"1.2.2"}, "test": {"1.2.3"}
    }.items():  # fmt: skip
        assert {u for u, s in combined.subsets.items() if s in subsets[split]} == uids
    for uid in whole.subsets:
        scan, wanted = combined.read(uid), whole.read(uid)
        assert np.array_equal(scan.hu, wanted.hu) and np.array_equal(scan.lungs, wanted.lungs)
        assert np.array_equal(scan.votes, wanted.votes) and scan.votes.any()
        assert scan.lungs_source == wanted.lungs_source == "seg-lungs-LUNA16"


def test_outlines_come_of_a_folder_beside_the_scans_too(folders, luna16, write_reading, tmp_path):
    for uid in ("1.2.0", "1.2.3"):
        scan = Luna16(luna16).read(uid)
        voxel = np.rint(scan.grid.to_voxel(scan.findings[0].centre_mm)).astype(int)
        write_reading(tmp_path / "xml" / f"{uid}.xml", uid, scan.grid, voxel)
    splits = {"train": folders[:2], "validation": folders[2:3], "test": folders[3:]}
    combine(splits, tmp_path / "out", tmp_path / "xml")
    assert Luna16(tmp_path / "out").outlines.keys() == {"1.2.0", "1.2.3"}
    combine(splits, tmp_path / "out")
    assert not Luna16(tmp_path / "out").outlines


def test_a_scan_or_a_patient_in_two_splits_is_refused(folders, tmp_path):
    splits = {"train": folders[:1], "validation": folders[:1], "test": folders[1:2]}
    with pytest.raises(InputError, match=r"series 1\.2\.0.*is also in"):
        combine(splits, tmp_path / "out")
    for folder, uid in zip(folders[:2], ("1.2.0", "1.2.1"), strict=True):
        (folder / "patients.csv").write_text(f"seriesuid,patient\n{uid},somebody\n")
    splits = {"train": folders[:1], "validation": folders[1:2], "test": folders[2:3]}
    with pytest.raises(InputError, match="or its patient, is also in"):
        combine(splits, tmp_path / "out")
    with pytest.raises(InputError, match="--test=DIR"):
        combine({"train": folders[:1], "validation": folders[1:2]}, tmp_path / "out")


def test_each_folder_of_a_patient_is_a_subset_and_each_fold_tests_on_the_next(folders, tmp_path):
    for number, folder in enumerate(folders):  # each lists its patient for scans of others too
        (folder / "patients.csv").write_text(f"seriesuid,patient\n1.2.{number},P{number}\n")
    combine_patients(folders, tmp_path / "out")
    combined = Luna16(tmp_path / "out")
    assert combined.subsets == {f"1.2.{number}": number for number in range(4)}
    assert combined.patients == {f"1.2.{n}": patient_key(f"P{n}") for n in range(4)}
    for fold in range(4):
        splits = split_subsets(list(combined.subsets.values()), fold)
        assert splits["test"] == [fold] and splits["validation"] == [(fold + 1) % 4]


def test_folders_that_are_not_of_different_patients_are_refused(folders, tmp_path, capsys):
    combine_patients(folders, tmp_path / "out")
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 4 and all("1 of its 1 scans name no patient" in line for line in told)
    for folder, number in zip(folders[1:], range(1, 4), strict=True):
        (folder / "patients.csv").write_text(f"seriesuid,patient\n1.2.{number},P{number % 2}\n")
    with pytest.raises(
        InputError, match=r"set3: series 1\.2\.3, or its patient, is also in .*set1"
    ):
        combine_patients(folders, tmp_path / "out")
    with pytest.raises(InputError, match=r"1\.2\.0 is also in"):
        combine_patients([*folders[:3], folders[0]], tmp_path / "out")
    for few in (folders[:2], folders * 3):
        with pytest.raises(InputError, match=rf"--patients names {len(few)} folder"):
            combine_patients(few, tmp_path / "out")


def test_an_outline_implanted_into_scans_of_two_splits_is_refused(folders, tmp_path):
    for folder in (folders[0], folders[2]):
        (folder / "implants.csv").write_text("seriesuid,outline_seriesuid\n1.2.0,7.7\n")
    splits = {"train": folders[::2], "validation": folders[1:2], "test": folders[3:]}
    combine(splits, tmp_path / "out")
    with pytest.raises(InputError, match=r"outlines of series 7\.7 are also in"):
        combine_patients(folders, tmp_path / "out")


def test_a_patient_may_be_in_two_folders_of_one_split(folders, tmp_path):
    for number in range(2):
        (folders[number] / "patients.csv").write_text(f"seriesuid,patient\n1.2.{number},one\n")
    combine({"train": folders[:2], "validation": folders[2:3], "test": folders[3:]}, tmp_path / "o")
    assert len(set(Luna16(tmp_path / "o").patients.values())) == 1
