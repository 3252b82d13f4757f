"""The pictures of a scored scan: each nodule, and the surest of the false positives."""

import base64
import dataclasses
from typing import Any

import numpy as np

from lung_unet.data.records import ScanRecord
from lung_unet.evaluation.candidates import Candidate, mask_of
from lung_unet.evaluation.entropy_map import draw_entropy
from lung_unet.evaluation.overlay import crop_case, cube, draw
from lung_unet.evaluation.uncertainty import boundary

MAX_FALSE_POSITIVES = 3  # a scan
PNGS = ("png", "entropy_png")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A case of overlay.py, drawn."""

    series_uid: str
    title: str
    kind: str  # "nodule" or "false positive"
    dice: float | None
    diameter_mm: float
    probability: float | None
    png: bytes
    entropy_png: bytes  # of entropy_map.py
    boundary: dict[str, float | None]  # of uncertainty.py

    def to_json(self) -> dict[str, Any]:
        coded = {name: base64.b64encode(getattr(self, name)).decode() for name in PNGS}
        return dataclasses.asdict(self) | coded

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Picture":
        return cls(**value | {name: base64.b64decode(value[name]) for name in PNGS})


def draw_pictures(
    record: ScanRecord,
    truth: np.ndarray,
    ignore: np.ndarray,
    candidates: list[Candidate],
    nodules: list[dict[str, Any]],
    probability: np.ndarray,
    variance: np.ndarray | None,
) -> list[Picture]:
    """The pictures of a scan, of `nodules` as rows of nodules.csv and of `candidates` that miss.

    All arrays are (z, y, x) on the volume's grid; `truth` and `ignore` are bool.
    """
    volume = record.volume
    prediction = mask_of(candidates, volume.grid.shape)

    def picture(centre_mm: Any, boundary: dict[str, float | None], **fields: Any) -> Picture:
        spacing_mm, voxel = volume.grid.spacing_mm, volume.grid.to_voxel(centre_mm)
        case = crop_case(
            volume.hu, truth, prediction, ignore, spacing_mm, voxel,
            series_uid=record.series_uid, **fields,
        )  # fmt: skip
        near = cube(probability, spacing_mm, voxel, outside=0)
        return Picture(
            series_uid=record.series_uid,
            png=draw(case),
            entropy_png=draw_entropy(case, near),
            boundary=boundary,
            **fields,
        )

    pictures = [
        picture(
            [row["coordZ"], row["coordY"], row["coordX"]],
            {key: row[key] for key in row if key.startswith("boundary_")},
            title=f"Nodule of {row['diameter_mm']:.1f} mm, {row['readers']} readers",
            kind="nodule",
            dice=row["dice"],
            diameter_mm=row["diameter_mm"],
            probability=row["probability"],
        )
        for row in nodules
    ]
    wrong = [
        c
        for c in candidates
        if not (truth[c.box] & c.mask).any() and ignore[c.box][c.mask].mean() < 0.5
    ]
    pictures += [
        picture(
            c.centre_mm,
            boundary([c], probability, variance),
            title=f"False positive of {c.diameter_mm:.1f} mm",
            kind="false positive",
            dice=None,
            diameter_mm=c.diameter_mm,
            probability=c.probability,
        )
        for c in wrong[:MAX_FALSE_POSITIVES]
    ]
    return pictures
