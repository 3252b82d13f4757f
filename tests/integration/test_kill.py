"""Killed at random moments, or told to stop, a run ends with what it would have ended with.

LUNG_UNET_KILLS=20 makes the chain of kills as long as that.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from lung_unet.train.writer import read_rows

ROOT = pathlib.Path(__file__).parent.parent.parent
KILLS = int(os.environ.get("LUNG_UNET_KILLS", 3))
WHERE = ("saving", "start-up", "steps", "evaluation")
STEPS_BETWEEN = 5  # at most, from a start to a kill
LEVEL = 1  # one compilation, many runs
STEPS = KILLS * STEPS_BETWEEN + 8


@pytest.fixture(scope="module")
def flags(tiny, prepared) -> tuple[str, ...]:
    """Flags of a run that lives long enough to be killed often."""
    return (
        *tiny, f"--config.data.dir={prepared}", f"--config.train.steps={STEPS}",
        "--config.train.checkpoint_every=2", "--config.train.eval_every=3",
        "--config.data.mining.every=3",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(run, flags, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("undisturbed")
    run("main", *flags, f"--workdir={workdir}", level=LEVEL)
    return workdir


@pytest.fixture
def start(flags, environment, tmp_path):
    """start(more flags) → the main job in tmp_path, a process under way."""

    def start(*more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "lung_unet.main", *flags, f"--workdir={tmp_path}", *more],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
            env=environment(1, LEVEL),
        )  # fmt: skip

    return start


def last_step(workdir) -> int:
    return max((row["step"] for row in read_rows(workdir / "metrics.jsonl")), default=0)


def saving(workdir) -> bool:
    return any("tmp" in p.name for p in (workdir / "checkpoints").glob("*"))


def wait_for(process: subprocess.Popen, condition) -> None:
    deadline = time.monotonic() + 300
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def await_evaluation(process: subprocess.Popen) -> None:
    """Returns once training is done, or was."""
    ends = (f"step {STEPS:>6}  validation", f"resuming from step {STEPS} of")
    for line in process.stdout:
        if line.startswith(ends):
            return


def await_moment(process: subprocess.Popen, where: str, workdir, step: int, rng) -> None:
    if where == "start-up":
        time.sleep(rng.uniform(0.5, 4))
    elif where == "steps":
        wait_for(process, lambda: last_step(workdir) >= step)
    elif where == "saving":
        wait_for(process, lambda: last_step(workdir) >= step and saving(workdir))
    else:
        await_evaluation(process)
        time.sleep(rng.uniform(0, 0.6))
    time.sleep(rng.uniform(0, 0.05))


def numbers(workdir) -> list[tuple]:
    """What a run logged that does not depend on the clock, in order."""
    return [
        (row["step"], name, row[name])
        for row in read_rows(workdir / "metrics.jsonl")
        for name in ("train/loss", "train/grad_norm", "validation/loss", "validation/dice")
        if name in row
    ]


def assert_equal(workdir, undisturbed) -> None:
    assert numbers(workdir) == numbers(undisturbed)
    names = [line[:2] for line in numbers(workdir)]
    assert len(names) == len(set(names))  # each step once
    assert (workdir / "metrics.json").read_text(encoding="utf-8") == (
        undisturbed / "metrics.json"
    ).read_text(encoding="utf-8")


def test_killed_again_and_again_equals_undisturbed(run, flags, start, undisturbed, tmp_path):
    rng = random.Random(0)
    moments = [WHERE[i % len(WHERE)] for i in range(KILLS)]
    rng.shuffle(moments)
    moments.sort(key=lambda where: where == "evaluation")  # which is after all steps
    killed = []
    for where in moments:
        before = last_step(tmp_path)
        process = start(f"--config.data.threads={rng.randint(1, 4)}")
        step = before + rng.randint(1, STEPS_BETWEEN - 2)
        await_moment(process, where, tmp_path, step, rng)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed.append((where, before, last_step(tmp_path), process.returncode))
    print(*killed, sep="\n")
    assert all(code == -signal.SIGKILL for *_, code in killed)
    run("main", *flags, f"--workdir={tmp_path}", level=LEVEL)
    assert_equal(tmp_path, undisturbed)
    goodput = json.loads((tmp_path / "goodput.json").read_text(encoding="utf-8"))
    assert goodput["starts"] >= 2 and goodput["seconds"]["lost"] > 0
    assert sum(goodput["shares"].values()) == pytest.approx(1)


def test_sigterm_saves_and_exits_0_and_the_run_goes_on(run, flags, start, undisturbed, tmp_path):
    process = start()
    wait_for(process, lambda: last_step(tmp_path) >= 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "preempted at step" in output
    saved = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert f"preempted at step {saved};" in output and saved == last_step(tmp_path)
    process = start()
    await_evaluation(process)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "preempted" in output and "done in" not in output
    run("main", *flags, f"--workdir={tmp_path}", level=LEVEL)
    assert_equal(tmp_path, undisturbed)
