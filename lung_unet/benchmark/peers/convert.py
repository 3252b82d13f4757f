"""Scans in nnU-Net's raw layout: own voxels near the lungs, our split, the truth we score with.

A peer is given the lungs' surroundings, as the dataset is cropped to them, since nothing else is
scored: what it learns from and predicts is then what we learn from and predict.
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.progress import track

from lung_unet.benchmark.peers.exchange import (
    DATASET,
    IGNORED,
    NODULE,
    SUFFIX,
    image_path,
    label_path,
)
from lung_unet.data.images import write_image
from lung_unet.data.labels import agreement
from lung_unet.data.manifest import SPLITS, Dataset
from lung_unet.data.scan import Scan
from lung_unet.data.source import Source
from lung_unet.data.volume import Volume, crop_to_lungs
from lung_unet.errors import InputError
from lung_unet.evaluation.voxel import truth_mask
from lung_unet.files import make_anew, write_text
from lung_unet.workdir import identity

MADE_FROM = "made_from.json"  # of DATASET, written last


def label_of(scan: Scan, readers: int) -> np.ndarray:
    """uint8 (z, y, x): NODULE where so many readers outlined a nodule that counts, IGNORED
    where no metric counts, 0 elsewhere."""
    label = scan.ignore.astype(np.uint8) * np.uint8(IGNORED)
    label[truth_mask(scan.grid.shape, scan.findings, readers)] = NODULE
    return label


def convert(source: Source, dataset: Dataset, data: ConfigDict, raw: pathlib.Path) -> None:
    """Writes the scans of a prepared dataset, out of the source that it was made from, to `raw`.

    `data` is config.data. Does nothing where an earlier call wrote the same.

    Raises:
      InputError: the dataset has pseudonyms, or was not made from this source, or `raw` is not of
        an earlier call.
    """
    folder, truth = raw / DATASET, json.dumps(truth_of(dataset, data))
    if (folder / MADE_FROM).exists() and (folder / MADE_FROM).read_text(encoding="utf-8") == truth:
        return
    make_anew(raw)
    if dataset.manifest["settings"]["pseudonym_key"]:
        raise InputError(f"{dataset.folder}: has pseudonyms; prepare it without --pseudonym_key")
    entries = [(split, entry) for split in SPLITS for entry in dataset.scans(split)]
    for split, entry in track(entries, "convert"):
        uid = entry["series_uid"]
        scan = read_scan(source, dataset, entry)
        near = near_lungs(scan, dataset)
        write_image(image_path(raw, uid, split == "test"), near.hu, near.grid)
        if split != "test":
            label = dataclasses.replace(scan, hu=label_of(scan, agreement(data)))
            write_image(label_path(raw, uid), near_lungs(label, dataset).hu, near.grid)
    train, validation = (
        [e["series_uid"] for e in dataset.scans(split)] for split in ("train", "validation")
    )
    write_text(
        folder / "splits_final.json", json.dumps([{"train": train, "val": validation}], indent=1)
    )
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "nodule": NODULE, "ignore": IGNORED},
        "numTraining": len(train) + len(validation),
        "file_ending": SUFFIX,
    }
    write_text(folder / "dataset.json", json.dumps(description, indent=1))
    write_text(folder / MADE_FROM, truth)


def truth_of(dataset: Dataset, data: ConfigDict) -> dict[str, Any]:
    """All that scans, split and labels depend on, as JSON; `data` is config.data."""
    return {"data": identity(dataset), "fold": dataset.fold, "readers": agreement(data)}


def read_scan(source: Source, dataset: Dataset, entry: dict) -> Scan:
    """The scan of a manifest's entry as it was when it was prepared.

    Raises:
      InputError: it is not in the source, or has changed since.
    """
    uid = entry["series_uid"]
    if uid not in source.subsets or source.scan_files(uid).content() != entry["made_from"]["input"]:
        raise InputError(
            f"{source.root}: series {uid} is not as it was prepared in {dataset.folder}; "
            "prepare it again"
        )
    return source.read_matched(uid)[0]


def near_lungs(scan: Scan, dataset: Dataset) -> Volume:
    """The scan's own voxels, turned to LPS, as far around its lungs as the dataset holds."""
    return crop_to_lungs(scan, dataset.manifest["settings"]["margin_mm"])
