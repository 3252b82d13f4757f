"""A trained model on a split, scan by scan: metrics.json, tables, and the report."""

import csv
import json
import pathlib
import time

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lung_unet import __version__
from lung_unet.data.labels import agreement
from lung_unet.data.manifest import Dataset
from lung_unet.data.pipeline import scan_records
from lung_unet.data.records import ScanRecord
from lung_unet.data.scan import IGNORE
from lung_unet.data.volume import make_labels, onto_source
from lung_unet.evaluation.candidates import Candidate, find_candidates, mask_of
from lung_unet.evaluation.overlay import Case, crop_case
from lung_unet.evaluation.report import write_report
from lung_unet.evaluation.sliding_window import Predictor
from lung_unet.evaluation.voxel import Counts, ScanScore, score
from lung_unet.files import atomic_path, write_text
from lung_unet.train.writer import JSONL, read_rows

MAX_FALSE_POSITIVES = 3  # drawn a scan


def evaluate_split(
    predictor: Predictor,
    config: ConfigDict,
    dataset: Dataset,
    split: str,
    workdir: pathlib.Path,
    step: int,
) -> dict:
    """Scores every scan of a split; writes metrics.json, nodules.csv, scans.csv and report.html.

    Returns what metrics.json holds. Every number is taken on each scan's own grid.
    """
    records = scan_records(dataset, split)
    counts, scans, nodules, cases = Counts(), [], [], []
    columns = (
        TextColumn("evaluate"), BarColumn(), MofNCompleteColumn(), TextColumn("scans"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns) as progress:
        for index in progress.track(range(len(records))):
            start = time.perf_counter()
            record = records[index]
            candidates, result = score_record(predictor, config, record)
            counts += result.counts
            rows = nodule_rows(record, result, candidates)
            nodules += rows
            scans.append(
                {"series_uid": record.series_uid, **result.metrics(),
                 "nodules": len(rows), "found": sum(r["found"] for r in rows),
                 "false_positives": len(result.false_positives),
                 "seconds": round(time.perf_counter() - start, 2)}
            )  # fmt: skip
            cases += draw_cases(config, record, candidates, rows)
    dice = [n["dice"] for n in nodules]
    metrics = {
        **counts.metrics(),
        "nodule_dice": float(np.mean(dice)) if dice else None,
        "nodules_found": sum(n["found"] for n in nodules),
        "false_positives_per_scan": sum(s["false_positives"] for s in scans) / len(scans),
        "scans": len(scans),
        "nodules": len(nodules),
        "split": split,
        "step": step,
    }
    write_text(workdir / "metrics.json", json.dumps(metrics, indent=1))
    _write_csv(workdir / "scans.csv", scans)
    _write_csv(workdir / "nodules.csv", nodules)
    write_report(
        workdir / "report.html",
        title=f"Lung nodules, {split} split",
        metrics=metrics,
        scans=scans,
        nodules=nodules,
        cases=cases,
        curves=read_rows(workdir / JSONL),
        facts=facts(config, dataset, step),
    )
    return metrics


def score_record(
    predictor: Predictor, config: ConfigDict, record: ScanRecord
) -> tuple[list[Candidate], ScanScore]:
    """The model's candidates (on the volume's grid), and their score on the scan's own grid."""
    volume = record.volume
    probability = predictor(volume.hu, volume.lungs)
    c = config.evaluation
    candidates = find_candidates(probability, volume.grid, c.threshold, c.min_diameter_mm)
    probability *= mask_of(candidates, volume.grid.shape)
    low, box = onto_source(probability, volume.grid, volume.source)
    prediction = np.zeros(volume.source.shape, bool)
    prediction[tuple(slice(l, l + n) for l, n in zip(low, box.shape, strict=True))] = (
        box > c.threshold
    )
    result = score(
        prediction, record.findings, record.ignored(), agreement(config.data),
        volume.source.spacing_mm,
    )  # fmt: skip
    return candidates, result


def nodule_rows(record: ScanRecord, result: ScanScore, candidates: list[Candidate]) -> list[dict]:
    """One row a counted nodule, with the probability of the best candidate within it."""
    rows = []
    for nodule in result.nodules:
        finding = nodule.finding
        radius = max(finding.diameter_mm / 2, 1.0)
        near = [
            c.probability
            for c in candidates
            if np.linalg.norm(c.centre_mm - finding.centre_mm) < max(radius, c.diameter_mm / 2)
        ]
        z, y, x = (round(float(v), 2) for v in finding.centre_mm)
        rows.append(
            {"series_uid": record.series_uid, "coordX": x, "coordY": y, "coordZ": z,
             "diameter_mm": round(float(finding.diameter_mm), 2), "readers": finding.readers,
             **nodule.metrics(), "found": nodule.found,
             "probability": max(near) if near else None}
        )  # fmt: skip
    return rows


def draw_cases(
    config: ConfigDict, record: ScanRecord, candidates: list[Candidate], rows: list[dict]
) -> list[Case]:
    """What the report draws of a scan: each nodule, and the most probable false positives."""
    volume = record.volume
    labels = make_labels(record.findings, volume)
    ignore = labels == IGNORE
    truth = (labels >= agreement(config.data)) & ~ignore
    prediction = mask_of(candidates, volume.grid.shape)

    def case(centre_mm: np.ndarray, **fields) -> Case:
        return crop_case(
            volume.hu, truth, prediction, ignore, volume.grid.spacing_mm,
            volume.grid.to_voxel(centre_mm), series_uid=record.series_uid, **fields,
        )  # fmt: skip

    cases = [
        case(
            np.array([row["coordZ"], row["coordY"], row["coordX"]]),
            title=f"Nodule of {row['diameter_mm']:.1f} mm, {row['readers']} readers",
            kind="nodule",
            dice=row["dice"],
            diameter_mm=row["diameter_mm"],
            probability=row["probability"],
        )
        for row in rows
    ]
    wrong = [
        c
        for c in candidates
        if not (truth[c.box] & c.mask).any() and ignore[c.box][c.mask].mean() < 0.5
    ]
    cases += [
        case(
            c.centre_mm,
            title=f"False positive of {c.diameter_mm:.1f} mm",
            kind="false positive",
            dice=None,
            diameter_mm=c.diameter_mm,
            probability=c.probability,
        )
        for c in wrong[:MAX_FALSE_POSITIVES]
    ]
    return cases


def facts(config: ConfigDict, dataset: Dataset, step: int) -> dict[str, str]:
    """What a reader of the report wants to know of the run."""
    counts = dataset.manifest["counts"]
    device = jax.devices()[0]
    return {
        "Configuration": config.variant or "default",
        "Dataset": f"{dataset.folder.name}: {counts['scans']} scans, {counts['nodules']} nodules",
        "Spacing": f"{dataset.spacing_mm:g} mm",
        "Patch": " × ".join(map(str, config.data.patch)),
        "Channels": " ".join(map(str, config.model.channels)),
        "Truth": f"voxels that {agreement(config.data)} or more readers outlined",
        "Checkpoint": f"step {step} of {config.train.steps}",
        "Threshold": f"{config.evaluation.threshold:g}",
        "Device": f"{jax.device_count()} × {device.device_kind}",
        "Versions": f"lung_unet {__version__}, jax {jax.__version__}",
    }


def _write_csv(path: pathlib.Path, rows: list[dict]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
