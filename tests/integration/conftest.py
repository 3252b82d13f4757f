"""Commands as a user types them."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
TINY = (
    "--config=configs/unet3d.py:smoke", "--config.data.patch=16,16,16",
    "--config.data.block=20,20,20", "--config.data.spacing_mm=4.0",
    "--config.data.nodule_blocks=1", "--config.model.channels=4,8", "--config.train.steps=4",
    "--config.train.log_every=1", "--config.train.eval_every=2",
    "--config.train.checkpoint_every=2", "--config.train.validation_patches=4",
    "--config.optimizer.schedule=constant", "--config.evaluation.overlap=0.25",
)  # fmt: skip


@pytest.fixture(scope="session")
def run():
    """run(module, *arguments) → the finished process, which must exit 0 and show no traceback."""

    def run(module: str, *arguments, fails: bool = False) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        process = subprocess.run(
            [sys.executable, "-m", f"lung_unet.{module}", *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )
        assert "Traceback" not in process.stderr, process.stderr
        assert (process.returncode != 0) == fails, process.stdout + process.stderr
        return process

    return run


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Flags that shrink the main job to seconds."""
    return TINY
