"""The second stage's part of the main job, and a finished one opened for evaluate and predict."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from lung_unet import workdir as runs
from lung_unet.data.manifest import Dataset
from lung_unet.errors import InputError
from lung_unet.evaluation.collect import TRAINED, Collector
from lung_unet.evaluation.judge import NAME, SecondStage, identity_of, store
from lung_unet.evaluation.second_stage import best_finding_threshold, best_weight, measure
from lung_unet.evaluation.second_stage_report import WHY_NOT, why_no_auc
from lung_unet.evaluation.summary import resampled
from lung_unet.files import write_text
from lung_unet.restore import restore_classifier, restore_predictor


def open_candidates(config: ConfigDict) -> Dataset:
    """`config.data.dir`, or where that is empty the dataset of the segmentation run; its fold too.

    A fold that is not given becomes that of the run in the configuration, or 0 without one.

    Raises:
      InputError: neither is given, or it is no prepared dataset.
    """
    folder, run = config.data.dir, config.candidates.workdir
    if not folder and not run:
        raise InputError(
            "config.candidates.workdir is empty: give a segmentation run, or config.candidates.csv "
            "with a prepared dataset as config.data.dir"
        )
    fold = 0
    if run:
        first = runs.load(pathlib.Path(run))
        folder, fold = folder or str(first.dataset), first.config.data.fold
    if config.data.fold is None:
        config.data.fold = fold
    dataset = Dataset(folder, config.data.fold)
    print(f"data: {dataset.folder}, at {dataset.spacing_mm:g} mm")
    return dataset


def open_collector(workdir: pathlib.Path, config: ConfigDict, dataset: Dataset) -> Collector:
    """What finds the candidates; writes nothing yet.

    Raises:
      InputError: as `Collector`, or training began on the candidates of another checkpoint.
    """
    return Collector(workdir, config, dataset, restore_predictor)


def collect_crops(collect: Collector) -> None:
    """Cuts the crops that training needs into the collector's workdir, and says how many."""
    for split in TRAINED:
        counts = [scan["crops"] for scan in collect(split)]
        nodule, other, rated = (sum(c[k] for c in counts) for k in ("nodule", "other", "rated"))
        print(f"{split}: {nodule} crops of nodules, {rated} of them rated, and {other} of others")
        if split == "validation" and not (nodule and other):
            print("validation: its candidates are of one kind; the latest checkpoint is the best")


def evaluate_candidates(
    workdir: pathlib.Path, config: ConfigDict, dataset: Dataset, split: str
) -> dict[str, Any]:
    """What metrics.json holds of the workdir's best checkpoint on the candidates of a split.

    With LUNA16's candidates.csv alone that is its second track, false-positive reduction.
    """
    given = config.evaluation.weight
    classifier, step = restore_classifier(workdir, config)
    collect = open_collector(workdir, config, dataset)
    rated = sum(scan["crops"]["rated"] for scan in collect("train")) > 0
    settings = identity_of(workdir, config, runs.identity(dataset), step)

    def judged(of: str, found: list[dict], weight: float) -> list[dict]:
        second = SecondStage(classifier, weight, rated, settings)
        folder = workdir / "evaluation" / of
        return second.judge_split(dataset, of, found, folder, collect.settings)

    found = collect("validation")
    validated = judged("validation", found, 0.5)
    weight, cpm = best_weight(validated)
    if given is not None:
        weight, cpm = given, None
    both = zip(validated, found, strict=True)
    regions = [scan | {k: own[k] for k in ("voxels", "truth")} for scan, own in both]
    threshold = best_finding_threshold(regions, weight)
    first = collect.settings.get("segmentation")
    done = workdir / "metrics.json"
    done.unlink(missing_ok=True)  # of an evaluation before: it is written last
    store(workdir, SecondStage(classifier, weight, rated, settings, threshold, first), cpm)
    scans = judged(split, collect(split), weight)
    measured, _, _ = measure(scans, weight)
    metrics = {
        **{k: v for k, v in measured.items() if k not in ("weight", "first_stage", "intervals")},
        "first_stage_cpm": measured["first_stage"] and measured["first_stage"]["cpm"],
        "scans": len(scans),
        "nodules": sum(len(scan["nodules"]) for scan in scans),
        "intervals": {
            **measured["intervals"],
            "sensitivity": dict.fromkeys(measured["sensitivity"]),
        },
        "resampled": resampled(scans),
        "thresholds": {"weight": weight, "finding_threshold": threshold},
        "split": split,
        "step": step,
    }
    write_text(done, json.dumps(metrics, indent=1, allow_nan=False))
    if reason := why_no_auc(measured):
        print(WHY_NOT.format(reason))
    return metrics


def open_second_stage(workdir: pathlib.Path, first: runs.Run) -> SecondStage:
    """The second stage of a workdir, for the candidates of a segmentation run.

    Raises:
      InputError: it is no classifier's workdir, not finished, or of another geometry, dataset or
        fold than the segmentation.
    """
    run = runs.load(workdir, "classification")
    if run.settings.spacing_mm != first.settings.spacing_mm:
        raise InputError(
            f"{workdir}: was trained at {run.settings.spacing_mm:g} mm, the segmentation at "
            f"{first.settings.spacing_mm:g} mm; train it on the segmentation's dataset"
        )
    if (run.data, run.config.data.fold) != (first.data, first.config.data.fold):
        raise InputError(
            f"{workdir}: was trained on another dataset or fold than the segmentation, whose test "
            "scans it may have seen; train it on the same"
        )
    classifier, step = restore_classifier(workdir, run.config)
    settings = identity_of(workdir, run.config, run.data, step)
    try:
        entry = json.loads((workdir / NAME).read_text(encoding="utf-8"))
        if entry["settings"] == settings:
            return SecondStage(
                classifier,
                float(entry["weight"]),
                bool(entry["rated"]),
                settings,
                entry["finding_threshold"],
                entry["segmentation"],
            )
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(
        f"{workdir}: its weight beside the segmentation was not chosen yet for its checkpoint of "
        f"step {step}; run lung_unet.main on it again, to its end"
    )
