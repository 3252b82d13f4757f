"""No scan is in two splits; a dataset that is not whole says what is missing."""

import itertools
import json
import pathlib
import shutil

import hypothesis
import pytest
from hypothesis import strategies as st

from lung_unet.data.luna16 import Luna16
from lung_unet.data.manifest import (
    SPLITS,
    Dataset,
    split_subsets,
    write_manifest,
)
from lung_unet.errors import InputError


@pytest.fixture
def done(prepared, tmp_path) -> pathlib.Path:
    """A copy of the folder `prepared`, to change."""
    return pathlib.Path(shutil.copytree(prepared, tmp_path / "done"))


def refused(folder: pathlib.Path, saying: str, fold: int = 0) -> None:
    with pytest.raises(InputError, match=saying) as error:
        Dataset(folder, fold)
    assert "\n" not in str(error.value)


@hypothesis.given(st.lists(st.integers(0, 9), min_size=3, max_size=40))
@hypothesis.settings(derandomize=True, deadline=None)
def test_splits_are_disjoint_and_folds_test_each_subset_once(subsets):
    present = sorted(set(subsets))
    if len(present) < 3:
        with pytest.raises(InputError, match="at least three"):
            split_subsets(subsets, 0)
        return
    tested, validated = [], []
    for fold in range(len(present)):
        splits = split_subsets(subsets, fold)
        assert tuple(splits) == SPLITS
        assert sorted(itertools.chain(*splits.values())) == present  # each subset in one split
        assert all(splits.values())
        tested += splits["test"]
        validated += splits["validation"]
    assert sorted(tested) == sorted(validated) == present


def test_what_another_version_prepared_is_refused(done):
    path = done / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["settings"]["format"] -= 1
    path.write_text(json.dumps(manifest))
    refused(done, "prepared by another version .*prepare its scans again")


@pytest.mark.parametrize("fold", [-1, 4, 99])
def test_no_such_fold(prepared, fold):
    refused(prepared, "config.data.fold = .*choose 0 to 3", fold)


def test_luna16_s_ten_folds():
    splits = split_subsets(list(range(10)), 9)
    assert splits == {"train": [1, 2, 3, 4, 5, 6, 7, 8], "validation": [0], "test": [9]}


def test_every_fold_of_a_dataset(prepared):
    everything = {f"1.2.{i}" for i in range(4)}
    tested = []
    for fold in range(4):
        dataset = Dataset(prepared, fold)
        uids = {split: {e["series_uid"] for e in dataset.scans(split)} for split in SPLITS}
        assert set.union(*uids.values()) == everything
        assert sum(map(len, uids.values())) == len(everything)
        tested += uids["test"]
        for split in SPLITS:
            for kind in ("nodule", "background", "scan"):
                paths = [pathlib.Path(p) for p in dataset.shards(split, kind)]
                assert {p.name for p in paths} == {f"{u}.{kind}.arrayrecord" for u in uids[split]}
                assert all(p.is_file() for p in paths)
    assert sorted(tested) == sorted(everything)


def test_the_manifest_records_the_folds_and_counts(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["folds"] == [split_subsets([0, 1, 2, 3], k) for k in range(4)]
    counts = manifest["counts"]
    assert (counts["scans"], counts["nodules"], counts["spheres"], counts["scan"]) == (4, 4, 4, 4)
    assert counts["nodule"] == 8
    assert counts["bytes"] == sum(p.stat().st_size for p in prepared.glob("*/*.arrayrecord"))


def test_the_order_in_which_scans_were_finished_does_not_matter(
    prepared, luna16, settings, tmp_path
):
    entries = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))["scans"]
    for order in (entries, entries[::-1], entries[2:] + entries[:2]):
        write_manifest(tmp_path, Luna16(luna16), settings, order)
        assert (tmp_path / "manifest.json").read_bytes() == (
            prepared / "manifest.json"
        ).read_bytes()


def test_shards_without_records_are_not_read(done):
    manifest = json.loads((done / "manifest.json").read_text(encoding="utf-8"))
    manifest["scans"][2]["files"]["nodule"]["records"] = 0
    (done / "manifest.json").write_text(json.dumps(manifest))
    (path,) = Dataset(done).shards("train", "nodule")
    assert path.endswith("1.2.3.nodule.arrayrecord")


def test_scans_in_fewer_than_three_subsets(done):
    manifest = json.loads((done / "manifest.json").read_text(encoding="utf-8"))
    for entries in (manifest["scans"][:2], manifest["scans"][:0]):
        (done / "manifest.json").write_text(json.dumps(manifest | {"scans": entries}))
        refused(done, "train, validation and test need scans in at least three of subset0..9")


