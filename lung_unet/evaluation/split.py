"""A trained model on a split: metrics.json, the tables, the files for FROC, and the report."""

import csv
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from lung_unet import __version__
from lung_unet.data.image_folder import ImageFolder
from lung_unet.data.labels import agreement
from lung_unet.data.manifest import Dataset
from lung_unet.data.records import ScanRecord
from lung_unet.data.tables import COLUMNS
from lung_unet.evaluation.charts import Rows
from lung_unet.evaluation.ensemble import Predict
from lung_unet.evaluation.external import External
from lung_unet.evaluation.judge import SecondStage
from lung_unet.evaluation.operating_point import OperatingPoint, choose, given_thresholds
from lung_unet.evaluation.pictures import Picture
from lung_unet.evaluation.report import write_report
from lung_unet.evaluation.resume import each_scan, folder_of, made_with, results_of
from lung_unet.evaluation.scoring import VERSION, score_scan
from lung_unet.evaluation.second_stage import measure, rows_of
from lung_unet.evaluation.second_stage_report import Judged
from lung_unet.evaluation.strata import stratify
from lung_unet.evaluation.summary import froc_of, summarise
from lung_unet.files import atomic_path, write_text
from lung_unet.train.writer import JSONL, read_rows

SECOND_STAGE_MARKS = "candidates_second_stage.csv"


def evaluate_split(
    predictor: Predict,
    config: ConfigDict,
    dataset: Dataset,
    split: str,
    workdir: pathlib.Path,
    members: Sequence[dict],
    second: SecondStage | None = None,
    view: Callable[[ScanRecord], ScanRecord] = lambda record: record,
    about: dict[str, str] | None = None,
    external: External | None = None,
) -> dict:
    """Scores every scan of a split and writes all that lung_unet.evaluate writes: to the workdir,
    or of another split than test to a folder of the split's name in it.

    Returns what metrics.json holds. Overlap and surfaces are taken on each scan's own grid. Scans
    that were scored before, with the same `members` (resume.py:member) and settings, are not scored
    again. The predictor is any function of HU and lungs to probability; `members` say all that it
    depends on, each with the `step` of a checkpoint. One that works on another grid than the
    dataset's is given the volume of the record that `view` returns. What the report says `about`
    the model is by default `about_model`. With a second stage, both decide what is a finding of the
    mask, and metrics and report also have what it makes of the marks. With `external`, the scans
    are of an external validation: nothing is chosen on them.
    """
    if external:
        point = external.point
    else:
        point = choose(predictor, config, dataset, workdir, members, view)
    patients = {e["series_uid"]: e.get("patient") for e in dataset.scans(split)}
    settings = made_with(config, dataset, members) | {"point": vars(point), "version": VERSION}
    if second:
        second = second.beside(members, point)
        settings["second_stage"] = second.decides
    scored = each_scan(
        dataset,
        split,
        folder_of(workdir, split),
        settings,
        lambda record: (
            score_scan(predictor, config, view(record), point, second)
            | {"patient": patients[record.series_uid]}
        ),
        "evaluate",
    )
    # what was stored before patients were known names none
    scored = [scan | {"patient": patients[scan["series_uid"]]} for scan in scored]
    made: dict[str, Any] = {
        "thresholds": vars(point),
        "split": split,
        "step": one_or_all([m["step"] for m in members]),
    }
    if external:
        made["external_validation"] = external.to_json()
    judged = judge(second, dataset, split, scored, workdir, settings) if second else None
    return write_results(
        workdir,
        split,
        scored,
        made | ({"second_stage": judged.metrics} if judged else {}),
        (about or about_model(config, dataset, members))
        | facts(config, dataset, point, second, external),
        read_rows(workdir / JSONL),
        judged,
    )


def one_or_all(values: Sequence[Any]) -> Any:
    """The value where there is one alone, else all."""
    return values[0] if len(values) == 1 else list(values)


def write_results(
    workdir: pathlib.Path,
    split: str,
    scored: list[dict],
    about: dict[str, Any],
    facts: dict[str, str],
    curves: Rows,
    judged: Judged | None = None,
) -> dict:
    """Writes metrics.json, tables, files for FROC and report of scans as `score_scan` gives them,
    where `results_of` says.

    `about` goes into metrics.json, which is returned; `judged` is what a second stage makes of
    their marks. Whoever finds a metrics.json finds all the others as well.
    """
    folder = results_of(workdir, split)
    done = folder / "metrics.json"
    done.unlink(missing_ok=True)  # of an evaluation before, whose other files are replaced now
    froc = froc_of(scored)
    nodules = [n["facts"] | n["metrics"] for scan in scored for n in scan["nodules"]]
    metrics = {**summarise(scored, froc), "strata": stratify(nodules), **about}
    scans = [scan_row(scan) for scan in scored]
    write_rows(folder / "scans.csv", scans)
    write_rows(folder / "nodules.csv", nodules)
    write_marks(folder, scored)
    if judged is None:
        (folder / SECOND_STAGE_MARKS).unlink(missing_ok=True)  # of an evaluation before
    write_report(
        folder / "report.html",
        title=f"Lung nodules, external validation on {about['external_validation']['data']}"
        if "external_validation" in about
        else f"Lung nodules, {split} split",
        metrics=metrics,
        scans=scans,
        nodules=nodules,
        pictures=[Picture.from_json(p) for scan in scored for p in scan["pictures"]],
        curves=curves,
        facts=facts,
        froc=froc,
        judged=judged,
    )
    write_text(done, json.dumps(metrics, indent=1, allow_nan=False))
    return metrics


