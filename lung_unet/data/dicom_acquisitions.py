"""The scans that share a series UID: told apart by acquisition, or by what else of theirs differs.

Scanners and archives give one series UID to several acquisitions, contrast phases, or to originals
and what was derived of them. Their slices lie in the same places or between each other, so they
are no volume together. Acquisitions that follow one another along the patient are one.
"""

import collections
import re
from typing import NamedTuple

import numpy as np

from lung_unet.data.dicom_checks import SAME_MM, fault, in_order, place_of
from lung_unet.data.dicom_header import KINDS, Header

# These alone tell apart what would be a volume together: every second slice is of another breath.
SURE = ("acquisition", "temporal position")
BY_NUMBER = (*SURE, "echo", "energy")  # others are only counted, as times of day are personal
LIKE = 0.2  # of the distance between slices: more makes it another one


class Part(NamedTuple):
    """A scan of a series; `label` says which, and is empty where it is the only one."""

    label: str
    slices: list[Header]


def scans_of(slices: list[Header]) -> list[Part]:
    """The scans that the CT slices of a series are of; one alone where nothing tells more.

    A part may still have a fault, but not all of them have.
    """
    whole = [Part("", slices)]
    if any(s.position is None or s.orientation is None for s in slices):
        return whole
    sound = fault(slices) is None
    for index, kind in enumerate(KINDS):
        groups = _by(index, slices)
        if len(groups) < 2 or (sound and kind not in SURE) or not _are_scans(groups, sound):
            continue
        parts = [
            Part(", ".join(filter(None, (f"{kind} {name}", part.label))), part.slices)
            for name, group in _named(kind, groups).items()
            for part in scans_of(group)
        ]
        faults = [fault(part.slices) for part in parts]
        if faults.count(None) == len(parts) or (not sound and None in faults):
            return parts
    return whole


def _by(index: int, slices: list[Header]) -> dict[bytes, list[Header]]:
    groups: dict[bytes, list[Header]] = collections.defaultdict(list)
    for slice_ in slices:
        groups[slice_.kinds[index] or b""].append(slice_)
    return dict(sorted(groups.items(), key=lambda item: (len(item[0]), item[0])))


def _named(kind: str, groups: dict[bytes, list[Header]]) -> dict[str, list[Header]]:
    by_number = kind in BY_NUMBER and all(re.fullmatch(rb"[0-9]{1,9}", v) for v in groups)
    names = [v.decode() for v in groups] if by_number else map(str, range(1, len(groups) + 1))
    return dict(zip(names, groups.values(), strict=True))


def _are_scans(groups: dict[bytes, list[Header]], sound: bool) -> bool:
    """Whether each group can be a scan of its own, not a piece of one: there are fewer groups than
    slices in any, and each lies over another along the patient, or has another geometry."""
    if min(map(len, groups.values())) < len(groups):
        return False
    extents = [_extent(group) for group in groups.values()]
    shapes = [_geometry(group) for group in groups.values()]
    if sound:
        low, high = np.min(extents, axis=0)[0], np.max(extents, axis=0)[1]
        return all(last - first >= (high - low) / 2 for first, last in extents)
    return all(
        any(
            not np.allclose(shapes[i], shapes[j], rtol=LIKE, atol=1e-2)
            or (
                extents[i][0] <= extents[j][1] + SAME_MM
                and extents[j][0] <= extents[i][1] + SAME_MM
            )
            for j in range(len(groups))
            if j != i
        )
        for i in range(len(groups))
    )


def _extent(group: list[Header]) -> tuple[float, float]:
    places = [place_of(s) for s in group]
    return min(places), max(places)


def _geometry(group: list[Header]) -> np.ndarray:
    """Numbers that slices of one scan share: pixels, orientation, distance between slices."""
    first = group[0]
    step = np.median(np.diff([place_of(s) for s in in_order(group)]))
    return np.array([*first.shape, *(first.spacing_mm or ()), *(first.orientation or ()), step])
