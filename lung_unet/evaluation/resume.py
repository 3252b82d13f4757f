"""Work on a split scan by scan that goes on where it was interrupted."""

import json
import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lung_unet.command import frozen
from lung_unet.data.labels import agreement
from lung_unet.data.manifest import Dataset
from lung_unet.data.pipeline import scan_records
from lung_unet.data.records import ScanRecord
from lung_unet.files import remove_leftovers, write_text

RESULT = "result"


def made_with(workdir: pathlib.Path, config: ConfigDict, data: str, step: int) -> dict:
    """Everything that a prediction of a run's checkpoint, and its truth, depend on; as JSON.

    `data` is the dataset's identity, of lung_unet/workdir.py.
    """
    return {
        "data": data,
        "fold": config.data.fold,
        "readers": agreement(config.data),
        "step": step,
        "checkpoint": saved(workdir / "checkpoints" / str(step)),
        "patch": list(config.data.patch),
        "window_hu": list(config.data.window_hu),
        "model": frozen(config.model),
        "evaluation": frozen(config.evaluation),
    }


def saved(checkpoint: pathlib.Path) -> int | None:
    """When Orbax saved a checkpoint: another training run reaches the same step at another time."""
    path = checkpoint / "_CHECKPOINT_METADATA"
    return json.loads(path.read_text()).get("commit_timestamp_nsecs") if path.is_file() else None


def folder_of(workdir: pathlib.Path, split: str) -> pathlib.Path:
    """Where the scans of a split are kept once they are scored."""
    return workdir / "evaluation" / split


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
    `settings` left there is taken from there; everything else there is removed.
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
                entry = {"settings": settings, RESULT: work(records[index])}
                write_text(path, json.dumps(entry, allow_nan=False))
                stored = read_result(path)  # as a call that only reads it will see it
            assert stored is not None
            results.append(stored[RESULT])
    return results


def read_result(path: pathlib.Path) -> dict | None:
    """{"settings", "result"} of a file that `each_scan` wrote; None if it is none."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return stored if {"settings", RESULT} <= stored.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
