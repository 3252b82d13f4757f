"""One scan to its shards: blocks around nodules, blocks that tile the lungs, and the scan whole.

    OUT/subset3/<uid>.nodule.arrayrecord       a few blocks around each counted nodule
    OUT/subset3/<uid>.background.arrayrecord   blocks that tile the lungs
    OUT/subset3/<uid>.scan.arrayrecord         one record, for evaluation
    OUT/subset3/<uid>.json                     what they hold; written last, so it vouches for them

Shards are by scan, so that a split or a fold is a choice of files made when they are read, a scan
can be prepared again alone, and what is written does not depend on how many workers wrote it.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from lung_unet import __version__
from lung_unet.data.pseudonyms import Pseudonym
from lung_unet.data.records import Block, ScanRecord, block_of, write_records
from lung_unet.data.scan import IGNORE, Scan
from lung_unet.data.scan_files import look
from lung_unet.data.source import Source
from lung_unet.data.volume import AIR_HU, make_labels, make_volume
from lung_unet.files import write_text

MANIFEST = "manifest.json"
KINDS = ("nodule", "background", "scan")
MIN_LUNG = 0.05  # of a background block
FORMAT = 8  # of what is stored; a folder of another cannot be read
PERCENTILES = (0.5, 50.0, 99.5)  # of a nodule's HU, as nnU-Net's fingerprint
NO_LUNGS = "none found, the whole scan is used"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What shapes the shards; a dataset is made with one of these."""

    spacing_mm: float = 1.0
    margin_mm: float = 12.0  # around the lungs
    block: tuple[int, int, int] = (160, 160, 160)  # voxels (z, y, x); a patch is cropped from it
    nodule_blocks: int = 4  # around each nodule, at different offsets
    min_readers: int = 3  # that outlined a nodule; findings of fewer are ignored
    outlines: str = "readers"  # or "sphere": of the annotated diameter, even where there is XML
    pseudonym_key: str = ""  # fingerprint of the key; empty: series have their own UIDs

    def to_json(self) -> dict:
        return {"format": FORMAT, **dataclasses.asdict(self), "block": list(self.block)}

    @classmethod
    def from_json(cls, value: dict) -> "Settings":
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: value[name] for name in names} | {"block": tuple(value["block"])})


def prepare_scan(
    dataset: Source,
    series_uid: str,
    out: pathlib.Path,
    settings: Settings,
    pseudonym: Pseudonym | None = None,
    content: str | None = None,
) -> dict:
    """Writes the shards of one scan and returns its entry for the manifest.

    Does nothing where they are there already, made from the same input with the same settings.
    With a pseudonym, that and not the UID is written. `content` is what `scan_files.look` says of
    the scan's files, where it is known.
    """
    name = pseudonym.series_uid if pseudonym else series_uid
    if content is None:
        hide = pseudonym.hash if pseudonym else str
        content = look(dataset.scan_files(series_uid), None, hide).content
    folder = out / f"subset{dataset.subsets[series_uid]}"
    entry_path = folder / f"{name}.json"
    wanted = {
        "input": content,
        "settings": settings.to_json(),
        "version": __version__,
    }
    done = _finished(entry_path, wanted)
    if done is not None:
        return done
    scan, matches = dataset.read_matched(series_uid)
    volume = make_volume(scan, settings.spacing_mm, settings.margin_mm)
    labels = make_labels(scan.findings, volume)
    counted = [f for f in scan.findings if f.included]
    rng = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
    centres = [f.centre_mm for f in counted if volume.grid.holds(f.centre_mm)]
    centres = list(map(volume.grid.to_voxel, centres))
    records: dict[str, Iterable[Block | ScanRecord]] = {  # blocks one by one: they are large
        "nodule": nodule_blocks(volume.hu, labels, centres, settings, rng),
        "background": lung_blocks(volume.hu, labels, volume.lungs, settings),
        "scan": [ScanRecord(name, volume, scan.findings)],
    }
    if entry_path.exists():  # neither it nor the manifest vouches for shards that change now
        (out / MANIFEST).unlink(missing_ok=True)
        entry_path.unlink(missing_ok=True)
    files = {}
    for kind, contents in records.items():
        path = folder / f"{name}.{kind}.arrayrecord"
        count = write_records(path, (record.encode() for record in contents))
        files[kind] = {
            "name": f"{folder.name}/{path.name}",
            "bytes": path.stat().st_size,
            "records": count,
        }
    inside, source = volume.hu[volume.lungs], scan.grid.to_lps()[0]
    entry = {
        "series_uid": name,
        "subset": dataset.subsets[series_uid],
        "voxels": voxels_hash(scan, pseudonym),
        "source_shape": list(source.shape),
        "source_spacing_mm": [round(float(v), 6) for v in source.spacing_mm],
        "shape": list(volume.grid.shape),
        "lungs": scan.lungs_source if scan.lungs.any() else NO_LUNGS,
        "lung_litres": round(float(volume.lungs.sum() * settings.spacing_mm**3 * 1e-6), 3),
        "hu_mean": round(float(inside.mean()), 2),
        "hu_std": round(float(inside.std()), 2),
        "foreground": foreground(scan),
        "nodules": [
            {
                "diameter_mm": round(float(f.diameter_mm), 2),
                "readers": f.readers,
                "voxels": int(np.count_nonzero(f.reader_bits)),
            }
            for f in counted
        ],
        "ignored_findings": sum(
            not f.included and bool(f.reader_bits.any()) for f in scan.findings
        ),
        "ignored_voxels": int(np.count_nonzero(labels == IGNORE)),
        "spheres": [
            {
                "centre_mm": [round(float(v), 3) for v in m.mark.centre_mm],
                "diameter_mm": m.mark.diameter_mm,
            }
            for m in matches
            if m.finding is None
        ],
        "has_outlines": series_uid in dataset.outlines,
        "files": files,
        "made_from": wanted,
    }
    write_text(entry_path, json.dumps(entry, indent=1))
    return entry


