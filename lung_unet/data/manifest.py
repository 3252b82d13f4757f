"""manifest.json: what a prepared dataset holds, which scans form a split, how it was made."""

import json
import pathlib
from collections.abc import Iterable, Sequence

from lung_unet import __version__
from lung_unet.data.image_folder import ImageFolder
from lung_unet.data.patients import check_apart
from lung_unet.data.shards import FORMAT, KINDS, MANIFEST, Settings
from lung_unet.data.source import Source
from lung_unet.errors import InputError
from lung_unet.files import write_text

NAME = MANIFEST
SPLITS = ("train", "validation", "test")
ALL = "all"  # the only split of a dataset that was opened without a fold


def split_subsets(subsets: list[int], fold: int) -> dict[str, list[int]]:
    """The subsets of each split: one for test, the next for validation, the others for training.

    As LUNA16's ten-fold protocol, over the subsets that are there.

    Raises:
      InputError: fewer than three subsets, or no such fold.
    """
    present = sorted(set(subsets))
    if len(present) < 3:
        raise InputError(
            f"scans in {len(present)} subset(s) leave a split empty; train, validation and test "
            "need scans in at least three of subset0..9"
        )
    if not 0 <= fold < len(present):
        raise InputError(f"config.data.fold = {fold}: choose 0 to {len(present) - 1}")
    test, validation = present[fold], present[(fold + 1) % len(present)]
    return {
        "train": [s for s in present if s not in (test, validation)],
        "validation": [validation],
        "test": [test],
    }


def write_manifest(
    out: pathlib.Path,
    dataset: Source,
    settings: Settings,
    entries: list[dict],
    skipped: Sequence[dict] = (),
) -> dict:
    """Writes manifest.json from the entries of all scans and returns it.

    `skipped` are scans that are broken and left out: series_uid, subset and reason.
    """
    entries = sorted(entries, key=lambda e: (e["subset"], e["series_uid"]))
    subsets = sorted({e["subset"] for e in entries})
    count = 1 if dataset.kind == ImageFolder.kind else len(subsets)
    folds = [split_subsets(subsets, k) for k in range(count) if len(subsets) > 2]
    nodules = [n for e in entries for n in e["nodules"]]
    manifest = {
        "format": 1,
        "lung_unet": __version__,
        "source": dataset.kind,
        "notes": [] if settings.pseudonym_key else list(dataset.notes),  # they name series
        "settings": settings.to_json(),
        "tables": dict(dataset.rows),
        "skipped": sorted(skipped, key=lambda e: (e["subset"], e["series_uid"])),
        "counts": {
            "scans": len(entries),
            "skipped_scans": len(skipped),
            "absent_scans": len(dataset.absent),
            "scans_with_outlines": sum(e["has_outlines"] for e in entries),
            "nodules": len(nodules),
            "spheres": sum(len(e["spheres"]) for e in entries),
            "unlisted_findings": sum(len(e["unlisted"]) for e in entries),
            "ignored_findings": sum(e["ignored_findings"] for e in entries),
            "scans_with_warnings": sum(bool(e["warnings"]) for e in entries),
            **{k: sum(e["files"][k]["records"] for e in entries) for k in KINDS},
            "bytes": sum(f["bytes"] for e in entries for f in e["files"].values()),
        },
        "folds": folds,
        "scans": entries,
    }
    text = json.dumps(manifest, indent=1)
    path = out / NAME
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return manifest


