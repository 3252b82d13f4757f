"""Runs that predict together: which of them can, and on which scans that is worth something."""

from collections.abc import Sequence
from typing import Any

from lung_unet.data.labels import agreement
from lung_unet.data.manifest import ALL, SPLITS, Dataset
from lung_unet.data.shards import Settings
from lung_unet.errors import InputError
from lung_unet.workdir import Run, identity

THRESHOLDS = ("threshold", "finding_threshold", "candidate_threshold", "min_diameter_mm")


def check_together(runs: Sequence[Run]) -> None:
    """Returns where the mean of the runs' probabilities means something.

    Networks, patches, windows of intensity, mirrors and recipes may differ.

    Raises:
      InputError: two runs see another grid, learnt to mark something else, or were given other
        thresholds.
    """
    first, *others = runs
    for other in others:
        one, two = _shared(first), _shared(other)
        for name in one:
            if one[name] != two[name]:
                raise InputError(
                    f"{first.workdir} and {other.workdir}: {name} is {one[name]} in one and "
                    f"{two[name]} in the other; only runs that share it can be averaged"
                )


def _shared(run: Run) -> dict[str, Any]:
    given = {f"config.evaluation.{name}": run.config.evaluation[name] for name in THRESHOLDS}
    readers = {"the number of readers that make a voxel nodule": agreement(run.config.data)}
    return _geometry(run.settings) | readers | given


def _geometry(settings: Settings) -> dict[str, Any]:
    return {"spacing_mm": settings.spacing_mm, "margin_mm": settings.margin_mm}


def dataset_to_score(runs: Sequence[Run], folder: str | None, split: str) -> Dataset:
    """The dataset that the runs are to be scored on: their own, which may have moved to `folder`,
    or another one there of which no run has seen the scans.

    Of its own dataset a run may score any split, as it was made for its fold. Runs of several folds
    have none in common: what one tests on the others were trained on. Every scan of another
    dataset is its split "all", whatever its subsets; nothing is chosen on it.

    Raises:
      InputError: a run was trained on scans that would be scored, or chosen by them, or on others
        of their patients, or nobody can tell.
    """
    first, *others = runs
    if split == ALL:
        return _all_new(runs, folder)
    fold = first.config.data.fold
    # Another dataset has no such fold: of its subsets the first is the test split.
    own = Dataset(folder or first.dataset, None)
    strangers = [run for run in runs if run.data != identity(own)]
    if not strangers:
        for other in others:
            if other.config.data.fold != fold:
                raise InputError(
                    f"{first.workdir} and {other.workdir}: are of folds {fold} and "
                    f"{other.config.data.fold}, so that each was trained on scans that the other "
                    "is tested on; average runs of one fold, or give --data of scans that are new "
                    "to all, or --gather the scores of each fold"
                )
        return Dataset(own.folder, fold)
    if len(strangers) < len(runs) or folder is None:
        raise InputError(
            f"{own.folder}: is not the dataset, or the version of it, that {strangers[0].workdir} "
            "was trained on; its test scans may have been trained on"
        )
    new = Dataset(folder, 0)
    for run in runs:
        _check_new(run, new, ("validation", split))
    return new


def _all_new(runs: Sequence[Run], folder: str | None) -> Dataset:
    if folder is None:
        raise InputError(
            f"--split={ALL}: scores every scan of a dataset that is new to the runs; give it as "
            "--data"
        )
    new = Dataset(folder, None)
    for run in runs:
        if run.data == identity(new):
            raise InputError(
                f"{folder}: is what {run.workdir} was trained on; --split={ALL} scores datasets "
                "that are new to it, of this one score --split=test"
            )
        _check_new(run, new, (ALL,))
    return new


def used(run: Run) -> dict[str, list[dict]]:
    """The manifest's entries of the scans that a run was trained on, and that chose its checkpoint,
    by their split.

    Raises:
      InputError: its dataset is not there any more, or has changed.
    """
    trained = Dataset(run.dataset, run.config.data.fold, shards=False)
    if identity(trained) != run.data:
        raise InputError(f"{run.dataset}: it is another version now")
    return {split: trained.scans(split) for split in SPLITS}


def _check_new(run: Run, dataset: Dataset, splits: Sequence[str]) -> None:
    """Returns where a run has not seen the scans of a dataset that is not its own, nor others of
    their patients; its test scans it has not seen."""
    # Of two keys, or of one and none, nobody can tell whether two scans are the same.
    one, two = (
        _geometry(settings) | {"pseudonym_key": settings.pseudonym_key}
        for settings in (Settings.from_json(dataset.manifest["settings"]), run.settings)
    )
    for name in one:
        if one[name] != two[name]:
            raise InputError(
                f"{dataset.folder}: was prepared with {name} {one[name]!r}, but the dataset of "
                f"{run.workdir} with {two[name]!r}; prepare it alike"
            )
    try:
        own = used(run)
    except InputError as error:
        raise InputError(
            f"{run.dataset}: does not tell any more which scans {run.workdir} was trained on, so "
            f"whether those of {dataset.folder} are new to it ({error}); its manifest.json there "
            "would do"
        ) from error
    for seen, did in (("train", "trained"), ("validation", "validated")):
        scans = {name for entry in own[seen] for name in scan_names(entry)}
        patients = {entry["patient"] for entry in own[seen] if entry.get("patient")}
        for entry in (entry for split in splits for entry in dataset.scans(split)):
            whose = (
                "" if scans.intersection(scan_names(entry)) else "another scan of the patient of "
            )
            if whose == "" or entry.get("patient") in patients:
                raise InputError(
                    f"{dataset.folder}: {run.workdir} was {did} on {whose}its scan "
                    f"{entry['series_uid']}; score scans that are new to it, of other patients"
                )


def scan_names(entry: dict) -> tuple[str, str]:
    """What tells that a scan is the same one: its series, or its voxels under any name."""
    return entry["series_uid"], entry["voxels"]
