"""Work on a split scan by scan that goes on where it was interrupted."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lung_unet.command import frozen
from lung_unet.data.labels import agreement
from lung_unet.data.manifest import ALL, Dataset
from lung_unet.data.records import ScanRecord
from lung_unet.data.shard_reader import scan_records
from lung_unet.errors import InputError
from lung_unet.evaluation.candidates import VERSION
from lung_unet.files import remove_leftovers, write_text
from lung_unet.workdir import Run, identity, recipe

RESULT = "result"


def made_with(config: ConfigDict, dataset: Dataset, members: Sequence[dict]) -> dict[str, Any]:
    """Everything that predictions of `members`, and their truth, depend on; as JSON."""
    return {
        "data": identity(dataset),
        "fold": dataset.fold,
        "readers": agreement(config.data),
        "members": list(members),
        "candidates": VERSION,
    }


def member(run: Run, step: int) -> dict[str, Any]:
    """Everything that a prediction of a run's checkpoint depends on, as JSON."""
    return {
        "step": step,
        "checkpoint": saved(run.workdir / "checkpoints" / str(step)),
        "config": recipe(run.config),
        "evaluation": frozen(run.config.evaluation),
    }


def saved(checkpoint: pathlib.Path) -> int | None:
    """When Orbax saved a checkpoint: another training run reaches the same step at another time.

    Raises:
      InputError: it is broken.
    """
    path = checkpoint / "_CHECKPOINT_METADATA"
    try:
        return (
            json.loads(path.read_text(encoding="utf-8"))["commit_timestamp_nsecs"]
            if path.is_file()
            else None
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is broken ({error}); move {checkpoint} away and run again, for the next best"
        ) from error


def folder_of(workdir: pathlib.Path, split: str) -> pathlib.Path:
    """Where the scans of a split are kept once they are scored."""
    return workdir / "evaluation" / split


def results_of(workdir: pathlib.Path, split: str) -> pathlib.Path:
    """Where metrics, tables and report of a split go: those of the test split lie in the workdir
    itself, and no other split replaces them. An external validation has a folder of its own."""
    return workdir if split in ("test", ALL) else workdir / split


def each_scan(
    dataset: Dataset,
    split: str,
    folder: pathlib.Path,
    settings: dict,
    work: Callable[[ScanRecord], dict],
    title: str,
) -> list[dict]:
    """What `work`, JSON-able and without NaN, makes of each scan of a split, progress shown.

    Each result is kept in the folder as `<series UID>.json`. What an earlier call with equal
    `settings` left there is taken from there; that of other series is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    records = scan_records(dataset, split)
    uids = [e["series_uid"] for e in dataset.scans(split) if e["files"]["scan"]["records"]]
    for path in folder.glob("*.json"):
        if path.stem not in uids:
            path.unlink()
    results = []
    columns = (
        TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("scans"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns) as progress:
        for index, uid in enumerate(progress.track(uids)):
            path = folder / f"{uid}.json"
            stored = read_result(path)
            if stored is None or stored["settings"] != settings:
                write_result(path, settings, len(uids), work(records[index]))
                stored = read_result(path)  # as a call that only reads it will see it
            assert stored is not None
            results.append(stored[RESULT])
    return results


def write_result(path: pathlib.Path, settings: dict, scans: int, result: dict) -> None:
    """Writes what `read_result` reads; `scans` are as many as the split has."""
    entry = {"settings": settings, "scans": scans, RESULT: result}
    write_text(path, json.dumps(entry, allow_nan=False))


def read_result(path: pathlib.Path) -> dict | None:
    """{"settings", "scans", "result"} of a file that `each_scan` wrote; None if it is none."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored if {"settings", "scans", RESULT} <= stored.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def scored_split(workdir: pathlib.Path, split: str) -> tuple[dict[str, dict], dict]:
    """(results by series UID, settings) of a split that was scored whole.

    Raises:
      InputError: there is no such folder, no whole split in it, or it is a classifier's.
    """
    if not workdir.is_dir():
        raise InputError(f"{workdir}: no such folder; give the workdir of a scored run")
    paths = sorted(folder_of(workdir, split).glob("[!.]*.json"))  # not what a kill left half done
    stored = [read_result(path) for path in paths]
    entries = [entry for entry in stored if entry is not None]
    remedy = f"run python -m lung_unet.evaluate --split={split} for it"
    if not entries:
        raise InputError(f"{workdir}: its {split} split is not scored yet; {remedy}")
    settings, scans = entries[0]["settings"], entries[0]["scans"]
    if "data" not in settings:
        raise InputError(
            f"{workdir}: is a run of classification; give the folder of a segmentation run, scored "
            f"with --classifier={workdir}"
        )
    if len(entries) != scans or any(entry["settings"] != settings for entry in entries):
        raise InputError(f"{workdir}: its {split} split is scored in part only; {remedy}")
    return {entry[RESULT]["series_uid"]: entry[RESULT] for entry in entries}, settings
