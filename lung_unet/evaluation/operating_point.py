"""From which probability a voxel is nodule and a region a mark: chosen on the validation split.

A setting that `config.evaluation` gives as a number is that number. The others are chosen once a
checkpoint (or ensemble), each of a small grid (operating_search.py), and kept in
WORKDIR/operating_point.json:

threshold             of the mask's voxels; and
finding_threshold     not below it, of a region's own probability to be in the mask: together, the
                      highest Dice of all scans' voxels, on their own grids (the nodules' own
                      would not mind false positives). So what is surely a nodule can be drawn to
                      its faint edge, and what is as faint everywhere left out
candidate_threshold   not above it, for FROC's fainter marks; and
min_diameter_mm       of what is kept of mask and marks: together, the highest CPM. Not above 3 mm,
                      LUNA16's smallest nodule: on few scans a larger one looks better by chance
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from lung_unet import workdir as runs
from lung_unet.data.manifest import Dataset
from lung_unet.data.records import ScanRecord
from lung_unet.errors import InputError
from lung_unet.evaluation.candidates import VERSION, Candidate
from lung_unet.evaluation.ensemble import Predict
from lung_unet.evaluation.operating_search import GRID, Values, best, examine
from lung_unet.evaluation.resume import each_scan, made_with, member
from lung_unet.files import write_text

NAME = "operating_point.json"


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """See the module. What counts lies strictly above a threshold."""

    threshold: float
    finding_threshold: float
    candidate_threshold: float
    min_diameter_mm: float

    def findings(self, regions: list[Candidate]) -> list[Candidate]:
        """Those that are in the mask, of the regions above its threshold."""
        return [region for region in regions if region.probability > self.finding_threshold]


def operating_point(
    members: Sequence[runs.Run], steps: Sequence[int], folder: pathlib.Path
) -> OperatingPoint:
    """What was chosen in a folder for the checkpoints of runs, in any order, or their configuration
    gives.

    Raises:
      InputError: it was not chosen for them, the configuration gives what cannot be, or all there
        is, and the folder is not the first run's own.
    """
    given = given_thresholds(members[0].config)
    own = folder.resolve() == members[0].workdir.resolve()
    if len(given) == len(GRID):
        if not own:
            raise InputError(
                f"--thresholds={folder}: is not read, as the configuration of "
                f"{members[0].workdir} gives all thresholds; leave it out"
            )
        return OperatingPoint(**given)
    wanted = {
        "members": _in_order([member(*both) for both in zip(members, steps, strict=True)]),
        "candidates": VERSION,
        "grid": _as_json(_values(given)),
    }
    stored = _stored(folder)
    if stored is not None:
        made_for = stored[1] | {"members": _in_order(stored[1].get("members", []))}
        if wanted.items() <= made_for.items():
            return stored[0]
    names = ",".join(str(run.workdir) for run in members)
    what = f"its checkpoint of step {steps[0]}" if len(members) == 1 else "these together"
    if own and len(members) == 1:
        remedy = ""
    elif (folder / runs.NAME).exists():  # of a run, where nothing else can be scored
        remedy = " --output=DIR, then give --thresholds=DIR"
    else:
        what, remedy = f"{what} in {folder}", f" --output={folder}"
    raise InputError(
        f"{names}: no thresholds were chosen yet for {what}; run python -m lung_unet.evaluate "
        f"--workdir={names}{remedy}"
    )


def chosen_on(folder: pathlib.Path) -> tuple[str | None, set[str]]:
    """(identity of the dataset, series UIDs) that the thresholds kept in a folder were chosen on;
    None where none are kept."""
    stored = _stored(folder)
    scans = {path.stem for path in (folder / "evaluation" / "operating_point").glob("[!.]*.json")}
    return (stored[1].get("data"), scans) if stored else (None, set())


def _in_order(members: Sequence[dict]) -> list[dict]:
    """The members in one order, as their mean has none."""
    same = [own | {"config": runs.drawn_alone(own.get("config", {}))} for own in members]
    return sorted(same, key=lambda own: json.dumps(own, sort_keys=True))


def choose(
    predictor: Predict,
    config: ConfigDict,
    dataset: Dataset,
    workdir: pathlib.Path,
    members: Sequence[dict],
    view: Callable[[ScanRecord], ScanRecord] = lambda record: record,
) -> OperatingPoint:
    """What the configuration gives, or was chosen in the workdir for these members of
    resume.py:made_with; chooses and stores there what is not there yet.

    Each validation scan is predicted once, and what was found of it is kept, so that a choice that
    was interrupted goes on.
    """
    given = given_thresholds(config)
    if len(given) == len(GRID):
        return OperatingPoint(**given)
    values = _values(given)
    settings = made_with(config, dataset, members) | {"grid": _as_json(values)}
    stored = _stored(workdir)
    if stored and stored[1] == settings:
        return stored[0]
    scans = each_scan(
        dataset,
        "validation",
        workdir / "evaluation" / "operating_point",
        settings,
        lambda record: examine(predictor, config, view(record), values),
        "choose thresholds",
    )
    chosen, scores = best(scans, values)
    entry = {**chosen, **scores, "settings": settings}
    write_text(workdir / NAME, json.dumps(entry, indent=1, allow_nan=False))
    return OperatingPoint(**chosen)


def given_thresholds(config: ConfigDict) -> dict[str, float]:
    """What the configuration gives as numbers.

    Raises:
      InputError: numbers that cannot be.
    """
    given = {k: float(config.evaluation[k]) for k in GRID if config.evaluation[k] is not None}
    for name, number in given.items():
        if name != "min_diameter_mm" and not 0 < number < 1:
            raise InputError(f"config.evaluation.{name} = {number:g}: choose above 0 and below 1")
        if name == "min_diameter_mm" and not 0 <= number < 100:
            raise InputError(f"config.evaluation.{name} = {number:g}: choose 0 to 100 mm")
    lowest = given.get("threshold", GRID["threshold"][0])
    if given.get("finding_threshold", 1) < lowest:
        raise InputError(
            f"config.evaluation.finding_threshold = {given['finding_threshold']:g}: choose "
            f"{lowest:g} or more, so that it is not below the mask's threshold"
        )
    if given.get("candidate_threshold", 0) > lowest:
        raise InputError(
            f"config.evaluation.candidate_threshold = {given['candidate_threshold']:g}: choose "
            f"{lowest:g} or less, so that it is not above the mask's threshold"
        )
    return given


def _values(given: dict[str, float]) -> Values:
    """The grid that the others are chosen from. A threshold of voxels that is given is tried of
    regions and marks too, so that one that is not below it, and one not above it, is there."""
    values = GRID | {name: (number,) for name, number in given.items()}
    for name in ("finding_threshold", "candidate_threshold"):
        if name not in given and "threshold" in given:
            values[name] = tuple(sorted({*GRID[name], given["threshold"]}))
    return values


def _as_json(values: Values) -> dict[str, list[float]]:
    return {name: list(numbers) for name, numbers in values.items()}


def _stored(workdir: pathlib.Path) -> tuple[OperatingPoint, dict] | None:
    """What was chosen there, and the settings that it was chosen for."""
    try:
        entry = json.loads((workdir / NAME).read_text(encoding="utf-8"))
        point = OperatingPoint(**{name: entry[name] for name in GRID})
        return point, dict(entry["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
