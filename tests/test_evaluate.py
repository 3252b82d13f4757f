"""evaluate on several runs: scored together, scan by scan, for exactly their checkpoints."""

import json
import subprocess
import sys

import pytest

from lung_unet.evaluate import evaluate
from lung_unet.evaluation.resume import folder_of
from lung_unet.workdir import claim, load


@pytest.fixture
def runs(shrunk_config, dataset, tmp_path):
    for name in "ab":
        claim(tmp_path / name, shrunk_config(), dataset)
    return [load(tmp_path / name) for name in "ab"]


def test_what_was_scored_is_kept_for_the_checkpoints_of_all(
    runs, dataset, oracle, tmp_path, monkeypatch
):
    out = tmp_path / "out"

    def calls(steps) -> int:
        predictor = oracle(dataset)
        monkeypatch.setattr("lung_unet.restore.restore_runs", lambda runs: (predictor, steps))
        assert evaluate(runs, dataset, "test", out)["step"] == steps
        return predictor.calls

    assert calls([7, 8]) == 2  # a scan to choose thresholds on, a scan to score
    (path,) = folder_of(out, "test").iterdir()
    assert [
        m["step"] for m in json.loads(path.read_text(encoding="utf-8"))["settings"]["members"]
    ] == [7, 8]
    assert calls([7, 8]) == 0
    assert calls([7, 9]) == 2
    assert {p.name for p in out.iterdir()} >= {"metrics.json", "operating_point.json"}
    assert not any((run.workdir / "metrics.json").exists() for run in runs)


@pytest.mark.parametrize(
    ("given", "unused", "mode"),
    [
        (["--workdir=A", "--json=x.json"], "json", "workdir"),
        (["--gather", "A", "B", "--output=O", "--classifier=C"], "classifier", "gather"),
        (["--gather", "A", "B", "--output=O", "--workdir=C"], "workdir", "gather"),
        (["--compare", "A", "B", "--output=O"], "output", "compare"),
        (["--compare", "A", "B", "--gather=C"], "gather", "compare"),
    ],
)
def test_a_flag_that_would_be_ignored_is_refused(given, unused, mode):
    command = [sys.executable, "-m", "lung_unet.evaluate", *given]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: --{unused}: is not used with --{mode}; leave it out\n"
