"""Systems run in processes of their own, once each."""

import sys

import pytest

from lung_unet.benchmark.peers.__main__ import run
from lung_unet.benchmark.peers.exchange import write_system
from lung_unet.errors import InputError

SCANS = {"data": "d", "fold": 0, "readers": 2}
PRINTS = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]


def test_a_system_that_is_done_is_left_and_one_that_was_interrupted_starts_anew(tmp_path):
    out = tmp_path / "system"
    with pytest.raises(InputError, match="system: was stopped"):  # it wrote no system.json
        run(out, PRINTS, SCANS)
    (out / "half").touch()
    with pytest.raises(InputError, match="system: was stopped"):
        run(out, PRINTS, SCANS)
    assert not (out / "half").exists()
    assert (out / "run.log").read_text().strip() == f"['--out={out}']"
    write_system(out, "system", {})
    (out / "run.log").unlink()
    run(out, PRINTS, SCANS)
    assert not (out / "run.log").exists()


def test_a_folder_of_something_else_is_left(tmp_path):
    (tmp_path / "nnunet").mkdir()
    (tmp_path / "nnunet" / "weights").touch()
    with pytest.raises(InputError, match="nnunet: is there already, and not of this command"):
        run(tmp_path / "nnunet", PRINTS, SCANS)
    assert (tmp_path / "nnunet" / "weights").exists()


def test_what_was_run_with_other_settings_or_on_other_scans_is_refused(tmp_path):
    with pytest.raises(InputError, match="was stopped"):
        run(tmp_path / "system", PRINTS, SCANS)
    write_system(tmp_path / "system", "system", {})
    for arguments, scans in (([*PRINTS, "--minutes=60"], SCANS), (PRINTS, SCANS | {"readers": 3})):
        with pytest.raises(InputError, match=r"other settings or on other scans.*another --out"):
            run(tmp_path / "system", arguments, scans)
