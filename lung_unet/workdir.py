"""A run's folder and what it was made with, so that no other run is continued or scored in it.

WORKDIR/config.json     configuration and dataset of the run
WORKDIR/checkpoints/    WORKDIR/metrics.jsonl    WORKDIR/tensorboard/
WORKDIR/goodput.json    WORKDIR/skipped.json
WORKDIR/metrics.json    WORKDIR/report.html      WORKDIR/figures/     WORKDIR/froc/
WORKDIR/scans.csv       WORKDIR/nodules.csv      WORKDIR/candidates.csv
WORKDIR/operating_point.json    WORKDIR/second_stage.json    of the validation split
WORKDIR/evaluation/     what each scan scored, so that scoring goes on where it was
WORKDIR/validation/     WORKDIR/train/           metrics and report of these splits
WORKDIR/finished.json   written by main, last: the run is done
WORKDIR/phantom/        WORKDIR/data/            WORKDIR/candidates/  where main made them itself

A fold (config.data.fold) is a run of its own, in a workdir of its own.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from lung_unet.command import flattened, frozen
from lung_unet.data.manifest import Dataset
from lung_unet.data.shards import MANIFEST, Settings
from lung_unet.errors import InputError
from lung_unet.files import write_text
from lung_unet.finished import is_finished, unfinish

NAME = "config.json"
FORMAT = 2  # of that file: rises when a setting comes or goes, as a run then means something else
GIVE = {  # where a run of another task was given
    "segmentation": "a segmentation run; a classifier is given as --classifier, beside one",
    "classification": "a classifier, a run of configs/classifier3d.py",
}
# What may differ when a run goes on: where and how it runs, what it does about broken data, and how
# long it is, which stretches the rest of the learning rate's schedule.
FREE = (
    "variant", "data.dir", "data.lidc_xml", "data.threads", "data.prefetch", "data.on_broken",
    "candidates.workdir", "candidates.csv",  # collect.py knows them by what they hold
    "model.remat", "mesh", "timeout_s", "optimizer.shard", "evaluation", "train.steps",
    "train.accumulate", "train.log_every", "train.eval_every", "train.checkpoint_every",
    "train.on_nan", "train.max_rollbacks",
)  # fmt: skip


def identity(dataset: Dataset) -> str:
    """A hash of what the dataset holds."""
    return hash_of(dataset.identity)


def hash_of(identity: dict) -> str:
    """A hash of the identity of a dataset."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def claim(workdir: pathlib.Path, config: ConfigDict, dataset: Dataset) -> None:
    """Marks the workdir as this run's, or refuses one that another run has trained in.

    finished.json is removed where the run is to be longer, or scored otherwise, or is another one.

    Raises:
      InputError: the workdir cannot be written, or was made by another configuration or dataset.
    """
    found = check_config(workdir, config)
    check_data(workdir, dataset.identity, dataset.folder)
    folder = dataset.folder.absolute()
    if folder.is_relative_to(workdir.absolute()):  # a workdir that moves takes its data along
        folder = folder.relative_to(workdir.absolute())
    wanted = {
        "format": FORMAT,
        "config": frozen(config),
        "data": identity(dataset),
        "dataset": str(folder),
        "settings": dataset.manifest["settings"],  # predict scales and crops a scan by them
    }
    try:
        if not found or _more_to_do(found.config, config):
            unfinish(workdir)
        write_text(workdir / NAME, json.dumps(wanted, indent=1))
    except OSError as error:
        raise InputError(
            f"{workdir}: cannot be written ({error.strerror}); choose another --workdir"
        ) from error


def check_config(workdir: pathlib.Path, config: ConfigDict) -> "Run | None":
    """The run that was trained in a workdir, if there is one and a configuration goes on with it.

    Raises:
      InputError: the configuration is another one.
    """
    if not is_trained(workdir):
        return None
    if not (workdir / NAME).exists():
        raise InputError(f"{workdir}: holds checkpoints but no {NAME}; choose another --workdir")
    found = _load(workdir / NAME)
    for key, said in differences(recipe(found.config), recipe(config)):
        made, cut = workdir / "data", workdir / "candidates"
        kept = f", with --config.data.dir={made} for its data" if made.exists() else ""
        if cut.exists() and not key.startswith(("data.", "candidates.")):
            kept += f", and move {cut} there for its candidates"
        raise InputError(f"{workdir}: was made with {said}; choose another --workdir{kept}")
    if config.train.steps < found.config.train.steps and is_finished(workdir):
        raise InputError(
            f"{workdir}: is done, with {found.config.train.steps} steps; choose no fewer, or "
            "another --workdir"
        )
    return found


def check_data(workdir: pathlib.Path, found: dict, scans: str | os.PathLike) -> None:
    """Returns where a workdir was not trained in yet, or on the dataset of this identity.

    Raises:
      InputError: it was trained on another one; `scans` are what was given now.
    """
    if not (is_trained(workdir) and (workdir / NAME).exists()):
        return
    run = _load(workdir / NAME)
    if run.data == hash_of(found):
        return
    own = workdir / "data"
    if run.format != found["settings"]["format"]:
        raise InputError(
            f"{workdir}: was trained on a dataset of format {run.format}, and that of {scans} has "
            f"format {found['settings']['format']}; end it with the version of lung_unet that "
            "began it, or choose another --workdir"
        )
    remedy = "choose another --workdir"
    if (own / MANIFEST).exists() and own.resolve() != pathlib.Path(scans).resolve():
        remedy += f", or --config.data.dir={own} for the scans as they were"
    raise InputError(
        f"{workdir}: was trained on another dataset or another version of it than {scans}"
        f"{_changes(own, found)}; {remedy}"
    )


def _changes(folder: pathlib.Path, now: dict) -> str:
    """Which scans differ from those of a prepared folder, in a few words; "" where none tells."""
    try:
        before = Dataset(folder, None, shards=False).identity
    except InputError:
        return ""
    known = {uid: (subset, content) for uid, subset, content in before["scans"]}
    found = {uid: (subset, content) for uid, subset, content in now["scans"]}
    changed = [u for u in {**known, **found} if known.get(u) != found.get(u)]
    return f" ({len(changed)} of its scans are not as they were, as {changed[0]})" * bool(changed)


def is_trained(workdir: pathlib.Path) -> bool:
    """Whether training in a workdir left anything that depends on its configuration."""
    return any(workdir.glob("checkpoints/*")) or (workdir / "skipped.json").exists()


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Of each setting that two recipes do not share: its name, and in words what it was and is."""
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield key, f"config.{key} = {old.get(key)}, not {new.get(key)}"


def _more_to_do(before: ConfigDict, now: ConfigDict) -> bool:
    longer = now.train.steps > before.train.steps
    return longer or frozen(now.evaluation) != frozen(before.evaluation)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a workdir says of itself: `settings` are those that the dataset was prepared with."""

    workdir: pathlib.Path
    config: ConfigDict
    settings: Settings
    dataset: pathlib.Path
    data: str
    format: int  # of the dataset


def load(workdir: pathlib.Path, task: str = "segmentation") -> Run:
    """The run that made a workdir.

    Raises:
      InputError: it is not a run's folder, or its run has another task.
    """
    if not workdir.is_dir():
        raise InputError(f"{workdir}: no such folder; give the --workdir of a training run")
    path = workdir / NAME
    if not path.exists():
        raise InputError(f"{workdir}: has no {NAME}; give the --workdir of a training run")
    run = _load(path)
    if run.config.task != task:
        raise InputError(f"{workdir}: is a run of {run.config.task}; give {GIVE[task]}")
    return run


def _load(path: pathlib.Path) -> Run:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.get("format") != FORMAT:
            raise InputError(
                f"{path.parent}: was made by another version of lung_unet; use that one, or train "
                "again in another --workdir"
            )
        return Run(
            path.parent,
            ConfigDict(found["config"]),
            Settings.from_json(found["settings"]),
            _dataset_of(path.parent, found["dataset"]),
            found["data"],
            found["settings"]["format"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is broken ({error}); choose another --workdir") from error


def _dataset_of(workdir: pathlib.Path, stored: str) -> pathlib.Path:
    folder = workdir / stored
    made = workdir / "data"
    # Workdirs of before that were moved name the place where they were.
    return folder if (folder / MANIFEST).exists() or not (made / MANIFEST).exists() else made


def recipe(config: ConfigDict) -> dict[str, Any]:
    """What a run must keep of its configuration, by dotted names; as JSON."""
    free = tuple(f"{name}." for name in FREE)
    flat = flattened(frozen(config))
    return drawn_alone({key: flat[key] for key in flat if not f"{key}.".startswith(free)})


def drawn_alone(flat: dict[str, Any]) -> dict[str, Any]:
    """A recipe without the augmentations of probability 0: the same as a recipe from before they
    existed, and as one that a version before this one stored."""
    never = tuple(
        key.removesuffix("probability")
        for key, value in flat.items()
        if key.startswith("augment.") and key.endswith(".probability") and value == 0
    )
    return {key: value for key, value in flat.items() if not key.startswith(never)}
