"""One LIDC-IDRI XML file: which series it is about, and what each reader marked.

The format: Armato et al., Med. Phys. 38(2):915-931, 2011, and the collection's documentation
(doi 10.7937/K9/TCIA.2015.LO9QL9SX). Files differ in their namespace ("http://www.nih.gov",
".../idri", or none) and in the spelling of SeriesInstanceUid, so neither is looked at.
"""

import io
from typing import IO
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import ElementTree

from lung_unet.data.outlines import Mark, Region
from lung_unet.errors import InputError

CHARACTERISTICS = (
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
    "malignancy",
)
LARGEST_MATRIX = 4096  # pixels; beyond any CT, so that a mistyped coordinate costs no gigabytes
LARGEST_NUMBER = 1e5  # a position in mm or a rating


def series_uid(file: IO[bytes], name: str) -> str | None:
    """UID of the CT series that a file is a reading of; None if it is not a reading of a CT.

    Reads no further than the header. The collection also holds readings of chest radiographs,
    which name the patient's CT, but whose pixels are the radiograph's.

    Raises:
      InputError: the file is broken before its header ends, or declares a document type.
    """
    header: dict[str, str] = {}
    try:
        for event, element in ElementTree.iterparse(file, ("start", "end"), forbid_dtd=True):
            tag = _local(element.tag)
            if tag == ("readingSession" if event == "start" else "ResponseHeader"):
                break
            if event == "end":
                header.setdefault(tag.lower(), (element.text or "").strip())
    except (ParseError, ValueError, LookupError) as error:
        raise _unreadable(name, error) from error
    if header.get("modality") == "CXR":
        return None
    return header.get("ctseriesinstanceuid") or header.get("seriesinstanceuid") or None


def parse(data: bytes, name: str) -> tuple[str | None, list[list[Mark]]]:
    """The series UID, as `series_uid` gives it, and the marks of each reading session.

    The marks' `reader` is the session's place in the file.

    Raises:
      InputError: anything is missing or malformed; names the file (`name`) and the element.
    """
    uid = series_uid(io.BytesIO(data), name)
    try:
        root = ElementTree.fromstring(data, forbid_dtd=True)
    except (ParseError, ValueError, LookupError) as error:
        raise _unreadable(name, error) from error
    for element in root.iter():
        element.tag = _local(element.tag)
    sessions = list(root.iter("readingSession"))
    if sessions and uid is None:
        raise InputError(f"{name}: its header has no SeriesInstanceUid: put the CT series' UID")
    return uid, [_session(session, reader, name) for reader, session in enumerate(sessions)]


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _unreadable(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: cannot be read as XML ({error}): get the original file again")


def _session(session: Element, reader: int, name: str) -> list[Mark]:
    marks = []
    for nodule in session.iterfind("unblindedReadNodule"):
        regions = tuple(_region(roi, "edgeMap", name) for roi in nodule.iterfind("roi"))
        if not regions:
            raise InputError(f"{name}: an unblindedReadNodule has no roi: remove it or complete it")
        outlined = any(len(region.points) > 1 for region in regions)
        kind = "nodule" if outlined else "small nodule"
        marks.append(Mark(reader, kind, regions, _ratings(nodule, name), name))
    for other in session.iterfind("nonNodule"):
        marks.append(Mark(reader, "non-nodule", (_region(other, "locus", name),), {}, name))
    return marks


def _region(element: Element, pixel: str, name: str) -> Region:
    z_mm = _number(element.findtext("imageZposition"), "imageZposition", name)
    included = element.findtext("inclusion", "TRUE").strip()
    if included not in ("TRUE", "FALSE"):
        raise InputError(f"{name}: inclusion is {included!r}: put TRUE or FALSE")
    try:
        points = [
            (int(place.findtext("yCoord", "")), int(place.findtext("xCoord", "")))
            for place in element.iterfind(pixel)
        ]
    except ValueError as error:
        raise InputError(
            f"{name}: {pixel} at z = {z_mm:g} mm: xCoord or yCoord is no whole number ({error}): "
            "correct it"
        ) from error
    if not points or not all(0 <= c < LARGEST_MATRIX for point in points for c in point):
        raise InputError(
            f"{name}: {element.tag} at z = {z_mm:g} mm: expected each {pixel} to have xCoord and "
            f"yCoord from 0 to {LARGEST_MATRIX - 1}, at least one: correct it"
        )
    return Region(z_mm, np.array(points), included == "TRUE")


def _ratings(nodule: Element, name: str) -> dict[str, float]:
    given = {tag: nodule.findtext(f"characteristics/{tag}", "").strip() for tag in CHARACTERISTICS}
    return {tag: _number(text, tag, name) for tag, text in given.items() if text}


def _number(text: str | None, tag: str, name: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = np.nan
    if not abs(value) < LARGEST_NUMBER:
        raise InputError(f"{name}: {tag} is {text!r}: put the number")
    return value
