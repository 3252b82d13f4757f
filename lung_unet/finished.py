"""WORKDIR/finished.json, which main writes last: the run is trained and scored to its end.

metrics.json does not say that: lung_unet.evaluate writes it too, also while a run is being trained.
"""

import json
import pathlib

from lung_unet.files import write_text

NAME = "finished.json"
METRICS = {"segmentation": "dice", "classification": "average_precision"}  # what ranks checkpoints


def finish(workdir: pathlib.Path, steps: int) -> None:
    """Says that a run is done, with so many steps."""
    write_text(workdir / NAME, json.dumps({"steps": steps}) + "\n")


def unfinish(workdir: pathlib.Path) -> None:
    """Takes back that a run is done."""
    (workdir / NAME).unlink(missing_ok=True)
    (workdir / "metrics.json").unlink(missing_ok=True)  # by which runs of before are known


def is_finished(workdir: pathlib.Path) -> bool:
    """Whether a workdir's run is done, with the steps of its config.json.

    Runs of before finished.json are known by the test scores of the best of all their checkpoints.
    """
    if (workdir / NAME).exists():
        return True
    try:
        config = _read(workdir / "config.json")["config"]
        metrics = _read(workdir / "metrics.json")
        scores = {
            int(path.parts[-3]): _read(path)[METRICS[config["task"]]]
            for path in workdir.glob("checkpoints/[0-9]*/metrics/metrics")
        }
        best = max(score for score in scores.values() if score is not None)
        ended = max(scores) == config["train"]["steps"] and metrics["split"] == "test"
        return ended and scores[metrics["step"]] == best
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
