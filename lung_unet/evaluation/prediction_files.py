"""A prediction as files, all named after the scan.

NAME_mask.nii.gz           uint8, 1 in a nodule, on the scan's own grid
NAME_probability.nii.gz    nodule probability on that grid: stored in steps of 1/255, read as 0..1
NAME_findings.csv          a row a finding, most probable first; begins with LUNA16's columns
NAME_findings.json         the same, with what it was made with
NAME_finding_001.png       each finding in three planes, of the 50 most probable
NAME_finding_001_why.png   the same planes of a finding: what the second stage looked at
NAME_segmentation.dcm      for a DICOM series: a DICOM Segmentation, a segment a finding

Positions are x, y, z here, as ITK and 3D Slicer have them: mm in world coordinates (LPS), and
voxels counted from 0. Of a DICOM series, only the Segmentation holds more than geometry and UID.
"""

import csv
import json
import pathlib
import re
from collections.abc import Callable

import numpy as np

from lung_unet.data.images import write_fractions, write_image
from lung_unet.evaluation.overlay import crop_case, draw
from lung_unet.evaluation.prediction import DRAWN, Detection, Prediction
from lung_unet.evaluation.second_stage import Opinion
from lung_unet.files import atomic_path, write_text

SECOND_STAGE = Opinion._fields  # columns more where there is one
COLUMNS = (
    "seriesuid", "coordX", "coordY", "coordZ", "probability", "diameter_mm",
    "volume_mm3", "lung", "voxelX", "voxelY", "voxelZ",
)  # fmt: skip

EARLIER = re.compile(r"_finding_[0-9]+(_why)?\.png|_segmentation\.dcm")


def is_written(
    output: pathlib.Path, name: str, dicom: bool, made_from: Callable[[], str | None]
) -> bool:
    """Whether all files of a prediction are there, and are of the model and the scan whose hash
    `made_from` gives; it is not called where they are not there."""
    try:
        found = json.loads((output / f"{name}_findings.json").read_text(encoding="utf-8"))
        before, number = found["made_from"], len(found["findings"])
        second = "classifier_step" in found
    except (OSError, ValueError, KeyError, TypeError):
        return False
    files = ["mask.nii.gz", "probability.nii.gz", "findings.csv"]
    files += ["segmentation.dcm"] if dicom and number else []
    for n in range(1, min(number, DRAWN) + 1):
        files += [f"finding_{n:03d}.png"] + ([f"finding_{n:03d}_why.png"] if second else [])
    whole = all((output / f"{name}_{file}").exists() for file in files)
    return whole and before is not None and before == made_from()


def write_prediction(
    output: pathlib.Path, name: str, prediction: Prediction, made_with: dict
) -> None:
    """Writes all files but the DICOM Segmentation, and removes those of an earlier prediction.

    `made_with` goes into the JSON file, which is written last; a second stage has its
    `classifier_step` there, and `made_from` is what `is_written` asks for.
    """
    scan = prediction.scan
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}_findings.json").unlink(missing_ok=True)  # first: it vouches for the others
    for path in output.iterdir():
        if path.name.startswith(name) and EARLIER.fullmatch(path.name, len(name)):
            path.unlink()
    mask = (prediction.labels > 0).astype(np.uint8)
    write_image(output / f"{name}_mask.nii.gz", mask, scan.grid)
    write_fractions(output / f"{name}_probability.nii.gz", prediction.probability, scan.grid)
    columns = COLUMNS + (SECOND_STAGE if "classifier_step" in made_with else ())
    _write_table(output / f"{name}_findings.csv", columns, scan.series_uid, prediction.detections)
    _draw_all(output, name, prediction)
    for number, detection in enumerate(prediction.detections, 1):
        if detection.looked_at:
            with atomic_path(output / f"{name}_finding_{number:03d}_why.png") as temporary:
                temporary.write_bytes(detection.looked_at)
    findings = [_as_json(number, d) for number, d in enumerate(prediction.detections, 1)]
    found = {"series_uid": scan.series_uid, **made_with, "findings": findings}
    write_text(output / f"{name}_findings.json", json.dumps(found, indent=1))


def _write_table(
    path: pathlib.Path, columns: tuple[str, ...], series_uid: str, detections: list[Detection]
) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for d in detections:
            row = (series_uid, *(f"{v:.3f}" for v in d.centre_mm[::-1]), f"{d.probability:.6f}")
            row += (f"{d.diameter_mm:.2f}", f"{d.volume_mm3:.1f}", d.lung or "")
            row += tuple(f"{v:.1f}" for v in d.centre_voxel[::-1])
            opinion = d.opinion or ()
            writer.writerow((*row, *("" if v is None else f"{v:.4f}" for v in opinion)))


def _as_json(number: int, detection: Detection) -> dict:
    return {
        "number": number,
        "centre_mm": [round(float(v), 3) for v in detection.centre_mm[::-1]],
        "centre_voxel": [round(float(v), 1) for v in detection.centre_voxel[::-1]],
        "diameter_mm": round(detection.diameter_mm, 2),
        "volume_mm3": round(detection.volume_mm3, 1),
        "probability": round(detection.probability, 6),
        "lung": detection.lung,
        **(detection.opinion._asdict() if detection.opinion else {}),
    }


def _malignancy(detection: Detection) -> str:
    rating = detection.opinion.malignancy if detection.opinion else None
    return "" if rating is None else f", malignancy {rating:.1f}"


def _draw_all(output: pathlib.Path, name: str, prediction: Prediction) -> None:
    scan = prediction.scan
    lps, axes, flips = scan.grid.to_lps()
    hu, labels = (a.transpose(axes)[flips] for a in (scan.hu, prediction.labels))
    nothing = np.broadcast_to(np.False_, hu.shape)
    for number, detection in enumerate(prediction.detections[:DRAWN], 1):
        side = detection.lung if detection.lung in (None, "outside") else f"{detection.lung} lung"
        case = crop_case(
            hu, nothing, labels, nothing, lps.spacing_mm, lps.to_voxel(detection.centre_mm),
            size_mm=max(64.0, 2 * detection.diameter_mm),
            title=f"Finding {number}" + (f", {side}" if side else "") + _malignancy(detection),
            kind="finding",
            dice=None,
            diameter_mm=detection.diameter_mm,
            probability=detection.probability,
        )  # fmt: skip
        with atomic_path(output / f"{name}_finding_{number:03d}.png") as temporary:
            temporary.write_bytes(draw(case))
