"""The scored splits of several folds as one: LUNA16's ten-fold cross-validation.

Every metric is a function of what was stored of each scan, so the folds' scans together give the
cross-validated scores as if one run had scored them all: FROC is that of the union of the folds'
marks, the protocol of Setio et al. 2017. Each fold keeps the thresholds that were chosen on its own
validation scans, and its own second stage where that decided with it what is a finding; FROC is of
the segmentation's marks all the same.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from lung_unet import __version__
from lung_unet.errors import InputError
from lung_unet.evaluation.resume import folder_of, scored_split, write_result
from lung_unet.evaluation.scoring import VERSION
from lung_unet.evaluation.split import one_or_all, write_results
from lung_unet.workdir import NAME

OWN = ("fold", "point", "second_stage")  # what each fold has of its own
OF_A_FOLD = ("config.data.fold", "config.seed")  # and each of its members


def gather(workdirs: Sequence[pathlib.Path], split: str, output: pathlib.Path) -> dict[str, Any]:
    """Scores all folds' scans together, writes what lung_unet.evaluate writes, and returns what
    metrics.json holds. In which order the folds are given changes nothing.

    Raises:
      InputError: a split that is not scored whole, a scan that two folds have, folds of other
        settings or datasets, or an output that is the workdir of a run.
    """
    if (output / NAME).exists():  # its scores would be replaced
        raise InputError(f"{output}: is the workdir of a run; choose another --output")
    folds = [(workdir, *scored_split(workdir, split)) for workdir in workdirs]
    for workdir, _, own in folds:
        if workdir.resolve() == output.resolve():
            raise InputError(f"{output}: is one of the folds; choose another --output")
        if own.get("version") != VERSION:
            raise InputError(
                f"{workdir}: was scored by another version of lung_unet; run python -m "
                f"lung_unet.evaluate --split={split} for it"
            )
        if isinstance(own["fold"], list):
            raise InputError(f"{workdir}: holds several folds already; give their own workdirs")
    folds.sort(key=lambda fold: fold[2]["fold"])
    settings = [own for *_, own in folds]
    owner: dict[str, pathlib.Path] = {}
    for workdir, scans, own in folds:
        _check(folds[0][0], settings[0], workdir, own)
        for uid in scans:
            if uid in owner:
                raise InputError(
                    f"{owner[uid]} and {workdir}: both scored {uid}; give each fold once"
                )
            owner[uid] = workdir
    own_keys = [key for key in (*OWN, "members") if key in settings[0]]
    together = settings[0] | {key: [own[key] for own in settings] for key in own_keys}
    folder = folder_of(output, split)
    for path in folder.glob("*.json"):
        if path.stem not in owner:
            path.unlink()
    scored = [result for _, scans, _ in folds for result in scans.values()]
    for result in scored:
        write_result(folder / f"{result['series_uid']}.json", together, len(scored), result)
    points = [own["point"] for own in settings]
    about = {
        "thresholds": {name: _one_or_each([p[name] for p in points]) for name in points[0]},
        "split": split,
        "step": [one_or_all([m["step"] for m in own["members"]]) for own in settings],
        "folds": [own["fold"] for own in settings],
    }
    return write_results(output, split, scored, about, _facts(settings), [])


def _one_or_each(values: list[float]) -> float | list[float]:
    return one_or_all(values[:1] if len(set(values)) == 1 else values)


def _facts(folds: list[dict]) -> dict[str, str]:
    """What a reader of the report wants to know of the folds, of which these are the settings."""
    networks = [m for own in folds for m in own["members"]]
    mask = ", ".join(f"{own['point']['threshold']:g}" for own in folds)
    regions = ", ".join(map(_limit, folds))
    return {
        "Folds": ", ".join(str(own["fold"]) for own in folds),
        "Checkpoints": "steps " + ", ".join(str(m["step"]) for m in networks),
        "Patch": _each(networks, "data.patch", " × "),
        "Channels": _each(networks, "model.channels", " "),
        "Truth": f"voxels that {folds[0]['readers']} or more readers outlined",
        "Mask": f"probability above {mask} in regions above {regions}, by fold",
        "Versions": f"lung_unet {__version__}",
    }


def _limit(fold: dict) -> str:
    """What decides which regions are findings, in a few words."""
    both = fold.get("second_stage", {}).get("finding_threshold")
    if both is not None:
        return f"{both:.3g} (both stages' score)"
    return f"{fold['point']['finding_threshold']:g}"


def _each(networks: list[dict], key: str, between: str) -> str:
    """The different values of a setting."""
    return " or ".join(dict.fromkeys(between.join(map(str, m["config"][key])) for m in networks))


def _check(a: pathlib.Path, first: dict, b: pathlib.Path, other: dict) -> None:
    one, two = _shared(first), _shared(other)
    for key in sorted(one.keys() | two.keys()):
        if one.get(key) != two.get(key):
            what = f"another {key} ({one.get(key)} and {two.get(key)})"
            if key == "data":
                what = "another dataset, or another version of it"
            raise InputError(
                f"{a} and {b}: were scored with {what}; only folds of one recipe can be gathered"
            )


def _shared(settings: dict) -> dict[str, Any]:
    """What all folds have in common, by names that tell what differs."""
    shared = {key: value for key, value in settings.items() if key not in (*OWN, "members")}
    shared["count of members"] = len(settings["members"])
    shared["number of stages"] = 2 if "second_stage" in settings else 1
    members = [
        {
            f"{kind}.{key}": value
            for kind in ("config", "evaluation")
            for key, value in member[kind].items()
            if f"{kind}.{key}" not in OF_A_FOLD
        }
        for member in settings["members"]
    ]
    # a mean is that of its members in any order
    for number, own in enumerate(sorted(members, key=lambda own: json.dumps(own, sort_keys=True))):
        where = f"member {number}'s " if number else ""
        shared |= {where + key: value for key, value in own.items()}
    return shared