def voxels_hash(scan: Scan, pseudonym: Pseudonym | None = None) -> str:
    """A hash of the HU, which knows an image under another name, or in another format."""
    _, axes, flips = scan.grid.to_lps()
    hu = np.ascontiguousarray(scan.hu.transpose(axes)[flips])
    text = f"{hu.shape} {hashlib.sha256(hu.reshape(-1).data).hexdigest()}"
    return pseudonym.common_hash(text) if pseudonym else hashlib.sha256(text.encode()).hexdigest()


def foreground(scan: Scan) -> dict:
    """HU of the voxels that any reader outlined as a counted nodule, on the scan's own grid.

    The number of voxels; without any, nothing else.
    """
    counted = [f for f in scan.findings if f.included]
    parts = [scan.hu[f.box][f.reader_bits > 0] for f in counted]
    values = np.concatenate([np.zeros(0, np.int16), *parts])
    if not values.size:
        return {"voxels": 0}
    return {
        "voxels": values.size,
        "mean": round(float(values.mean()), 2),
        "std": round(float(values.std()), 2),
        "percentiles": [round(float(v), 1) for v in np.percentile(values, PERCENTILES)],
    }


def _finished(path: pathlib.Path, wanted: dict) -> dict | None:
    """The entry of a scan prepared before, if it is whole and of the same making."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        out = path.parent.parent
        same = entry["made_from"] == wanted and all(
            (out / f["name"]).stat().st_size == f["bytes"] for f in entry["files"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return entry if same else None


def nodule_blocks(
    hu: np.ndarray,
    labels: np.ndarray,
    centres: list[np.ndarray],
    settings: Settings,
    rng: np.random.Generator,
) -> Iterator[Block]:
    """Blocks around each nodule's centre, which lies anywhere in the middle half of the block."""
    size = np.array(settings.block)
    for centre in centres:
        for _ in range(settings.nodule_blocks):
            offset = rng.uniform(size / 4, size * 3 / 4)
            yield _cut(hu, labels, np.rint(centre - offset).astype(int), size, centre)


def lung_blocks(
    hu: np.ndarray, labels: np.ndarray, lungs: np.ndarray, settings: Settings
) -> Iterator[Block]:
    """Blocks that tile the volume evenly, less those with hardly any lung."""
    size = np.array(settings.block)
    counts = np.maximum(1, np.ceil(np.array(hu.shape) / size)).astype(int)
    starts = [
        np.rint(np.linspace(0, max(0, n - m), k)).astype(int)
        for n, m, k in zip(hu.shape, size, counts, strict=True)
    ]
    for low in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3):
        box = tuple(map(slice, low, low + size))
        if lungs[box].sum() >= MIN_LUNG * np.prod(size):
            yield _cut(hu, labels, low, size, None)


def _cut(
    hu: np.ndarray, labels: np.ndarray, low: np.ndarray, size: np.ndarray, centre: np.ndarray | None
) -> Block:
    """The block at `low`, moved inside the volume where it can be, padded with air where not."""
    low = np.clip(low, 0, np.maximum(0, hu.shape - size))
    box = tuple(map(slice, low, low + size))
    missing = [(0, int(n - m)) for n, m in zip(size, hu[box].shape, strict=True)]
    at = None if centre is None else np.clip(np.rint(centre - low), 0, size - 1)
    return block_of(
        np.pad(hu[box], missing, constant_values=AIR_HU), np.pad(labels[box], missing), at
    )
