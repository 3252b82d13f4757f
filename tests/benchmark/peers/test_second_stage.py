"""Both stages as a system of the table."""

import json

import numpy as np
import pytest

from lung_unet.benchmark.peers.exchange import write_system
from lung_unet.benchmark.peers.second_stage import BOTH, write_both
from lung_unet.benchmark.peers.table import markdown, side_by_side
from lung_unet.evaluation.judge import SecondStage
from lung_unet.evaluation.split import evaluate_split


class Doubting:
    """Calls no mark a nodule."""

    def __call__(self, volume, centres_mm):
        return np.full(len(centres_mm), 0.1), np.full(len(centres_mm), 3.0)

    def attribution(self, volume, centre_mm):
        return np.zeros((8, 8, 8), np.int16), np.zeros((8, 8, 8), np.float32)


def test_both_stages_are_compared_by_their_own_froc(config, dataset, oracle, tmp_path):
    second = SecondStage(Doubting(), 1.0, True, {"step": 3})
    members = [{"step": 7}]
    metrics = evaluate_split(oracle(), config, dataset, "test", tmp_path, members, second)
    write_system(tmp_path, "ours", {"train": 60.0}, iterations=3)
    write_both(tmp_path, second, dataset)
    comparison = side_by_side(tmp_path / BOTH, [tmp_path])
    both, alone = comparison["systems"]
    assert both["name"] == "ours, both stages" and alone["name"] == "ours"
    assert both["metrics"]["cpm"] == metrics["second_stage"]["cpm"]
    gain = metrics["second_stage"]["cpm_gain"]
    assert alone["ours_less_this"]["cpm"]["difference"] == pytest.approx(gain)
    assert alone["ours_less_this"]["nodule_dice"]["difference"] == 0
    assert "ours, both stages" in markdown(comparison, 1)
    marks = [
        json.loads(path.read_text())["result"]["marks"]
        for path in (tmp_path / BOTH / "evaluation" / "test").glob("*.json")
    ]
    assert marks and all(score == pytest.approx(0.1) for own in marks for *_, score in own)
