"""LUNA16 folders as one, each a split."""

import shutil

import numpy as np
import pytest

from lung_unet.data.combined import combine
from lung_unet.data.luna16 import Luna16
from lung_unet.data.manifest import split_subsets
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
