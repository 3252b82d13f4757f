"""metrics.jsonl holds each step once, whole lines, and no NaN."""

import json

from lung_unet.train.writer import Writer, read_rows


def test_a_resumed_run_takes_back_what_it_logged_after_its_checkpoint(tmp_path):
    with Writer(tmp_path, 0, 4) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"train/loss": 1.0 / step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "train/lo')  # cut off by a kill
    with Writer(tmp_path, 2, 4) as writer:
        writer.write(3, {"train/loss": 7.0})
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["train/loss"]) for r in rows] == [(1, 1.0), (2, 0.5), (3, 7.0)]


def test_losses_survive_to_the_last_bit_and_nan_is_null(tmp_path):
    loss = 0.1 + 0.2
    with Writer(tmp_path, 0, 1) as writer:
        writer.write(1, {"train/loss": loss, "other": float("nan")})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "train/loss": loss, "other": None}


def test_no_file_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []
