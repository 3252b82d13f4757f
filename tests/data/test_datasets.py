"""The dataset that a configuration asks for is opened, prepared, or built; once."""

import pathlib
import shutil

import pytest

from lung_unet.data import datasets
from lung_unet.data.datasets import build_phantom, open_dataset, settings_of
from lung_unet.errors import InputError


def test_settings_of_a_configuration(config, settings):
    assert settings_of(config.data) == settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spacing_mm", 0.0), ("spacing_mm", 50.0), ("spacing_mm", float("nan")),
        ("margin_mm", -1.0), ("margin_mm", float("nan")), ("margin_mm", float("inf")),
        ("block", (20, 20)), ("block", (20, 20, 0)), ("block", ()), ("nodule_blocks", 0),
        ("min_readers", 0), ("min_readers", 5), ("outlines", "none"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(config, key, value):
    config.data[key] = value
    with pytest.raises(InputError, match=f"config.data.*{key}") as error:
        settings_of(config.data)
    assert "\n" not in str(error.value)


def test_a_prepared_folder_is_opened_as_it_is(config, prepared, tmp_path, capsys):
    config.data.dir = str(prepared)
    config.data.spacing_mm = 2.0  # what it was prepared with holds
    config.data.fold = 2
    config.data.min_readers = 1
    dataset = open_dataset(config.data, tmp_path / "work")
    assert dataset.folder == prepared
    assert [e["subset"] for e in dataset.scans("test")] == [2]
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2 and told[0].endswith("at 4 mm, not at config's 2")
    assert told[1] == "data: was prepared with min_readers = 3, not config's 1"
    assert not (tmp_path / "work").exists()


def test_a_luna16_folder_is_prepared_into_the_workdir(config, luna16, prepared, tmp_path):
    config.data.dir = str(luna16)
    dataset = open_dataset(config.data, tmp_path)
    assert dataset.folder == tmp_path / "data"
    assert dataset.identity == datasets.Dataset(prepared).identity


@pytest.mark.parametrize("name", ["none", "file"])
def test_no_such_folder(config, tmp_path, name):
    (tmp_path / "file").write_text("")
    config.data.dir = str(tmp_path / name)
    with pytest.raises(InputError, match="no such folder; give a prepared dataset or a LUNA16"):
        open_dataset(config.data, tmp_path / "work")


def test_a_folder_that_is_neither(config, tmp_path):
    config.data.dir = str(tmp_path)
    with pytest.raises(InputError, match=r"no subset0\.\.9"):
        open_dataset(config.data, tmp_path / "work")


def test_without_a_folder_the_phantom_is_built_once(
    config, luna16, prepared, tmp_path, monkeypatch, capsys
):
    builds = []

    def build(out: pathlib.Path, scans: int) -> None:
        shutil.copytree(luna16, out)
        builds.append(scans)

    monkeypatch.setattr(datasets.phantom, "build", build)
    config.data.dir = ""
    config.data.phantom_scans = 7
    for _ in range(2):
        dataset = open_dataset(config.data, tmp_path)
        assert dataset.identity == datasets.Dataset(prepared).identity
        assert "config.data.dir is empty" in capsys.readouterr().out
    assert builds == [7]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "phantom"]


def test_a_phantom_that_was_interrupted_is_not_there(tmp_path, monkeypatch):
    def build(out: pathlib.Path, scans: int) -> None:
        (out / "subset0").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets.phantom, "build", build)
    with pytest.raises(KeyboardInterrupt):
        build_phantom(tmp_path / "phantom", 3)
    assert not list(tmp_path.iterdir())


# --- Scans that are gone --------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_scans_that_were_prepared_need_not_be_there(config, luna16, tmp_path, left, capsys):
    scans = pathlib.Path(shutil.copytree(luna16, tmp_path / "scans"))
    config.data.dir = str(scans)
    before = open_dataset(config.data, tmp_path / "run")
    shutil.rmtree(scans)
    if left == "an empty folder":  # that nothing is mounted on
        scans.mkdir()
    for make in (True, False):
        assert open_dataset(config.data, tmp_path / "run", make).identity == before.identity
        assert f"{scans} is not there" in capsys.readouterr().out
    config.data.spacing_mm = 3.0
    with pytest.raises(InputError, match="was prepared with spacing_mm = 4"):
        open_dataset(config.data, tmp_path / "run")


def test_what_was_prepared_from_other_scans_is_not_taken_for_these(config, luna16, tmp_path):
    config.data.dir = str(luna16)
    open_dataset(config.data, tmp_path / "run")
    config.data.dir = str(tmp_path / "a slip of the pen")
    saying = rf"a slip of the pen: no such folder; .*{tmp_path}/run/data, which was prepared before"
    with pytest.raises(InputError, match=saying):
        open_dataset(config.data, tmp_path / "run")


def test_a_phantom_that_is_gone_is_not_built_again(config, luna16, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.phantom, "build", lambda out, scans: shutil.copytree(luna16, out))
    config.data.dir = ""
    before = open_dataset(config.data, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "phantom")
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert open_dataset(config.data, moved).identity == before.identity
    assert not (moved / "phantom").exists()
