"""Both stages as a system of the table."""

import json

import numpy as np
import pytest

from lung_unet.benchmark.peers.exchange import write_system
from lung_unet.benchmark.peers.second_stage import BOTH, score_both
from lung_unet.benchmark.peers.table import markdown, side_by_side
from lung_unet.evaluation.judge import SecondStage
from lung_unet.evaluation.operating_point import choose
from lung_unet.evaluation.resume import scored_split
from lung_unet.evaluation.split import evaluate_split


class Doubting:
    """Calls no mark a nodule."""

    def __call__(self, volume, centres_mm):
        return np.full(len(centres_mm), 0.1), np.full(len(centres_mm), 3.0)

    def attribution(self, volume, centre_mm):
        return np.zeros((8, 8, 8), np.int16), np.zeros((8, 8, 8), np.float32)


def test_both_stages_are_a_system_with_its_own_masks_and_marks(config, dataset, oracle, tmp_path):
    members, predictor, both = [{"step": 7}], oracle(), tmp_path / BOTH
    evaluate_split(predictor, config, dataset, "test", tmp_path, members)
    beside = members[0] | vars(choose(predictor, config, dataset, both, members))
    second = SecondStage(Doubting(), 1.0, True, {"step": 3}, 0.5, beside)
    metrics = evaluate_split(predictor, config, dataset, "test", both, members, second)
    score_both(both, second, dataset)
    for folder, name in ((tmp_path, "ours"), (both, "ours, both stages")):
        write_system(folder, name, {"train": 60.0}, iterations=3)
    ours, alone = side_by_side(both, [tmp_path])["systems"]
    assert ours["metrics"]["cpm"] == metrics["second_stage"]["cpm"]
    gain = metrics["second_stage"]["cpm_gain"]
    assert alone["ours_less_this"]["cpm"]["difference"] == pytest.approx(gain)
    # it doubts the nodule, so that the mask is empty, and the segmentation's own is not
    assert ours["metrics"]["nodule_dice"] == 0 < alone["metrics"]["nodule_dice"]
    assert "ours, both stages" in markdown(side_by_side(both, [tmp_path]), 1)
    scored, _ = scored_split(both, "test")
    marks = [scan["marks"] for scan in scored.values()]
    assert marks and all(score == pytest.approx(0.1) for own in marks for *_, score in own)
    stored = json.loads((both / "metrics.json").read_text(encoding="utf-8"))
    assert stored["sensitivity"] == metrics["second_stage"]["sensitivity"]
    assert set(stored["intervals"]["sensitivity"].values()) == {None}
