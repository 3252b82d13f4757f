"""Our second stage within the same budget, and both stages as a system of its own.

What the second stage takes (predicting the training scans for candidates, and training on them) is
part of the budget; choosing thresholds, and the weight of each stage, on the validation split is
not, as it is not for any system.
"""

import json
import pathlib

from ml_collections import ConfigDict

from lung_unet.benchmark.peers.exchange import spending
from lung_unet.benchmark.peers.schedule import probe, scheduled
from lung_unet.data.manifest import Dataset
from lung_unet.errors import Stopped
from lung_unet.evaluation.judge import SecondStage
from lung_unet.evaluation.resume import folder_of, scored_split, write_result
from lung_unet.evaluation.second_stage import rows_of
from lung_unet.files import write_text
from lung_unet.second_stage import (
    collect_crops,
    evaluate_candidates,
    open_collector,
    open_second_stage,
)
from lung_unet.train.classification import FOLDER
from lung_unet.train.loop import train
from lung_unet.workdir import claim, load

BOTH = "two_stages"


def train_second_stage(
    config: ConfigDict,
    workdir: pathlib.Path,
    first: pathlib.Path,
    dataset: Dataset,
    budget_s: float,
    seconds: dict[str, float],
) -> SecondStage:
    """Trains a classifier on the candidates of a segmentation run whose thresholds are chosen.

    `seconds["train"]` is what the segmentation took, and then what both did, of `budget_s`.

    Raises:
      InputError: what is left of the budget is too little. `Stopped` by SIGTERM.
    """
    config = config.copy_and_resolve_references()
    config.candidates.workdir, config.data.fold = str(first), dataset.fold
    with spending(seconds, "train"):
        collect_crops(open_collector(workdir, config, dataset))
    steps = probe(config, dataset, budget_s - seconds["train"], workdir / FOLDER)
    config = scheduled(config, steps)
    claim(workdir, config, dataset)
    with spending(seconds, "train"):
        if not train(config, dataset, workdir):
            raise Stopped(f"{workdir}: was stopped; run the same command again")
    evaluate_candidates(workdir, config, dataset, "validation")
    return open_second_stage(workdir, load(first))


def score_both(out: pathlib.Path, second: SecondStage, dataset: Dataset) -> None:
    """Of a run that was scored with a second stage: gives its marks the score of both stages, so
    that its FROC is that of both, as its masks are."""
    scored, settings = scored_split(out, "test")
    folder = folder_of(out, "second_stage_test")
    judged = second.judge_split(
        dataset, "test", list(scored.values()), folder, settings, pictures=True
    )  # the same call as evaluate_split's, so that nothing is done twice
    for scan, marks in zip(judged, rows_of(judged, second.weight), strict=True):
        uid = scan["series_uid"]
        path = folder_of(out, "test") / f"{uid}.json"
        result = scored[uid] | {"marks": marks.tolist()}
        write_result(path, settings | {"marks": "of both stages"}, len(scored), result)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    both = metrics["second_stage"]
    known = {"cpm": both["intervals"]["cpm"], "sensitivity": dict.fromkeys(both["sensitivity"])}
    metrics |= {
        "cpm": both["cpm"],
        "sensitivity": both["sensitivity"],
        "intervals": metrics["intervals"] | known,
    }
    write_text(out / "metrics.json", json.dumps(metrics, indent=1))