def judge(
    second: SecondStage,
    dataset: Dataset,
    split: str,
    scored: list[dict],
    workdir: pathlib.Path,
    settings: dict,
) -> Judged:
    """What the second stage makes of the marks of scored scans; writes SECOND_STAGE_MARKS."""
    folder = folder_of(workdir, f"second_stage_{split}")
    scans = second.judge_split(dataset, split, scored, folder, settings, pictures=True)
    scans = [own | {"patient": s["patient"]} for own, s in zip(scans, scored, strict=True)]
    metrics, froc, first = measure(scans, second.weight)
    metrics["finding_threshold"] = second.finding_threshold
    assert first is not None  # each of these marks has a probability
    rows = (
        (s["series_uid"], x, y, z, score, probability, *opinion)
        for s, own in zip(scans, rows_of(scans, second.weight), strict=True)
        for (z, y, x, score), (*_, probability), opinion in zip(
            own.tolist(), s["marks"], s["opinions"], strict=True
        )
    )
    columns = (*COLUMNS, "probability", "first_stage", "nodule_probability", "malignancy")
    _write_csv(results_of(workdir, split) / SECOND_STAGE_MARKS, columns, rows)
    return Judged(metrics, froc, first, [p for scan in scans for p in scan["pictures"]])


def scan_row(scan: dict) -> dict[str, Any]:
    """A row of scans.csv."""
    return {
        "series_uid": scan["series_uid"],
        **scan["metrics"],
        "nodules": len(scan["nodules"]),
        "found": sum(n["facts"]["found"] for n in scan["nodules"]),
        "false_positives": scan["false_positives"],
        "searched": scan.get("searched"),  # not known of a scan that an earlier version scored
        "warnings": "; ".join(scan.get("warnings", ())),
    }


def write_marks(workdir: pathlib.Path, scored: list[dict]) -> None:
    """Writes candidates.csv, and to froc/ what lung_unet.froc scores it against."""

    def rows(key: str) -> Iterable[tuple]:
        return ((s["series_uid"], x, y, z, v) for s in scored for z, y, x, v in s[key])

    _write_csv(workdir / "candidates.csv", (*COLUMNS, "probability"), rows("marks"))
    folder = workdir / "froc"
    _write_csv(folder / "annotations.csv", (*COLUMNS, "diameter_mm"), rows("included"))
    _write_csv(folder / "annotations_excluded.csv", (*COLUMNS, "diameter_mm"), rows("excluded"))
    write_text(folder / "seriesuids.csv", "".join(f"{s['series_uid']}\n" for s in scored))


def about_model(config: ConfigDict, dataset: Dataset, members: Sequence[dict]) -> dict[str, str]:
    """What a reader of the report wants to know of the model, or of those that are averaged."""
    device = jax.devices()[0]
    steps = ", ".join(str(m["step"]) for m in members)
    network = {
        "Configuration": config.variant or "default",
        "Patch": " × ".join(map(str, config.data.patch)),
        "Channels": " ".join(map(str, config.model.channels)),
        "Checkpoint": f"step {steps} of {config.train.steps}",
        "Fold, seed": f"{config.data.fold}, {config.seed}",
    }
    used = min(config.mesh.data * config.mesh.space, jax.local_device_count())
    if len(members) > 1:
        network = {"Checkpoints": f"steps {steps} of {len(members)} runs, averaged"}
    return {
        **network,
        "Spacing": f"{dataset.spacing_mm:g} mm",
        "Device": f"{used} × {device.device_kind}",
        "Versions": f"lung_unet {__version__}, jax {jax.__version__}",
    }


def truth_told(dataset: Dataset, readers: int) -> str:
    """What is nodule, in words, by the layout that the dataset was made of."""
    counts = dataset.manifest["counts"]
    if dataset.manifest["source"] == ImageFolder.kind:
        return "the labels"
    if not counts["scans_with_outlines"]:
        return "balls of the annotated diameters, as no outlines were given"
    outlined = f"voxels that {readers} or more readers outlined, or any where fewer agree"
    spheres = counts["spheres"]
    return outlined + (f"; {spheres} nodules without an outline as balls" if spheres else "")


def facts(
    config: ConfigDict,
    dataset: Dataset,
    point: OperatingPoint,
    second: SecondStage | None,
    external: External | None = None,
) -> dict[str, str]:
    """What a reader of the report wants to know of how it was scored."""
    counts = dataset.manifest["counts"]
    chosen = external.thresholds if external else (
        f"chosen on {len(dataset.scans('validation'))} validation scans"
    )  # fmt: skip
    limit = f"above {point.finding_threshold:g}"
    if second and second.finding_threshold is not None:
        limit = f"that both stages score above {second.finding_threshold:.3g}"
    return {
        "Dataset": f"{dataset.folder.name}: {counts['scans']} scans, {counts['nodules']} nodules",
        "Truth": truth_told(dataset, agreement(config.data)),
        "Mask": f"probability above {point.threshold:g} in regions {limit}, from "
        f"{point.min_diameter_mm:g} mm",
        "Thresholds": chosen
        + (f"; given: {', '.join(given)}" if (given := given_thresholds(config)) else ""),
        **({"Second stage": f"step {second.settings['step']}"} if second else {}),
        "FROC's marks": f"all regions above {point.threshold:g}, and fainter ones above "
        f"{point.candidate_threshold:g}",
    }


def write_rows(path: pathlib.Path, rows: Sequence[dict]) -> None:
    """Writes rows of equal keys as CSV; empty without rows."""
    _write_csv(path, list(rows[0]) if rows else [], (row.values() for row in rows))


def _write_csv(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Iterable]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
