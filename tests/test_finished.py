"""Only the end of main makes a run finished; older runs are known where that is certain."""

import json

import pytest

from lung_unet.finished import METRICS, finish, is_finished, unfinish


def old_run(
    folder, steps=4, task="segmentation", split="test", step=2, scores=((2, 0.8), (4, 0.7))
):
    """What a run of before the mark left."""
    config = {"task": task, "train": {"steps": steps}}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    (folder / "metrics.json").write_text(json.dumps({"split": split, "step": step}))
    for number, score in scores:
        path = folder / "checkpoints" / str(number) / "metrics" / "metrics"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({METRICS[task]: score, "loss": 1.0}))
    return folder


def test_the_mark_comes_and_goes(tmp_path):
    assert not is_finished(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    assert not is_finished(tmp_path)  # which lung_unet.evaluate writes as well
    finish(tmp_path, 4)
    assert is_finished(tmp_path)
    unfinish(tmp_path)
    unfinish(tmp_path)
    assert not is_finished(tmp_path) and not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, True),
        ({"task": "classification"}, True),
        ({"scores": ((2, None), (4, 0.7)), "step": 4}, True),
        ({"steps": 6}, False),  # evaluated while it was trained
        ({"split": "validation"}, False),
        ({"step": 4}, False),  # of a checkpoint that is not the best any more
        ({"step": 3}, False),
        ({"step": [2, 2]}, False),  # an ensemble's
        ({"scores": ()}, False),
        ({"scores": ((2, None), (4, None))}, False),
    ],
)
def test_a_run_of_before_the_mark(tmp_path, changes, done):
    folder = old_run(tmp_path, **changes)
    assert is_finished(folder) == done
    unfinish(folder)
    assert not is_finished(folder)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "checkpoints/2/metrics/metrics"])
@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "\x00"])
def test_what_is_broken_says_nothing(tmp_path, name, text):
    (old_run(tmp_path) / name).write_text(text)
    assert not is_finished(tmp_path)
