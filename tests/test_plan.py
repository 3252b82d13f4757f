"""The command reads a dataset, writes a configuration that runs, and says why."""

import ast
import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

from lung_unet.data.manifest import Dataset
from lung_unet.planning.proposal import Proposal, config_text, data_settings, prepare_again

ROOT = pathlib.Path(__file__).parent.parent


def run(module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"lung_unet.{module}", *arguments],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip


def loaded(text: str):
    """The configuration that a file gives."""
    names: dict = {}
    exec(compile(text, "plan.py", "exec"), names)
    return names["get_config"]()


def test_a_plan_is_written_and_main_takes_it(prepared, tmp_path):
    out = tmp_path / "plan.py"
    done = run("plan", f"--data={prepared}", "--memory_gb=8", f"--out={out}")
    assert done.returncode == 0, done.stderr
    config = loaded(out.read_text(encoding="utf-8"))
    assert config.data.spacing_mm == 4.0  # as prepared, which is near enough
    assert (config.train.batch_size, config.mesh.data, config.mesh.space) == (2, 1, 1)
    assert config.model.channels[0] == 32
    reasons = [line for line in done.stdout.splitlines() if line.startswith("- ")]
    written = " ".join(ast.get_docstring(ast.parse(out.read_text(encoding="utf-8"))).split())
    assert all(reason.removeprefix("- ") in written for reason in reasons)
    assert " GB" in written
    # The blocks, 20³, hold no such patch.
    assert f"lung_unet.prepare --config={out} --luna16=SCANS --out={prepared}_planned" in written
    assert config.data.dir == f"{prepared}_planned"
    model = run("main", f"--config={out}", "--print_model")
    assert model.returncode == 0, model.stderr
    assert f"one patch of {' × '.join(map(str, config.data.patch))}" in model.stdout


@pytest.mark.parametrize(
    "name",
    ["C:\\Users\\new\\x", "\\N{BULLET}", 'a"""b', '"', "it's $HOME `x`", "köln–1", "a b", "\udcff"],
)
def test_a_path_of_any_characters_is_the_one_that_the_plan_names(prepared, tmp_path, name):
    folder = pathlib.Path(shutil.copytree(prepared, tmp_path / name))
    proposal = Proposal(4.0, (-1000.0, 400.0), (16,) * 3, (4, 8), ((2, 2, 2),), 2)
    dataset = Dataset(folder)
    data, out = data_settings(proposal, dataset), folder / "plan.py"
    again = prepare_again(dataset, out, str(folder))
    text = config_text(proposal, data, "A plan.", [again])
    assert loaded(text.encode("utf-8").decode()).data.dir == str(folder)
    words = shlex.split(again)
    assert f"--config={out}" in words and f"--out={folder}" in words


def test_a_dataset_that_suits_is_kept_and_another_is_made_as_it_was(prepared):
    dataset = Dataset(prepared, fold=None)
    proposal = Proposal(4.0, (-1000.0, 400.0), (16, 16, 20), (8, 16), ((2, 2, 1),), 3, 2)
    data = data_settings(proposal, dataset)
    assert data == {"dir": str(prepared), "block": (20, 20, 20)}
    config = loaded(config_text(proposal, data, "A title.", ["a reason " * 30]))
    assert config.data.dir == str(prepared)
    assert config.model.strides == ((2, 2, 1),)
    assert config.train.batch_size == 6
    for other in ({"patch": (16, 16, 24)}, {"spacing_mm": 2.0}):
        data = data_settings(Proposal(**vars(proposal) | other), dataset)
        assert data["dir"] == f"{prepared}_planned"
        assert (data["margin_mm"], data["nodule_blocks"]) == (8.0, 2)  # as this one


def test_a_dataset_of_another_plan_is_not_taken_for_this_one_s(prepared, tmp_path):
    folder = pathlib.Path(shutil.copytree(prepared, tmp_path / "luna"))
    proposal = Proposal(2.0, (-1000.0, 400.0), (16, 16, 16), (8, 16), ((2, 2, 2),), 1)
    assert data_settings(proposal, Dataset(folder, fold=None))["dir"] == f"{folder}_planned"
    shutil.copytree(prepared, f"{folder}_planned")  # at 4 mm
    data = data_settings(proposal, Dataset(folder, fold=None))
    assert data["dir"] == f"{folder}_planned_2mm_20x20x20"
    there = dataclasses.replace(proposal, spacing_mm=4.0)
    first = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    first["settings"]["spacing_mm"] = 1.0
    (folder / "manifest.json").write_text(json.dumps(first))
    assert data_settings(there, Dataset(folder, fold=None))["dir"] == f"{folder}_planned"


def test_scans_are_prepared_again_with_the_outlines_and_the_key_that_they_had(prepared):
    dataset = Dataset(prepared, fold=None)
    words = prepare_again(dataset, pathlib.Path("plan.py"), "out")
    assert words == "python -m lung_unet.prepare --config=plan.py --luna16=SCANS --out=out"
    dataset.manifest["counts"]["scans_with_outlines"] = 2
    dataset.manifest["settings"]["pseudonym_key"] = "abcd"
    words = prepare_again(dataset, pathlib.Path("plan.py"), "out")
    assert "--lidc_xml=XML" in words and "--pseudonym_key=FILE" in words
    dataset.manifest["source"] = "images and labels"  # which takes no XML
    assert "--lidc_xml" not in prepare_again(dataset, pathlib.Path("plan.py"), "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--memory_gb=8",), "error: --data is missing"),
        (("--data={prepared}",), "error: --memory_gb is missing"),
        (("--data={empty}", "--memory_gb=8"), "has no manifest.json"),
        (("--data={prepared}", "--memory_gb=0"), "error: --memory_gb=0: give the memory"),
        (("--data={prepared}", "--memory_gb=inf"), "error: --memory_gb=inf: give the memory"),
        (("--data={prepared}", "--memory_gb=8", "--out={empty}"), "is a folder; give the file"),
        (
            ("--data={prepared}", "--memory_gb=8", "--rules=nnunet", "--devices=3"),
            "error: --devices=3: nnU-Net's batch of 2 does not divide",
        ),
    ],
)
def test_mistakes_are_one_line(prepared, tmp_path, flags, message):
    done = run("plan", *(flag.format(prepared=prepared, empty=tmp_path) for flag in flags))
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (prepared / "plan.py").exists()
