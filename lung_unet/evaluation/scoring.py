"""One scan scored: everything that metrics, tables and report are made of, as JSON."""

import dataclasses
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lung_unet.data.labels import agreement
from lung_unet.data.records import ScanRecord
from lung_unet.data.scan import IGNORE
from lung_unet.data.volume import make_labels
from lung_unet.evaluation.calibration import calibration_bins
from lung_unet.evaluation.candidates import Candidate, find_candidates, marks_of, mask_on_source
from lung_unet.evaluation.ensemble import Predict, with_variance
from lung_unet.evaluation.froc import finding_rows
from lung_unet.evaluation.judge import SecondStage
from lung_unet.evaluation.operating_point import OperatingPoint
from lung_unet.evaluation.pictures import draw_pictures
from lung_unet.evaluation.uncertainty import boundary, regions_of
from lung_unet.evaluation.voxel import NoduleScore, agreed, score

VERSION = 3  # raised where something else is kept of a scan


def score_scan(
    predictor: Predict,
    config: ConfigDict,
    record: ScanRecord,
    point: OperatingPoint,
    second: SecondStage | None = None,
) -> dict[str, Any]:
    """The scores of one scan, all but calibration and pictures on its own grid.

    With a second stage, the mask's regions are those that both stages take for findings; the marks
    and their probability are the segmentation's all the same.

    series_uid; searched: lungs or whole body; warnings: those of the scan; voxels: what
    voxel.Counts holds; metrics: of the whole scan; false_positives: predicted regions; nodules:
    of each, {"facts", "metrics"}; marks, included and excluded: rows as FROC takes them; in_mask:
    of each mark; calibration: its bins; pictures: of pictures.Picture.
    """
    volume, readers = record.volume, agreement(config.data)
    probability, variance = with_variance(predictor, volume.hu, volume.lungs)
    sure = find_candidates(probability, volume, point.threshold, point.min_diameter_mm)
    candidates = point.findings(sure)
    if second:
        candidates = [region for region, _ in second.findings(volume, sure, point)]
    faint = find_candidates(probability, volume, point.candidate_threshold, point.min_diameter_mm)
    marks = marks_of(sure, faint, point.threshold)
    prediction = mask_on_source(probability, candidates, volume, point.threshold)
    result = score(prediction, record.findings, record.ignored(), readers, volume.source.spacing_mm)
    labels = make_labels(agreed(record.findings, readers), volume)
    ignore = labels == IGNORE
    truth = (labels >= readers) & ~ignore
    nodules = [
        {
            "facts": nodule_facts(record.series_uid, nodule, marks),
            "metrics": nodule.metrics()
            | boundary(regions_of(nodule, candidates, volume), probability, variance),
        }
        for nodule in result.nodules
    ]
    facts = [nodule["facts"] | nodule["metrics"] for nodule in nodules]
    pictures = draw_pictures(
        record, truth, ignore, candidates, result, facts, probability, variance
    )
    included, excluded = finding_rows(record.findings)
    return {
        "series_uid": record.series_uid,
        "searched": "whole body" if volume.whole_body else "lungs",
        "warnings": list(record.warnings),
        "voxels": dataclasses.asdict(result.counts),
        "metrics": result.metrics(),
        "false_positives": len(result.false_positives),
        "nodules": nodules,
        "marks": [[*map(float, m.centre_mm), m.probability] for m in marks],
        "in_mask": [mark in candidates for mark in marks],
        "included": included,
        "excluded": excluded,
        "calibration": calibration_bins(probability, truth, ignore).tolist(),
        "pictures": [picture.to_json() for picture in pictures],
    }


def nodule_facts(series_uid: str, nodule: NoduleScore, marks: list[Candidate]) -> dict[str, Any]:
    """What identifies a counted nodule, whether the mask meets it, and its most probable mark."""
    finding = nodule.finding
    radius = max(finding.diameter_mm / 2, 1.0)
    near = [
        m.probability
        for m in marks
        if np.linalg.norm(m.centre_mm - finding.centre_mm) < max(radius, m.diameter_mm / 2)
    ]
    z, y, x = (round(float(v), 2) for v in finding.centre_mm)
    return {
        "series_uid": series_uid,
        "coordX": x,
        "coordY": y,
        "coordZ": z,
        "diameter_mm": round(float(finding.diameter_mm), 2),
        "readers": finding.readers if finding.outlined else None,
        "texture": finding.ratings.get("texture"),
        "found": nodule.found,
        "probability": max(near) if near else None,
    }
