"""External validation: every scan of a dataset that no run has seen, and nothing chosen on it."""

import pathlib
from collections.abc import Iterable, Sequence

from lung_unet.data.manifest import ALL, Dataset
from lung_unet.errors import InputError
from lung_unet.evaluation.external import External, Known
from lung_unet.evaluation.operating_point import chosen_on, given_thresholds, operating_point
from lung_unet.evaluation.operating_search import GRID
from lung_unet.members import scan_names, used
from lung_unet.workdir import Run, identity


def external_validation(
    runs: Sequence[Run],
    steps: Sequence[int],
    dataset: Dataset,
    thresholds: pathlib.Path | None = None,
) -> External:
    """What an external validation of the runs' checkpoints on a dataset, which
    `members.dataset_to_score` has checked, is made with; thresholds are those of a folder, by
    default the workdir of a single run.

    Raises:
      InputError: no thresholds were chosen for these runs together, or they were chosen on scans
        of the dataset.
    """
    folder = thresholds or runs[0].workdir
    if len(given_thresholds(runs[0].config)) == len(GRID):
        point, said = operating_point(runs, steps, folder), "given by the configuration"
    elif len(runs) > 1 and thresholds is None:
        raise InputError(
            "--thresholds is missing: the folder that these runs were scored in together, which "
            "chose their thresholds"
        )
    else:
        point, said = operating_point(runs, steps, folder), _check_chosen(runs, dataset, folder)
    own = dataset.scans(ALL)
    by_split = [used(run) for run in runs]
    seen = [e for own in by_split for split in ("train", "validation") for e in own[split]]
    tested = {name for own in by_split for e in own["test"] for name in scan_names(e)}
    return External(
        data=dataset.folder.resolve().name,
        identity=identity(dataset),
        own=_known(own),
        used=_known({e["series_uid"]: e for e in seen}.values()),
        tested=sum(not tested.isdisjoint(scan_names(e)) for e in own),
        point=point,
        thresholds=said,
    )


def _check_chosen(runs: Sequence[Run], dataset: Dataset, folder: pathlib.Path) -> str:
    """Where the thresholds kept in a folder come from, in words; refuses those chosen on the
    dataset."""
    data, scans = chosen_on(folder)
    here = {entry["series_uid"] for entry in dataset.scans(ALL)}
    if data == identity(dataset) or here & scans:
        raise InputError(
            f"{folder}: its thresholds were chosen on scans of {dataset.folder}; give --thresholds "
            "of other scans"
        )
    if all(data == run.data for run in runs):
        return "chosen on the validation split of the runs' own dataset"
    return (
        f"chosen on {len(scans)} other scans, in {folder.name}; of their patients nothing is known"
    )


def _known(entries: Iterable[dict]) -> Known:
    patients = [entry.get("patient") for entry in entries]
    named = [patient for patient in patients if patient]
    return Known(len(patients), len(named), len(set(named)))
