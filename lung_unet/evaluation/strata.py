"""Nodules' scores by size and by texture, since both decide how hard a nodule is."""

import bisect
from collections.abc import Callable

from lung_unet.evaluation.voxel import mean

SIZES_MM = (3, 6, 10, 20)
SIZES = ("under 3 mm", "3-6 mm", "6-10 mm", "10-20 mm", "20 mm and more")
TEXTURES = ("non-solid", "part-solid", "solid", "not rated")
MEANS = (
    "dice", "iou", "precision", "recall", "f1", "volume_error_mm3", "volume_error_percent",
    "hd95_mm", "nsd_1mm", "nsd_2mm", "reader_dice", "readers_dice",
)  # fmt: skip


def size_of(row: dict) -> str:
    """The stratum of a nodule's `diameter_mm`; its lower end belongs to it.

    6 mm is where the Fleischner Society's follow-up begins (MacMahon et al., Radiology
    284(1):228-243, 2017).
    """
    return SIZES[bisect.bisect_right(SIZES_MM, row["diameter_mm"])]


def texture_of(row: dict) -> str:
    """The stratum of the readers' mean rating of `texture`, taken as the nearest of LIDC's levels.

    Level 1 is non-solid (ground glass), 5 is solid, and 2 to 4 are mixtures (Hancock and Magnan, J.
    Med. Imaging 3(4):044504, 2016, and their pylidc): below 1.5, from 4.5, and between.
    """
    texture = row.get("texture")
    if texture is None:
        return "not rated"
    return "non-solid" if texture < 1.5 else "part-solid" if texture < 4.5 else "solid"


def stratify(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Means over the nodules of each stratum: {"size": {"3-6 mm": {…}, …}, "texture": {…}}.

    A row is a nodule: `diameter_mm`, `texture` (1 to 5, or None), `found`, and any of `MEANS`. A
    stratum has `nodules`, `found` and the mean of each metric where it is defined (None where it
    is nowhere): distances are those of found nodules, signed errors cancel. Strata without nodules
    are left out.
    """
    return {
        "size": _grouped(rows, SIZES, size_of),
        "texture": _grouped(rows, TEXTURES, texture_of),
    }


def _grouped(
    rows: list[dict], strata: tuple[str, ...], stratum_of: Callable[[dict], str]
) -> dict[str, dict]:
    groups = {name: [row for row in rows if stratum_of(row) == name] for name in strata}
    return {name: _means(members) for name, members in groups.items() if members}


def _means(rows: list[dict]) -> dict[str, float | None]:
    return {
        "nodules": len(rows),
        "found": sum(row["found"] for row in rows),
        **{name: mean(row.get(name) for row in rows) for name in MEANS},
    }
