"""The end of a classifier's run: its weight is chosen, and a split of its candidates scored."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from lung_unet.data.manifest import Dataset
from lung_unet.errors import InputError
from lung_unet.evaluation import second_stage
from lung_unet.evaluation.collect import Collector
from lung_unet.evaluation.judge import SecondStage, identity_of, store
from lung_unet.evaluation.second_stage_report import WHY_NOT, why_no_auc
from lung_unet.files import write_text
from lung_unet.restore import restore_classifier
from lung_unet.workdir import identity


def evaluate_candidates(
    workdir: pathlib.Path, config: ConfigDict, dataset: Dataset, split: str
) -> dict[str, Any]:
    """What metrics.json holds of the workdir's best checkpoint on the candidates of a split.

    With LUNA16's candidates.csv alone that is its second track, false-positive reduction.
    """
    given = config.evaluation.weight
    if given is not None and not 0 <= given <= 1:
        raise InputError(f"config.evaluation.weight = {given:g}: choose 0 to 1")
    classifier, step = restore_classifier(workdir, config)
    collect = Collector(workdir, config, dataset)
    rated = sum(scan["crops"]["rated"] for scan in collect("train")) > 0
    settings = identity_of(workdir, config, identity(dataset), step)

    def judged(of: str, weight: float) -> list[dict]:
        second = SecondStage(classifier, weight, rated, settings)
        folder = workdir / "evaluation" / of
        return second.judge_split(dataset, of, collect(of), folder, collect.settings)

    weight, cpm = second_stage.best_weight(judged("validation", 0.5))
    if given is not None:
        weight, cpm = given, None
    store(workdir, SecondStage(classifier, weight, rated, settings), cpm)
    scans = judged(split, weight)
    measured, _, _ = second_stage.measure(scans, weight)
    metrics = {
        **{k: v for k, v in measured.items() if k not in ("weight", "first_stage", "intervals")},
        "first_stage_cpm": measured["first_stage"] and measured["first_stage"]["cpm"],
        "scans": len(scans),
        "nodules": sum(len(scan["nodules"]) for scan in scans),
        "intervals": {
            **measured["intervals"],
            "sensitivity": dict.fromkeys(measured["sensitivity"]),
        },
        "thresholds": {"weight": weight},
        "split": split,
        "step": step,
    }
    write_text(workdir / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False))
    if reason := why_no_auc(measured):
        print(WHY_NOT.format(reason))
    return metrics
