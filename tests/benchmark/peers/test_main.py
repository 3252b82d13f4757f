"""Systems run in processes of their own, once each."""

import shutil
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict

from lung_unet.benchmark.peers.__main__ import given_scans, run
from lung_unet.benchmark.peers.exchange import write_system
from lung_unet.data.luna16 import Luna16
from lung_unet.data.manifest import SPLITS
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
    assert (out / "run.log").read_text(encoding="utf-8").strip() == f"['--out={out}']"
    write_system(out, "system", {})
    (out / "run.log").unlink()
    run(out, PRINTS, SCANS)
    assert not (out / "run.log").exists()


def test_scans_are_split_by_patient_or_by_their_folders_subsets(luna16, tmp_path, monkeypatch):
    own = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", own)
    for name in ("train", "validation", "test", "patients"):
        flags.DEFINE_list(name, [], "", flag_values=own)
    for name in ("luna16", "lidc_xml"):
        flags.DEFINE_string(name, None, "", flag_values=own)
    config = ConfigDict({"data": {"fold": 0, "lidc_xml": ""}})
    folders = []
    for number in range(3):
        folder = tmp_path / f"P{number}"
        shutil.copytree(luna16 / f"subset{number}", folder / "subset0")
        shutil.copy(luna16 / "annotations.csv", folder)
        (folder / "patients.csv").write_text(f"seriesuid,patient\n1.2.{number},P{number}\n")
        folders.append(str(folder))

    def given(*flags_given):
        for name in own:
            own[name].unparse()
        own(["command", *flags_given])
        return given_scans(tmp_path / "out", config)

    assert given(f"--luna16={luna16}", "--lidc_xml=x") == (str(luna16), "x")
    scans, xml = given(f"--patients={','.join(folders)}")
    assert xml is None and Luna16(scans).subsets == {f"1.2.{n}": n for n in range(3)}
    split = [f"--{name}={f}" for name, f in zip(SPLITS, folders, strict=True)]
    assert Luna16(given(*split)[0]).subsets == {"1.2.0": 2, "1.2.1": 1, "1.2.2": 0}
    with pytest.raises(InputError, match="--luna16: is not used with"):
        given(*split, f"--luna16={luna16}")
    with pytest.raises(InputError, match="--luna16 is missing"):
        given()
    config.data.fold = 1
    with pytest.raises(InputError, match=r"config\.data\.fold = 1"):
        given(*split)
    (tmp_path / "P2" / "patients.csv").write_text("seriesuid,patient\n1.2.2,P1\n")
    with pytest.raises(InputError, match="no patient may be in two splits"):
        given(f"--patients={','.join(folders)}")


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
