"""What a prepared dataset holds, as tables of plain rows; all of it is in the manifest."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from lung_unet.data.shards import KINDS

LUNA16_SCANS, LUNA16_NODULES = 888, 1186
LIMIT_GB = 120  # that a prepared LUNA16 may take
BIN_MM, WIDEST_MM = 2.0, 40.0  # of the histogram of diameters
BAR = 40  # characters, of the histogram's fullest bin
GB = 1e9

Rows = list[dict[str, Any]]


def tables(manifest: dict) -> dict[str, Rows]:
    """Titles and rows: scans by subset, ranges, lungs, readers, diameters, spheres and files."""
    entries, nodules = manifest["scans"], nodules_of(manifest)
    lungs = collections.Counter(e["lungs"] for e in entries)
    readers = collections.Counter(n["readers"] for n in nodules)
    counts, edges = diameters(manifest)
    return {
        "Scans": _by_subset(manifest),
        "Ranges": _ranges(entries, nodules),
        "Lungs": [{"lungs from": k, "scans": n} for k, n in sorted(lungs.items())],
        "Readers": [{"readers": k, "nodules": n} for k, n in sorted(readers.items())],
        "Diameters": [
            {"diameter_mm": f"{low:g} to {high:g}" if high < WIDEST_MM else f"from {low:g}",
             "nodules": int(n), "": "█" * round(BAR * n / max(counts))}
            for n, low, high in zip(counts, edges, edges[1:], strict=False)
        ],
        "Spheres": [
            {"series_uid": e["series_uid"], "diameter_mm": s["diameter_mm"],
             **dict(zip(("z_mm", "y_mm", "x_mm"), s["centre_mm"], strict=True))}
            for e in entries for s in e["spheres"]
        ],
        "Files": _files(manifest),
    }  # fmt: skip


def scan_rows(manifest: dict) -> Rows:
    """One row a scan: what may tell that something is wrong with it."""
    splits = _splits(manifest)
    return [
        {
            "series_uid": e["series_uid"],
            "subset": str(e["subset"]),
            **({"split": splits[e["subset"]]} if splits else {}),
            "spacing_mm": " × ".join(f"{v:.3g}" for v in e["source_spacing_mm"]),
            "voxels": " × ".join(map(str, e["shape"])),
            "lung_litres": e["lung_litres"],
            "HU_mean": e["hu_mean"],
            "HU_std": e["hu_std"],
            "nodules": len(e["nodules"]),
            "ignored": e["ignored_findings"],
            "warnings": "; ".join(e["warnings"]),
        }
        for e in manifest["scans"]
    ]


def nodules_of(manifest: dict) -> Rows:
    """The nodules of all scans."""
    return [nodule for entry in manifest["scans"] for nodule in entry["nodules"]]


def diameters(manifest: dict) -> tuple[np.ndarray, np.ndarray]:
    """(counts, edges mm) of the nodules' diameters; what is wider than the last bin lies in it."""
    widest = np.nextafter(WIDEST_MM, 0)
    return histogram([min(n["diameter_mm"], widest) for n in nodules_of(manifest)], BIN_MM)


def histogram(values: Sequence[float], width: float) -> tuple[np.ndarray, np.ndarray]:
    """(counts, edges) in bins that are multiples of a width; both empty without values."""
    if not len(values):
        return np.zeros(0, int), np.zeros(0)
    bins = np.floor(np.asarray(values) / width).astype(int)
    edges = np.arange(bins.min(), bins.max() + 2) * width
    return np.bincount(bins - bins.min()), edges


def projected_gb(manifest: dict) -> dict[str, float]:
    """GB a kind of record that all of LUNA16 would take, prepared as this dataset was.

    A scan takes what one of these takes on average, and so does a nodule; where there are none,
    blocks around a nodule take what background blocks take.
    """
    held = {k: sum(e["files"][k]["bytes"] for e in manifest["scans"]) for k in KINDS}
    scans, nodules = len(manifest["scans"]), len(nodules_of(manifest))
    if nodules:
        a_nodule = held["nodule"] / nodules
    else:
        a_block = held["background"] / max(1, manifest["counts"]["background"])
        a_nodule = manifest["settings"]["nodule_blocks"] * a_block
    projected = {kind: size / scans * LUNA16_SCANS / GB for kind, size in held.items()}
    return projected | {"nodule": a_nodule * LUNA16_NODULES / GB}


def verdict(manifest: dict) -> str:
    """One sentence: how large LUNA16 would be at this spacing, and whether that is too much."""
    size = sum(projected_gb(manifest).values())
    fits = (
        f"under {LIMIT_GB} GB"
        if size < LIMIT_GB
        else f"not under {LIMIT_GB} GB: choose a larger config.data.spacing_mm or fewer "
        "config.data.nodule_blocks"
    )
    return (
        f"LUNA16's {LUNA16_SCANS} scans and {LUNA16_NODULES:,} nodules would take {size:.1f} GB "
        f"at {manifest['settings']['spacing_mm']:g} mm, {fits}"
    )


def _splits(manifest: dict) -> dict[int, str]:
    """The split of each subset in fold 0; empty where the scans are too few for splits."""
    folds = manifest["folds"]
    return {s: split for split, subsets in folds[0].items() for s in subsets} if folds else {}


def _by_subset(manifest: dict) -> Rows:
    splits = _splits(manifest)

    def row(name: str, split: str, entries: list[dict]) -> dict:
        return {
            "subset": name,
            **({"split": split} if splits else {}),
            "scans": len(entries),
            "outlined": sum(e["has_outlines"] for e in entries),
            "nodules": sum(len(e["nodules"]) for e in entries),
            "spheres": sum(len(e["spheres"]) for e in entries),
            "ignored": sum(e["ignored_findings"] for e in entries),
            "MB": sum(f["bytes"] for e in entries for f in e["files"].values()) / 1e6,
        }

    subsets = collections.defaultdict(list)
    for entry in manifest["scans"]:
        subsets[entry["subset"]].append(entry)
    rows = [row(str(s), splits.get(s, ""), own) for s, own in sorted(subsets.items())]
    return [*rows, row("all", "", manifest["scans"])]


def _ranges(entries: list[dict], nodules: Rows) -> Rows:
    spacing = np.array([e["source_spacing_mm"] for e in entries])
    values: dict[str, Any] = {
        "source spacing z, mm": spacing[:, 0],
        "source spacing y, mm": spacing[:, 1],
        "source spacing x, mm": spacing[:, 2],
        "lungs, litres": [e["lung_litres"] for e in entries],
        "mean of a scan's lungs, HU": [e["hu_mean"] for e in entries],
        "deviation in a scan's lungs, HU": [e["hu_std"] for e in entries],
        "nodule diameter, mm": [n["diameter_mm"] for n in nodules],
    }
    return [
        {"": k, "min": float(np.min(v)), "median": float(np.median(v)), "max": float(np.max(v))}
        for k, v in values.items()
        if len(v)
    ]


def _files(manifest: dict) -> Rows:
    projected, rows = projected_gb(manifest), []
    for kind in KINDS:
        files = [e["files"][kind] for e in manifest["scans"]]
        size, records = sum(f["bytes"] for f in files), sum(f["records"] for f in files)
        rows.append(
            {
                "kind": kind,
                "records": records,
                "MB": size / 1e6,
                "MB a record": size / records / 1e6 if records else None,
                "GB of LUNA16": projected[kind],
            }
        )
    total = {k: sum(row[k] for row in rows) for k in ("records", "MB", "GB of LUNA16")}
    return [*rows, {"kind": "all"} | total]