@pytest.mark.parametrize(
    ("patients", "saying"),
    [
        (("P", "Q", "R", "P"), r"1\.2\.0 and 1\.2\.3 are of the same patient, but in two splits"),
        (("P", "P", "P", "P"), r"its 4 scans are of 1 patient\(s\)"),
        (("P", "Q", "Q", "P"), r"its 4 scans are of 2 patient\(s\)"),
        (("P", None, None, "P"), "but in two splits"),
    ],
)
def test_a_patient_in_two_splits_is_refused_as_no_prepare_leaves_it(done, patients, saying):
    manifest = json.loads((done / "manifest.json").read_text(encoding="utf-8"))
    for entry, patient in zip(manifest["scans"], patients, strict=True):
        entry["patient"] = patient
    (done / "manifest.json").write_text(json.dumps(manifest))
    refused(done, saying)
    assert len(Dataset(done, None).scans("all")) == 4  # as a whole, there is no split


def test_a_scan_under_two_names_in_two_splits_is_refused(done):
    manifest = json.loads((done / "manifest.json").read_text(encoding="utf-8"))
    first, *_, last = manifest["scans"]
    last["voxels"] = first["voxels"]
    (done / "manifest.json").write_text(json.dumps(manifest))
    refused(done, r"1\.2\.0 and 1\.2\.3 are the same voxels, but in two splits")


def test_a_patient_may_have_scans_in_two_subsets_of_one_split(done):
    manifest = json.loads((done / "manifest.json").read_text(encoding="utf-8"))
    for entry, patient in zip(manifest["scans"], "PQRR", strict=True):
        entry["patient"] = patient
    (done / "manifest.json").write_text(json.dumps(manifest))
    assert len(Dataset(done).scans("train")) == 2
    for fold in (1, 2, 3):
        refused(done, "but in two splits", fold)


def test_no_manifest(tmp_path):
    refused(tmp_path, "has no manifest.json; make it with python -m lung_unet.prepare")
    refused(tmp_path / "none", "has no manifest.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}", '{"settings": []}', "\x00"])
def test_a_broken_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    refused(tmp_path, "manifest.json: is broken")


def without(tree: dict, key: str) -> dict:
    return {k: v for k, v in tree.items() if k != key}


def test_a_manifest_without_any_of_its_keys(done):
    whole = json.loads((done / "manifest.json").read_text(encoding="utf-8"))
    entry = whole["scans"][1]
    shard = entry["files"]["scan"]
    entries = [without(entry, key) for key in ("series_uid", "subset", "files", "made_from")]
    files = [without(entry["files"], "scan")]
    files += [entry["files"] | {"scan": without(shard, key)} for key in shard]
    entries += [entry | {"files": f} for f in files]
    broken = [whole | {"scans": [whole["scans"][0], e, *whole["scans"][2:]]} for e in entries]
    broken += [without(whole, key) for key in ("settings", "scans", "counts")]
    for key in ("spacing_mm", "margin_mm", "block", "nodule_blocks"):
        broken.append(whole | {"settings": without(whole["settings"], key)})
    for manifest in broken:
        (done / "manifest.json").write_text(json.dumps(manifest))
        refused(done, "manifest.json: is broken")


@pytest.mark.parametrize("kind", ["nodule", "background", "scan"])
def test_a_shard_that_is_missing_or_cut_short_is_named(done, kind):
    path = done / "subset2" / f"1.2.2.{kind}.arrayrecord"
    path.write_bytes(path.read_bytes()[:-1])
    refused(
        done, rf"subset2/1\.2\.2\.{kind}\.arrayrecord: has \d+ bytes, \d+ expected; run prepare"
    )
    path.unlink()
    refused(done, rf"subset2/1\.2\.2\.{kind}\.arrayrecord: is missing")


def test_the_identity_goes_by_the_content(prepared, done):
    assert Dataset(done).identity == Dataset(prepared, 1).identity  # not by folder or fold
    manifest = json.loads((done / "manifest.json").read_text(encoding="utf-8"))
    changes = [
        ("settings", manifest["settings"] | {"spacing_mm": 2.0}),
        ("scans", manifest["scans"][1:]),
    ]
    for key, value in changes:
        (done / "manifest.json").write_text(json.dumps(manifest | {key: value}))
        assert Dataset(done).identity != Dataset(prepared).identity
