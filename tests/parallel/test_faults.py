"""A job of two processes stops, goes on, and loses nothing, whatever happens to one of them."""

import json
import resource
import signal

import pytest


@pytest.fixture
def main(config, prepared, tmp_path):
    """main(flags) → arguments of Python for the main job in tmp_path, on a mesh of 4 × 1."""
    flags = {
        "data.dir": prepared, "data.patch": "16,8,8", "data.block": "20,20,20",
        "data.spacing_mm": 4.0, "data.nodule_blocks": 2, "model.channels": "4,8", "mesh.data": 4,
        "model.convs": 1,
        "optimizer.schedule": "constant", "optimizer.warmup_steps": 0, "optimizer.shard": True,
        "train.batch_size": 4, "train.log_every": 1, "train.checkpoint_every": 1,
        "train.eval_every": 2, "train.validation_patches": 4, "evaluation.window": "16,16,16",
        "evaluation.overlap": 0.5, "evaluation.mirror_axes": "0,1,2",  # so that it takes seconds
        "timeout_s": 30.0,
    }  # fmt: skip
    for name, change in config.augment.items():
        flags[f"augment.{name}.probability"] = change.probability

    def main(**more) -> list[str]:
        both = flags | {name.replace("__", "."): value for name, value in more.items()}
        return [
            *("-m", "lung_unet.main", "--config=configs/unet3d.py:smoke", f"--workdir={tmp_path}"),
            *(f"--config.{name}={value}" for name, value in both.items()),
        ]

    return main


def test_a_job_stops_goes_on_and_names_who_died(main, tmp_path, job, numbers, one_line):
    def saved() -> int:
        return max(
            int(p.name) for p in (tmp_path / "checkpoints").glob("[0-9]*") if p.name.isdigit()
        )

    def last_step() -> int:
        return max(step for step, _ in numbers(tmp_path))

    # SIGTERM to the process that only waits for the evaluation: both end, with code 0.
    with job(main(train__steps=2)) as processes:
        processes.until(lambda: any((tmp_path / "evaluation").glob("*/*.json")))
        processes.processes[1].send_signal(signal.SIGTERM)
        assert [processes.end(number) for number in range(2)] == [(0, "")] * 2
    assert not (tmp_path / "metrics.json").exists()
    scored = {p: p.stat().st_mtime_ns for p in (tmp_path / "evaluation").glob("*/*.json")}
    with job(main(train__steps=2)) as processes:
        assert [processes.end(number)[0] for number in range(2)] == [0, 0]
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["step"] <= 2
    assert all(p.stat().st_mtime_ns == before for p, before in scored.items())

    # The latest checkpoint is broken: all go back to the one before. A disk that is full for a
    # while costs nothing. Then process 0 is killed.
    for path in (tmp_path / "checkpoints" / "2" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    before = numbers(tmp_path)
    with job(main(train__steps=100_000)) as processes:
        processes.until(lambda: last_step() >= 3)
        assert "2: is broken" in processes.output(0) and "back to 1" in processes.output(0)
        first = processes.processes[0].pid
        soft, hard = resource.prlimit(first, resource.RLIMIT_FSIZE)
        resource.prlimit(first, resource.RLIMIT_FSIZE, (3000, hard))
        processes.until(lambda: "checkpoint not saved" in processes.output(0))
        kept = saved()
        resource.prlimit(first, resource.RLIMIT_FSIZE, (soft, hard))
        processes.until(lambda: saved() > kept + 1)
        processes.processes[0].send_signal(signal.SIGKILL)
        code, errors = processes.end(1)
    assert code == 1
    one_line(errors, "process 0 on ")
    assert {k: v for k, v in numbers(tmp_path).items() if k in before} == pytest.approx(before)

    kept = saved()
    with job(main(train__steps=100_000)) as processes:
        processes.until(lambda: saved() > kept)
        assert f"resuming from step {kept} " in processes.output(0)
        processes.processes[1].send_signal(signal.SIGKILL)
        code, errors = processes.end(0)
    assert code == 1
    one_line(errors, "process 1 on ")
