"""What of a prepared dataset was dropped, guessed or differs, in lines for whoever made it."""

import collections
import re
from collections.abc import Iterator

from lung_unet.data.annotations import MIN_READERS
from lung_unet.data.shards import NO_LUNGS
from lung_unet.data.tables import describe_rows

MOST = 10  # lines about single scans or findings of a kind


def consistency(manifest: dict, most: int | None = MOST) -> Iterator[str]:
    """Lines that say where lungs came from, which rows and scans were left out, where annotations
    and the readers' outlines differ, and what readers of files warned of.

    At most so many about single things of a kind; None for all.
    """
    entries = manifest["scans"]
    lungs = collections.Counter(entry["lungs"] for entry in entries)
    computed, none = lungs.pop("computed", 0), lungs.pop(NO_LUNGS, 0)
    counts = [f"{count} from {source}" for source, count in sorted(lungs.items())]
    counts += [f"{computed} computed"] + [f"{none} {NO_LUNGS}"] * (none > 0)
    yield f"lungs: {', '.join(counts)}"
    for name, rows in manifest["tables"].items():
        yield describe_rows(name, rows)
    lone = [(e["series_uid"], s) for e in entries if e["has_outlines"] for s in e["spheres"]]
    if lone:
        yield f"{len(lone)} annotations matched no reader's outline and became spheres:"
        yield from _first([_at(*sphere) for sphere in lone], most, "spheres in manifest.json")
    unlisted = [(e["series_uid"], f) for e in entries for f in e["unlisted"]]
    if unlisted:
        counted = "count" if all(f["counts"] for _, f in unlisted) else "are ignored"
        yield (
            f"{len(unlisted)} findings that {MIN_READERS} readers or more outlined are not in "
            f"annotations.csv and {counted}:"
        )
        yield from _first([_at(*f) for f in unlisted], most, "unlisted in manifest.json")
    empty = sum(not entry["nodules"] for entry in entries)
    if empty:
        yield f"{empty} of {len(entries)} scans have no nodule that counts"
    for kind, found in by_kind(manifest).items():
        scans = "1 scan" if len(found) == 1 else f"{len(found)} scans"
        yield f"{scans}: {kind}"
        if kind != found[0][1] or len(found) < len(entries):
            lines = [
                f"  {uid}" + (f": {clause}" if kind != clause else "") for uid, clause in found
            ]
            yield from _first(lines, most, "warnings in manifest.json")
    blocks = manifest["settings"]["nodule_blocks"]
    for entry in entries:
        beyond = len(entry["nodules"]) - entry["files"]["nodule"]["records"] // blocks
        if beyond:
            yield (
                f"{entry['series_uid']}: {beyond} of its nodules lie beyond the lungs and their "
                "margin; nothing is trained on there: see its lung mask"
            )
    if manifest["skipped"]:
        yield f"{len(manifest['skipped'])} broken scans are left out, and tried again next time:"
        yield from (f"  {scan['series_uid']}: {scan['reason']}" for scan in manifest["skipped"])


def by_kind(manifest: dict) -> dict[str, list[tuple[str, str]]]:
    """Scans' warnings as (series UID, clause), by the clause with its numbers left out."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for entry in manifest["scans"]:
        for clause in entry["warnings"]:
            kinds.setdefault(re.sub(r"[-+]?\d+(\.\d+)*", "…", clause), []).append(
                (entry["series_uid"], clause)
            )
    same = {kind: {clause for _, clause in found} for kind, found in kinds.items()}
    return {
        (next(iter(same[kind])) if len(same[kind]) == 1 else kind): found
        for kind, found in kinds.items()
    }


def _first(lines: list[str], most: int | None, where: str) -> Iterator[str]:
    yield from lines[:most]
    if most is not None and len(lines) > most:
        yield f"  and {len(lines) - most} more: {where}"


def _at(uid: str, found: dict) -> str:
    z, y, x = found["centre_mm"]
    return f"  {uid}: {found['diameter_mm']:.1f} mm at x {x:.1f}, y {y:.1f}, z {z:.1f} mm"
