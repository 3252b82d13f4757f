"""The pictures of a scored scan: each nodule, and the surest of the false positives."""

import base64
import dataclasses
from typing import Any

import numpy as np

from lung_unet.data.records import ScanRecord
from lung_unet.evaluation.candidates import Candidate, mask_of
from lung_unet.evaluation.overlay import crop_case, draw

MAX_FALSE_POSITIVES = 3  # a scan


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

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"png": base64.b64encode(self.png).decode()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Picture":
        return cls(**value | {"png": base64.b64decode(value["png"])})


def draw_pictures(
    record: ScanRecord,
    truth: np.ndarray,
    ignore: np.ndarray,
    candidates: list[Candidate],
    nodules: list[dict[str, Any]],
) -> list[Picture]:
    """The pictures of a scan, of `nodules` as rows of nodules.csv and of `candidates` that miss.

    `truth` and `ignore` are bool (z, y, x) on the volume's grid.
    """
    volume = record.volume
    prediction = mask_of(candidates, volume.grid.shape)

    def picture(centre_mm: Any, **fields: Any) -> Picture:
        case = crop_case(
            volume.hu, truth, prediction, ignore, volume.grid.spacing_mm,
            volume.grid.to_voxel(centre_mm), series_uid=record.series_uid, **fields,
        )  # fmt: skip
        return Picture(series_uid=record.series_uid, png=draw(case), **fields)

    pictures = [
        picture(
            [row["coordZ"], row["coordY"], row["coordX"]],
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
            title=f"False positive of {c.diameter_mm:.1f} mm",
            kind="false positive",
            dice=None,
            diameter_mm=c.diameter_mm,
            probability=c.probability,
        )
        for c in wrong[:MAX_FALSE_POSITIVES]
    ]
    return pictures