class Dataset:
    """A prepared dataset, opened: its manifest and the files of each split.

    Without a fold its only split is "all", and fewer than three subsets are enough. `identity` is
    what a run that was trained on the data depends on, whatever folders it lies in. Without
    `shards` it need only be the manifest, and nothing can be read.

    Raises:
      InputError: no or broken manifest, one of another version, a patient in two splits, a shard
        missing or cut short.
    """

    def __init__(self, folder: str | pathlib.Path, fold: int | None = 0, shards: bool = True):
        self.folder, self.fold = pathlib.Path(folder), fold
        path = self.folder / NAME
        try:
            self.manifest = json.loads(path.read_text(encoding="utf-8"))
            settings = Settings.from_json(self.manifest["settings"])
            stored = self.manifest["settings"]["format"]
            if "counts" not in self.manifest:
                raise KeyError("counts")
            self.spacing_mm, self.block = settings.spacing_mm, settings.block
            self.subsets = [e["subset"] for e in self.manifest["scans"]]
            self.identity = identity_of(
                self.manifest["settings"],
                (
                    (e["series_uid"], e["subset"], e["made_from"]["input"])
                    for e in self.manifest["scans"]
                ),
            )
            fixed = self.manifest["source"] == ImageFolder.kind
            files = [e["files"][kind] for e in self.manifest["scans"] for kind in KINDS]
            files = [(self.folder / s["name"], s["bytes"], s["records"]) for s in files]
        except FileNotFoundError:
            raise InputError(
                f"{self.folder}: has no {NAME}; make it with python -m lung_unet.prepare"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: is broken ({error}); remove it and run prepare again"
            ) from error
        if stored != FORMAT:
            raise InputError(
                f"{self.folder}: was prepared by another version (format {stored}, not {FORMAT}); "
                "prepare its scans again, into another folder"
            )
        if fixed and fold:
            raise InputError(
                f"config.data.fold = {fold}: {self.folder} has the split of its splits.csv alone; "
                "choose 0"
            )
        self.splits = {ALL: self.subsets} if fold is None else self._split(fold)
        for shard, expected, _ in files if shards else ():
            size = shard.stat().st_size if shard.is_file() else None
            if size != expected:
                found = "is missing" if size is None else f"has {size} bytes"
                raise InputError(
                    f"{shard}: {found}, {expected} expected; run prepare again, which rewrites "
                    "only what is broken"
                )

    def _split(self, fold: int) -> dict[str, list[int]]:
        """The subsets of each split, no patient and no scan, under two names, in two."""
        scans = {e["series_uid"]: e["subset"] for e in self.manifest["scans"]}
        patients = {e["series_uid"]: e.get("patient") for e in self.manifest["scans"]}
        known = set(patients.values())
        if 0 < len(known) < len(SPLITS) and None not in known:
            raise InputError(
                f"{self.folder}: its {len(scans)} scans are of {len(known)} patient(s), and no "
                f"patient may be in two splits; {', '.join(SPLITS)} need scans of three"
            )
        splits = split_subsets(self.subsets, fold)
        split_of = {subset: split for split, subsets in splits.items() for subset in subsets}
        in_split = {uid: split_of[subset] for uid, subset in scans.items()}
        check_apart(self.folder, in_split, patients)
        voxels = {e["series_uid"]: e.get("voxels") for e in self.manifest["scans"]}
        check_apart(self.folder, in_split, voxels, "the same voxels")
        return splits

    def scans(self, split: str) -> list[dict]:
        """The manifest's entries of one split, never empty."""
        entries = [e for e in self.manifest["scans"] if e["subset"] in self.splits[split]]
        if not entries:
            raise InputError(f"{self.folder}: the {split} split has no scans")
        return entries

    def shards(self, split: str, kind: str) -> list[str]:
        """Paths of the shards of one split and kind that hold at least one record."""
        files = [e["files"][kind] for e in self.scans(split)]
        return [str(self.folder / f["name"]) for f in files if f["records"]]

    def records(self, split: str, kind: str) -> int:
        """How many records the shards of one split and kind hold."""
        return sum(e["files"][kind]["records"] for e in self.scans(split))


def identity_of(settings: dict, scans: Iterable[tuple[str, int, str]]) -> dict:
    """What a run that was trained on a dataset depends on: its settings, and of each scan its
    series UID, its subset and a hash of all that it was read from."""
    return {"settings": settings, "scans": sorted(map(list, scans))}
