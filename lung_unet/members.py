"""Runs that predict together: which of them can, and on which scans that is worth something."""

from collections.abc import Sequence
from typing import Any

from lung_unet.data.labels import agreement
from lung_unet.data.manifest import Dataset
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
    have none in common: what one tests on the others were trained on.

    Raises:
      InputError: a run was trained on scans that would be scored, or nobody can tell.
    """
    first, *others = runs
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
        _check_new(run, new, split)
    return new


def _check_new(run: Run, dataset: Dataset, split: str) -> None:
    """Returns where a run has not seen the scans of a dataset that is not its own."""
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
        trained = Dataset(run.dataset, run.config.data.fold, shards=False)
        if identity(trained) != run.data:
            raise InputError("it is another version now")
    except InputError as error:
        raise InputError(
            f"{run.dataset}: does not tell any more which scans {run.workdir} was trained on, so "
            f"whether those of {dataset.folder} are new to it ({error}); its manifest.json there "
            "would do"
        ) from error
    seen = {name for entry in trained.scans("train") for name in _names(entry)}
    for entry in (*dataset.scans("validation"), *dataset.scans(split)):
        if seen.intersection(_names(entry)):
            raise InputError(
                f"{dataset.folder}: {run.workdir} was trained on its scan {entry['series_uid']}; "
                "score scans that are new to it"
            )


def _names(entry: dict) -> tuple[str, str]:
    """What tells that a scan is the same one: its series, or its voxels under any name."""
    return entry["series_uid"], entry["voxels"]
