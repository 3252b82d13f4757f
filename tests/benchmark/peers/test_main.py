"""Systems run in processes of their own, once each."""

import sys

from lung_unet.benchmark.peers.__main__ import run
from lung_unet.benchmark.peers.exchange import write_system


def test_a_system_that_is_done_is_left_and_one_that_was_interrupted_starts_anew(tmp_path):
    out = tmp_path / "system"
    out.mkdir()
    (out / "half").touch()
    run(out, [sys.executable, "-c", "import sys; print(sys.argv[1:])"])
    assert not (out / "half").exists()
    assert (out / "run.log").read_text().strip() == f"['--out={out}']"
    write_system(out, "system", {})
    run(out, [sys.executable, "-c", "raise SystemExit(1)"])
    assert (out / "run.log").exists()
