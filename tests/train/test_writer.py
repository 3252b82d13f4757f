"""metrics.jsonl holds each step once, whole lines, and no NaN."""

import json
import resource
import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

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
    (line,) = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"step": 1, "train/loss": loss, "other": None}


def test_what_a_full_disk_has_no_place_for_is_written_later(tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with Writer(tmp_path, 0, 500) as writer:
            for step in range(1, 500):
                limit = 300 if 5 < step < 400 else soft  # cuts a line in two
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
                writer.write(step, {"train/loss": float(step)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["train/loss"] for line in lines] == list(range(1, 500))
    assert capsys.readouterr().out.count("metrics.jsonl: File too large; trying again") == 1


def test_tensorboard_reads_each_step_once(tmp_path):
    for first, value in ((0, 1.0), (2, 2.0)):
        with Writer(tmp_path, first, 4) as writer:
            for step in range(first + 1, 5):
                writer.write(step, {"train/loss": value})
    found: dict[int, float] = {}
    for path in sorted((tmp_path / "tensorboard").iterdir()):
        for event in events(path):
            if event.session_log.status == SessionLog.START:  # what TensorBoard takes back
                found = {step: value for step, value in found.items() if step < event.step}
            for value in event.summary.value:
                assert value.tag == "train/loss" and event.step not in found
                found[event.step] = value.simple_value
    assert found == {1: 1.0, 2: 1.0, 3: 2.0, 4: 2.0}


def events(path):
    """The events of a TensorBoard file, each framed by its length and two checksums."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        (crc,) = struct.unpack("<I", data[8:12])
        assert crc == masked_crc32c(data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_no_file_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []
