"""A peer's probabilities on the scans' own grids, scored as our own are."""

import dataclasses

import numpy as np
import pytest

from lung_unet.benchmark.peers.convert import near_lungs
from lung_unet.benchmark.peers.exchange import (
    read_probability,
    write_probability,
    write_system,
)
from lung_unet.benchmark.peers.score import StoredPredictor, score
from lung_unet.benchmark.peers.table import markdown, side_by_side
from lung_unet.data.shard_reader import scan_records
from lung_unet.data.source import open_source
from lung_unet.errors import InputError
from lung_unet.evaluation.voxel import truth_mask


@pytest.fixture
def peer(luna16, dataset, tmp_path):
    """peer(name, shift=0): the folder of a system that predicts the truth, moved by so many voxels,
    on the validation and test scans."""
    source = open_source(luna16)

    def peer(name, shift=0):
        for split in ("validation", "test"):
            for entry in dataset.scans(split):
                scan = source.read_matched(entry["series_uid"])[0]
                truth = truth_mask(scan.grid.shape, scan.findings, 2)
                truth = near_lungs(dataclasses.replace(scan, hu=truth), dataset).hu
                truth = np.roll(truth, shift, 2) * np.float32(0.95)
                write_probability(tmp_path / name, entry["series_uid"], truth)
        seconds = {"prepare": 1.0, "train": 60.0}
        write_system(tmp_path / name, name, seconds, iterations=3, patch=[8, 8, 8])
        return tmp_path / name

    return peer


def test_the_truth_has_dice_one_as_nothing_is_resampled(peer, luna16, dataset, config):
    metrics = score(peer("perfect"), open_source(luna16), dataset, config)
    assert metrics["nodule_dice"] == metrics["dice"] == metrics["cpm"] == 1
    assert metrics["false_positives_per_scan"] == 0
    report = (peer("perfect") / "report.html").read_text(encoding="utf-8")
    assert "perfect" in report and "8 8 8" in report and "Versions" not in report


def test_ours_and_a_peer_are_compared_on_the_same_scans(peer, luna16, dataset, config):
    source = open_source(luna16)
    perfect, moved = peer("perfect"), peer("moved", shift=1)
    for folder in (perfect, moved):
        score(folder, source, dataset, config)
    comparison = side_by_side(perfect, [moved])
    ours, other = comparison["systems"]
    dice = other["metrics"]["nodule_dice"]
    assert ours["metrics"]["nodule_dice"] == 1 and 0 < dice < 1
    assert other["ours_less_this"]["nodule_dice"]["difference"] == pytest.approx(1 - dice)
    text = markdown(comparison, 30)
    assert text.startswith("1 test scans with 1 nodules, 30 minutes")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1 and len(rows) == 4
    assert f"{1 - dice:+.2f}" in rows[3] and "| 60 |" in rows[3]
    assert "not equal time" not in text
    assert "perfect trained for 120% of the minutes: not equal time" in markdown(comparison, 5 / 6)


def test_another_training_is_scored_anew(peer, luna16, dataset, config):
    source = open_source(luna16)
    assert score(peer("system"), source, dataset, config)["nodule_dice"] == 1
    again = peer("system", shift=3)
    assert score(again, source, dataset, config)["nodule_dice"] < 1


def test_a_volume_that_was_not_viewed_is_refused(peer, luna16, dataset):
    predictor = StoredPredictor(peer("peer"), open_source(luna16), dataset)
    record = scan_records(dataset, "test")[0]
    volume = predictor.view(record).volume
    assert predictor(volume.hu, volume.lungs).shape == volume.grid.shape
    with pytest.raises(ValueError, match="not of the record"):
        predictor(record.volume.hu, record.volume.lungs)


def test_files_that_are_no_probability_of_the_scan_are_refused(tmp_path):
    write_probability(tmp_path, "1", np.full((2, 3, 4), 0.5))
    assert read_probability(tmp_path, "1", (2, 3, 4)).dtype == np.float32
    with pytest.raises(InputError, match="image's grid"):
        read_probability(tmp_path, "1", (4, 3, 2))
    with pytest.raises(InputError, match="predict this scan again"):
        read_probability(tmp_path, "2", (2, 3, 4))
    for wrong in (1.5, -0.1, np.nan):
        write_probability(tmp_path, "1", np.full((2, 3, 4), wrong))
        with pytest.raises(InputError, match="no probability"):
            read_probability(tmp_path, "1", (2, 3, 4))
