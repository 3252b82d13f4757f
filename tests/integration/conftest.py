"""Commands as a user types them, compiled as in all tests or, where asked, as a user's."""

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
QUICK = ("--config.model.convs=1", "--config.evaluation.min_diameter_mm=15")  # few regions to draw


@pytest.fixture(scope="session")
def run(environment):
    """run(module, *arguments) → the finished process, which must exit 0 and show no traceback.

    `level` is that of `environment`.
    """

    def run(
        module: str, *arguments, fails: bool = False, level: int | None = 0
    ) -> subprocess.CompletedProcess:
        process = subprocess.run(
            [sys.executable, "-m", f"lung_unet.{module}", *map(str, arguments)],
            cwd=ROOT,
            env=environment(1, level),
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )
        assert "Traceback" not in process.stderr, process.stderr
        assert (process.returncode != 0) == fails, process.stdout + process.stderr
        return process

    return run


@pytest.fixture(scope="session")
def tiny(flips_alone) -> tuple[str, ...]:
    """Flags that shrink the main job to seconds."""
    return TINY + QUICK + flips_alone


@pytest.fixture(scope="session")
def shrunk() -> tuple[str, ...]:
    """Flags that shrink what the main job does, and leave out nothing of it."""
    return TINY
