"""The pictures of a scored scan: each nodule, and the surest of the false positives."""

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from lung_unet.data.records import ScanRecord
from lung_unet.data.volume import Volume
from lung_unet.evaluation.candidates import Candidate, mask_of
from lung_unet.evaluation.entropy_map import draw_entropy
from lung_unet.evaluation.overlay import crop_case, cube, draw
from lung_unet.evaluation.uncertainty import boundary
from lung_unet.evaluation.voxel import ScanScore

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


def false_positives(
    result: ScanScore, candidates: Sequence[Candidate], volume: Volume
) -> list[Candidate]:
    """Those of a mask's candidates whose regions `result` counts as false positives, in order.

    On the scan's own grid regions may have merged or parted, and need not cover the voxels that
    they come from; so each is that of the candidate nearest to it.
    """
    labels = result.labels
    voxels = np.argwhere(np.isin(np.arange(labels.max() + 1), result.false_positives)[labels])
    if not len(voxels):
        return []
    own = [np.argwhere(c.mask) + [s.start for s in c.box] for c in candidates]
    owners = np.repeat(np.arange(len(own)), [len(part) for part in own])
    at = volume.grid.to_voxel(volume.source.to_world(voxels))
    distances, nearest = KDTree(np.concatenate(own)).query(at)
    order = np.argsort(distances, kind="stable")
    _, first = np.unique(labels[tuple(voxels[order].T)], return_index=True)
    return [candidates[number] for number in np.unique(owners[nearest[order[first]]])]


def draw_pictures(
    record: ScanRecord,
    truth: np.ndarray,
    ignore: np.ndarray,
    candidates: list[Candidate],
    result: ScanScore,
    nodules: list[dict[str, Any]],
    probability: np.ndarray,
    variance: np.ndarray | None,
) -> list[Picture]:
    """The pictures of a scan: of `nodules` as rows of nodules.csv, and of the candidates that
    `result` counts as false positives.

    All arrays are (z, y, x) on the volume's grid; `truth` and `ignore` are bool.
    """
    volume = record.volume
    prediction = mask_of(candidates, volume.grid.shape)

    def picture(centre_mm: Any, boundary: dict[str, float | None], **fields: Any) -> Picture:
        spacing_mm, voxel = volume.grid.spacing_mm, volume.grid.to_voxel(centre_mm)
        case = crop_case(volume.hu, truth, prediction, ignore, spacing_mm, voxel, **fields)
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
            title=f"Nodule of {row['diameter_mm']:.1f} mm"
            + (f", {row['readers']} readers" if row["readers"] else ""),
            kind="nodule",
            dice=row["dice"],
            diameter_mm=row["diameter_mm"],
            probability=row["probability"],
        )
        for row in nodules
    ]
    wrong = false_positives(result, candidates, volume)
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
