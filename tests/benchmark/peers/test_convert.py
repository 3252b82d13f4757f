"""Scans for a peer: their own voxels and geometry, the split, the truth that is scored against."""

import dataclasses
import json

import numpy as np
import pytest

from lung_unet.benchmark.peers.convert import convert, label_of, near_lungs
from lung_unet.benchmark.peers.exchange import (
    DATASET,
    image_path,
    label_path,
    read_splits,
    scored_images,
)
from lung_unet.data.images import read_image
from lung_unet.data.scan import Finding, Grid, Scan
from lung_unet.data.source import open_source
from lung_unet.errors import InputError
from lung_unet.evaluation.voxel import truth_mask


@pytest.fixture
def raw(luna16, dataset, config, tmp_path):
    convert(open_source(luna16), dataset, config.data, tmp_path / "raw")
    return tmp_path / "raw"


def test_images_and_labels_are_the_source_s_own_voxels_near_the_lungs(raw, luna16, dataset):
    source = open_source(luna16)
    for split in ("train", "validation", "test"):
        for entry in dataset.scans(split):
            uid = entry["series_uid"]
            scan = source.read_matched(uid)[0]
            path = image_path(raw, uid, split == "test")
            (array, found), near = read_image(path), near_lungs(scan, dataset)
            assert np.array_equal(array, near.hu)
            wanted = near.grid
            for corner in (np.zeros(3), wanted.shape):
                np.testing.assert_allclose(found.to_world(corner), wanted.to_world(corner))
            if split != "test":
                label = read_image(label_path(raw, uid))[0]
                assert label.any()
                truth = truth_mask(scan.grid.shape, scan.findings, 2)
                truth = near_lungs(dataclasses.replace(scan, hu=truth), dataset).hu
                assert np.array_equal(label == 1, truth)


def test_a_peer_is_told_our_split_and_never_a_test_label(raw, dataset):
    splits = read_splits(raw)
    for split, uids in splits.items():
        assert sorted(uids) == sorted(e["series_uid"] for e in dataset.scans(split))
    assert scored_images(raw).keys() == {*splits["validation"], *splits["test"]}
    labels = {path.name for path in (raw / DATASET / "labelsTr").iterdir()}
    assert labels == {f"{uid}.nii.gz" for uid in (*splits["train"], *splits["validation"])}
    description = json.loads((raw / DATASET / "dataset.json").read_text(encoding="utf-8"))
    assert description["numTraining"] == len(labels) == len(splits["train"]) + 1
    assert max(description["labels"], key=description["labels"].get) == "ignore"


def test_what_no_metric_counts_is_ignored_and_too_few_readers_are_background():
    grid = Grid((4, 4, 4), np.ones(3), np.zeros(3))
    bits = np.zeros((2, 2, 2), np.uint8)
    bits[0], bits[1] = 0b0111, 0b0001
    nodule = Finding(np.ones(3), 2.0, 3, True, np.zeros(3, int), bits)
    faint = dataclasses.replace(nodule, included=False, low=np.array([1, 1, 1]))
    scan = Scan("1", grid, np.zeros(grid.shape, np.int16), np.zeros(grid.shape, np.uint8),
                findings=(nodule, faint))  # fmt: skip
    label = label_of(scan, readers=2)
    assert (label[0, :2, :2] == 1).all()
    assert (label[1, :2, :2] == 0).all()  # a nodule that counts is not ignored
    assert label[1, 2, 2] == 2 and label[2, 1, 1] == 2 and np.count_nonzero(label == 2) == 7


def test_it_is_done_once_and_anew_for_another_truth(raw, luna16, dataset, config):
    path = label_path(raw, dataset.scans("train")[0]["series_uid"])
    path.write_text("as it was left")
    convert(open_source(luna16), dataset, config.data, raw)
    assert path.read_text(encoding="utf-8") == "as it was left"
    config.data.consensus = 4
    convert(open_source(luna16), dataset, config.data, raw)
    assert read_image(path)[0].any()


def test_a_scan_that_changed_since_is_refused(luna16, dataset, config, tmp_path):
    for entry in dataset.manifest["scans"]:
        entry["made_from"]["input"] = "other"
    with pytest.raises(InputError, match="is not as it was prepared"):
        convert(open_source(luna16), dataset, config.data, tmp_path / "raw")
