"""What lung_unet and its peers hand each other: scans in nnU-Net's raw layout, probabilities back.

RAW/Dataset001_Nodules/     dataset.json   splits_final.json: one fold, train and val
    imagesTr/<uid>_0000.nii.gz   labelsTr/<uid>.nii.gz     scans to train and to validate on
    imagesTs/<uid>_0000.nii.gz                             scans to test on
OUT/probability/<uid>.npz   of a system: nodule probability, on the image's grid
OUT/system.json             what it is, and the seconds that it took

Imports nothing but NumPy of what a peer's environment may lack.
"""

import argparse
import contextlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from lung_unet.errors import InputError
from lung_unet.files import atomic_path, write_text

DATASET = "Dataset001_Nodules"
SUFFIX = ".nii.gz"
SYSTEM = "system.json"
NODULE, IGNORED = 1, 2  # in a label; nnU-Net wants what it ignores to be the highest


def image_path(raw: pathlib.Path, series_uid: str, test: bool) -> pathlib.Path:
    """Where the image of a scan is; _0000 is nnU-Net's name of the first channel."""
    return raw / DATASET / ("imagesTs" if test else "imagesTr") / f"{series_uid}_0000{SUFFIX}"


def label_path(raw: pathlib.Path, series_uid: str) -> pathlib.Path:
    return raw / DATASET / "labelsTr" / f"{series_uid}{SUFFIX}"


def read_splits(raw: pathlib.Path) -> dict[str, list[str]]:
    """The series of each split: train, validation and test."""
    fold = json.loads((raw / DATASET / "splits_final.json").read_text(encoding="utf-8"))[0]
    test = sorted((raw / DATASET / "imagesTs").glob(f"*{SUFFIX}"))
    names = [path.name.removesuffix(f"_0000{SUFFIX}") for path in test]
    return {"train": fold["train"], "validation": fold["val"], "test": names}


def scored_images(raw: pathlib.Path) -> dict[str, pathlib.Path]:
    """The images that a system predicts, by series: of validation and test."""
    splits = read_splits(raw)
    return {
        uid: image_path(raw, uid, split == "test")
        for split in ("validation", "test")
        for uid in splits[split]
    }


def write_probability(out: pathlib.Path, series_uid: str, probability: np.ndarray) -> None:
    """Writes float32 (z, y, x) of the array that the scan's image file holds."""
    with atomic_path(out / "probability" / f"{series_uid}.npz") as temporary:
        np.savez_compressed(temporary, probability=probability.astype(np.float32))


def read_probability(out: pathlib.Path, series_uid: str, shape: tuple[int, ...]) -> np.ndarray:
    """What `write_probability` wrote of an image of that shape.

    Raises:
      InputError: it is not there, or of another shape, or no probability.
    """
    path = out / "probability" / f"{series_uid}.npz"
    try:
        probability = np.load(path)["probability"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: cannot be read ({error}); predict this scan again") from error
    if probability.shape != shape:
        raise InputError(
            f"{path}: has {probability.shape} voxels (z, y, x), but its image {shape}; "
            "write it on the image's grid"
        )
    if not (probability.min() >= 0 and probability.max() <= 1):
        raise InputError(f"{path}: holds values that are no probability; write 0 to 1")
    return probability


@contextlib.contextmanager
def spending(seconds: dict[str, float], on: str) -> Iterator[None]:
    """Adds the time within to `seconds`."""
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[on] = seconds.get(on, 0.0) + time.monotonic() - start


def write_system(out: pathlib.Path, name: str, seconds: dict[str, float], **facts: Any) -> None:
    """Writes system.json, last of all: `seconds` to prepare and train, and what it was."""
    rounded = {k: round(s, 1) for k, s in seconds.items()}
    content = {"name": name, "seconds": rounded, "written": time.time(), **facts}
    write_text(out / SYSTEM, json.dumps(content, indent=1))


def read_system(out: pathlib.Path) -> dict[str, Any]:
    return json.loads((out / SYSTEM).read_text(encoding="utf-8"))


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The flags of every peer."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=pathlib.Path, required=True, help="scans, nnU-Net's layout")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--minutes", type=float, required=True, help="to train, by the clock")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--mirrors",
        type=int,
        default=1,
        help="1: predict eight mirrors, as the system does; 0: one",
    )
    return parser
