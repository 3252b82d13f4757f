"""Whether the slices of a DICOM series are a volume of HU: what is wrong with them, and where.

DICOM PS3.3, C.7.6.2 (image plane) and C.11.1 (rescale).
"""

from typing import NamedTuple

import numpy as np

from lung_unet.data.dicom_header import Header
from lung_unet.data.dicom_pixels import unreadable

SAME_MM = 0.01  # closer slices lie in one place
UNEVEN = 0.1  # of the distance between slices: how far one may lie from an even place
ROUNDED_MM = 0.1  # the same, of positions that are rounded to this
HOUNSFIELD = ("", "HU", "US", "HU_MOD")  # PS3.3, C.11.1.1.2; US, unspecified, is what GDCM writes


class Fault(NamedTuple):
    """Why slices are not a volume, and what to do about it."""

    what: str
    remedy: str


def fault(slices: list[Header]) -> Fault | None:
    """What is wrong with the slices of a series, and where; None if they are a volume of HU."""
    several = next((s for s in slices if s.frames > 1), None)
    if several:
        return Fault(
            f"it is a CT of {several.frames} frames in one file, which is not read",
            "convert it to a file per slice",
        )
    if len(slices) < 2:
        return Fault(f"it has {len(slices)} slice, a CT volume needs more", "copy all of it")
    if len({s.patient for s in slices}) > 1:
        return Fault("its slices are of several patients", "give each its own series UID")
    if len({s.modality for s in slices}) > 1:
        return Fault("its slices are of several modalities", "give each its own series UID")
    for slice_ in slices:
        if not slice_.single or slice_.pixels is None:
            what = f"a slice is not one whole frame of grey values ({slice_.path.name})"
            return Fault(what, "leave it out")
        unread = unreadable(slice_.pixels, slice_.shape[0] * slice_.shape[1])
        if unread:
            return Fault(*unread)
    return _misplaced(slices) or _unscaled(slices)


def _misplaced(slices: list[Header]) -> Fault | None:
    for name in ("position", "orientation", "spacing_mm"):
        if any(getattr(s, name) is None for s in slices):
            what = f"the {name.removesuffix('_mm')} of a slice is missing or broken"
            return Fault(what, "export the series again")
    axes = np.array([s.orientation for s in slices]).reshape(-1, 2, 3)
    if not np.allclose(axes @ axes.transpose(0, 2, 1), np.eye(2), atol=1e-3):
        return Fault(
            "the orientation of a slice is no pair of directions at right angles",
            "export the series again",
        )
    for name in ("shape", "spacing_mm", "orientation"):
        values = np.array([getattr(s, name) for s in slices])
        other = np.flatnonzero(np.abs(values - np.median(values, axis=0)).max(axis=1) > 1e-3)
        if len(other):
            odd, what = slices[other[0]], name.removesuffix("_mm")
            return Fault(
                f"the slice at {_place(odd)} is of another {what} ({odd.path.name})",
                "leave out what does not belong to it",
            )
    slices = in_order(slices)
    steps = np.diff([s.position for s in slices], axis=0)
    twice = np.flatnonzero(np.linalg.norm(steps, axis=1) < SAME_MM)
    if len(twice):
        first, second = slices[twice[0] : twice[0] + 2]
        more = f", as {len(twice) - 1} others" if len(twice) > 1 else ""
        return Fault(
            f"the slice at {_place(first)} is there twice ({first.path.name}, {second.path.name})"
            + more,
            "remove one, or give each scan a series UID of its own",
        )
    return _unevenness(slices, steps)


def _unevenness(slices: list[Header], steps: np.ndarray) -> Fault | None:
    normal = _normal(slices[0])
    along = steps @ normal
    tenths = np.array([s.position for s in slices]) / ROUNDED_MM
    rounded_mm = ROUNDED_MM if np.abs(tenths - np.rint(tenths)).max() < 1e-3 else 0.0
    aside_mm = np.linalg.norm(np.cumsum(steps - along[:, None] * normal, axis=0), axis=1)
    if aside_mm.max() > max(0.5 * min(slices[0].spacing_mm or ()), 2 * rounded_mm):
        degrees = np.degrees(np.arctan2(aside_mm[-1], along.sum()))
        return Fault(
            f"its slices are sheared by {aside_mm.max():.1f} mm (gantry tilt {degrees:.1f}°)",
            "convert it to a straight NIfTI file, as with dcm2niix, and give that",
        )
    usual, widest = np.median(along), int(np.argmax(along))
    if along[widest] > max(1.8 * usual, usual + 1.5 * rounded_mm):
        ends = f"{_place(slices[widest])} and {_place(slices[widest + 1])}"
        return Fault(f"slices are missing between {ends}", "copy all of it, or leave it out")
    # A volume has one distance: what is not even would be stretched.
    places = np.concatenate([[0], np.cumsum(along)])
    even = np.linspace(0, places[-1], len(places))
    if np.abs(places - even).max() <= max(UNEVEN * usual, 1.5 * rounded_mm):
        return None
    return Fault(
        f"its slices are {along.min():g} to {along.max():g} mm apart",
        "resample it to slices at one distance and give that",
    )


def _unscaled(slices: list[Header]) -> Fault | None:
    """What keeps the stored values of some slices from becoming HU."""
    again = "export the series again"
    for slice_ in slices:
        scale, place = slice_.rescale, _place(slice_)
        if scale.units not in HOUNSFIELD:
            return Fault("its values are not Hounsfield units (RescaleType)", "leave it out")
        if scale.table:
            return Fault("its values have a lookup table instead of a rescale", again)
        for name, value in (("slope", scale.slope), ("intercept", scale.intercept)):
            if value is None and any(getattr(s.rescale, name) is not None for s in slices):
                return Fault(f"the slice at {place} has no rescale {name}, others do", again)
            if value is not None and (value != value or (name, value) == ("slope", 0)):
                return Fault(f"the rescale {name} of the slice at {place} is broken", again)
    return None


def in_order(slices: list[Header]) -> list[Header]:
    """The slices of a volume along their normal."""
    return sorted(slices, key=lambda s: (place_of(s), s.path))


def place_of(slice_: Header) -> float:
    """mm along the normal of a slice whose position and orientation are sound."""
    return float(np.dot(slice_.position or (), _normal(slice_)))


def _normal(slice_: Header) -> np.ndarray:
    return np.cross(*np.array(slice_.orientation).reshape(2, 3))


def _place(slice_: Header) -> str:
    """Where a slice lies on the axis of the patient that it is across, for a message."""
    if slice_.position is None or slice_.orientation is None:
        return "an unknown place"
    axis = int(np.argmax(np.abs(_normal(slice_))))
    return f"{'xyz'[axis]} = {slice_.position[axis]:g} mm"
