"""A folder is prepared once, in any number of processes, and again only where something changed."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil

import pytest

from lung_unet.data import preparation, scan_files, seen_files
from lung_unet.data.manifest import Dataset
from lung_unet.data.preparation import prepare
from lung_unet.data.pseudonyms import Key
from lung_unet.data.shards import Settings
from lung_unet.errors import InputError


@pytest.fixture
def folder(luna16, tmp_path) -> pathlib.Path:
    """A copy of the folder `luna16`, to change."""
    return pathlib.Path(shutil.copytree(luna16, tmp_path / "luna16"))


@pytest.fixture
def done(prepared, tmp_path) -> pathlib.Path:
    """A copy of the folder `prepared`, to change."""
    return pathlib.Path(shutil.copytree(prepared, tmp_path / "done"))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """What is prepared; not inputs.json, which is of the files that it was prepared from."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != seen_files.NAME
    }


def times(folder: pathlib.Path) -> dict[str, int]:
    return {
        p.name: p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and p.name != seen_files.NAME
    }


def test_one_process_writes_what_two_wrote(luna16, prepared, tmp_path, settings, capsys):
    manifest = prepare(luna16, tmp_path / "new" / "out", settings, workers=1)
    assert contents(tmp_path / "new" / "out") == contents(prepared)
    assert json.loads((prepared / "manifest.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(manifest)
    )
    assert "4/4" in capsys.readouterr().out  # progress
    hidden = [name for name in contents(prepared) if pathlib.Path(name).name.startswith(".")]
    assert hidden == [".lock"]


def test_nothing_is_written_again(luna16, done, settings):
    before, held = times(done), contents(done)
    prepare(luna16, done, settings, workers=1)
    assert times(done) == before
    assert contents(done) == held


def test_a_changed_scan_alone_is_done_again(folder, done, settings):
    before = times(done)
    table = folder / "annotations.csv"
    table.write_text(
        table.read_text(encoding="utf-8").replace("20.0", "12.0", 1)
    )  # the first row: 1.2.0
    with open(done / "subset3" / "1.2.3.scan.arrayrecord", "r+b") as file:
        file.truncate(1000)
    prepare(folder, done, settings, workers=1)
    after = times(done)
    changed = {name for name in before if before[name] != after[name]}
    redone = {name for name in before if name.startswith(("1.2.0.", "1.2.3."))}
    assert changed == {*redone, "manifest.json"}
    manifest = json.loads((done / "manifest.json").read_text(encoding="utf-8"))
    assert [e["nodules"][0]["diameter_mm"] for e in manifest["scans"]] == [12, 20, 20, 20]


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (Settings(5.0, 8.0, (20, 20, 20), 2), "spacing_mm = 4.0, not 5.0"),
        (Settings(4.0, 9.0, (20, 20, 20), 2), "margin_mm"),
        (Settings(4.0, 8.0, (20, 20, 24), 2), "block"),
        (Settings(4.0, 8.0, (20, 20, 20), 3), "nodule_blocks"),
        (Settings(4.0, 8.0, (20, 20, 20), 2, 2), "min_readers = 3, not 2"),
        (Settings(4.0, 8.0, (20, 20, 20), 2, 3, "sphere"), "outlines = 'readers', not 'sphere'"),
    ],
)
def test_a_folder_prepared_with_other_settings_is_not_overwritten(luna16, prepared, other, name):
    before = contents(prepared)
    with pytest.raises(InputError, match=name) as error:
        prepare(luna16, prepared, other)
    assert str(prepared) in str(error.value)
    assert contents(prepared) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 3}', "null"])
def test_a_broken_manifest_is_not_overwritten(luna16, tmp_path, settings, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json: is broken"):
        prepare(luna16, tmp_path, settings)
    assert (tmp_path / "manifest.json").read_text(encoding="utf-8") == text


def test_a_folder_that_cannot_be_written(luna16, tmp_path, settings):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        prepare(luna16, tmp_path / "file" / "out", settings)


def test_a_broken_scan_is_named_and_the_others_are_kept(folder, tmp_path, settings, prepared):
    data = folder / "subset3" / "1.2.3.zraw"
    data.write_bytes(data.read_bytes()[:-500])
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"subset3/1\.2\.3\.mhd: .*copy it again") as error:
        prepare(folder, out, settings, workers=1)
    assert "\n" not in str(error.value)
    left = contents(out)
    assert "manifest.json" not in left
    assert left
    assert left.items() <= contents(prepared).items()


def test_what_cannot_be_read_again_leaves_what_was_prepared(folder, done, settings):
    data = folder / "subset3" / "1.2.3.zraw"
    data.write_bytes(data.read_bytes()[:-500])
    before = contents(done)
    with pytest.raises(InputError, match="copy it again"):
        prepare(folder, done, settings, workers=1)
    assert contents(done) == before


def test_an_error_of_the_file_system_is_one_line(luna16, tmp_path, settings):
    (tmp_path / "subset2").write_text("a file where a folder must be")
    with pytest.raises(InputError, match=r"subset2.*finished scans are kept") as error:
        prepare(luna16, tmp_path, settings, workers=1)
    assert "\n" not in str(error.value)


class Deadly(Settings):
    """Settings that end the process that they are sent to."""

    def __reduce__(self):
        return os._exit, (1,)


def test_another_folder_s_scans_do_not_take_the_place_of_these(folder, done, settings, capsys):
    for number, new in enumerate(("9.0", "9.1", "9.2", "9.3")):
        for path in folder.glob(f"*/1.2.{number}.*"):
            text = path.read_bytes().replace(f"1.2.{number}".encode(), new.encode())
            path.with_name(path.name.replace(f"1.2.{number}", new)).write_bytes(text)
            path.unlink()
    for table in folder.glob("*.csv"):
        table.unlink()
    (folder / "annotations.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n")
    before = contents(done)
    with pytest.raises(InputError, match="was prepared from other scans; choose another --out"):
        prepare(folder, done, settings, workers=1)
    assert contents(done) == before


def test_too_few_subsets_to_train_on_are_told_before_they_are_prepared(
    folder, tmp_path, settings, capsys
):
    for number in (2, 3):
        shutil.rmtree(folder / f"subset{number}")
    prepare(folder, tmp_path / "out", settings, workers=1)
    assert "scans in 2 subset(s), which will do to inspect" in capsys.readouterr().out


def test_what_another_process_prepared_meanwhile_is_not_overwritten(
    luna16, prepared, tmp_path, settings, monkeypatch
):
    @contextlib.contextmanager
    def waited(*_, **__):
        shutil.copytree(prepared, tmp_path / "out")
        yield True

    monkeypatch.setattr(preparation, "held", waited)
    other = dataclasses.replace(settings, spacing_mm=3.0)
    with pytest.raises(InputError, match="was prepared with spacing_mm = 4"):
        prepare(luna16, tmp_path / "out", other, workers=1)
    assert contents(tmp_path / "out") == contents(prepared)


def test_a_process_that_dies_is_told(luna16, tmp_path):
    with pytest.raises(InputError, match=r"1\.2\.0: a worker process died of it"):
        prepare(luna16, tmp_path / "out", Deadly(), workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_series_that_are_not_there_are_told(folder, done, settings, capsys):
    for path in folder.glob("subset3/*"):
        path.unlink()
    manifest = prepare(folder, done, settings, workers=1)
    told = capsys.readouterr().out
    assert "1 of the series in seriesuids.csv are not on disk" in told
    assert "1 scans of before are not there any more" in told
    assert manifest["counts"]["absent_scans"] == 1
    assert [e["series_uid"] for e in manifest["scans"]] == ["1.2.0", "1.2.1", "1.2.2"]


def test_a_broken_scan_is_skipped_if_told_so_and_tried_again(folder, tmp_path, settings, capsys):
    data = folder / "subset3" / "1.2.3.zraw"
    whole = data.read_bytes()
    data.write_bytes(whole[:-500])
    out = tmp_path / "out"
    with pytest.raises(InputError, match="--on_broken=skip"):
        prepare(folder, out, settings, workers=1)
    manifest = prepare(folder, out, settings, workers=1, skip_broken=True)
    told = capsys.readouterr().out
    assert "1 broken scans are left out" in told and "1.2.3" in told
    assert [e["series_uid"] for e in manifest["scans"]] == ["1.2.0", "1.2.1", "1.2.2"]
    (skipped,) = manifest["skipped"]
    assert skipped["series_uid"] == "1.2.3" and "copy it again" in skipped["reason"]
    assert manifest["counts"]["skipped_scans"] == 1
    assert len(manifest["folds"]) == 3
    data.write_bytes(whole)
    manifest = prepare(folder, out, settings, workers=1, skip_broken=True)
    assert len(manifest["scans"]) == 4 and manifest["skipped"] == []


def test_a_dataset_of_broken_scans_alone_is_refused(folder, tmp_path, settings):
    for data in folder.glob("subset*/*.zraw"):
        data.write_bytes(b"")
    with pytest.raises(InputError, match="none of its 4 scans can be read"):
        prepare(folder, tmp_path / "out", settings, workers=1, skip_broken=True)


def test_a_skipped_scan_s_reason_names_no_series_where_they_have_pseudonyms(
    folder, tmp_path, settings
):
    (folder / "subset3" / "1.2.3.zraw").write_bytes(b"")
    key = Key(b"sixteen bytes!!!")
    prepare(folder, tmp_path / "out", settings, workers=1, key=key, skip_broken=True)
    text = (tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")
    assert "1.2.3" not in text and str(folder) not in text
    assert key.pseudonym("1.2.3").series_uid in text


# --- The same scans again -------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the files whose content was read to compare it, without worker processes."""
    names = []
    digest = scan_files._digest

    def noted(path: pathlib.Path) -> str:
        names.append(path.name)
        return digest(path)

    monkeypatch.setattr(scan_files, "_digest", noted)
    monkeypatch.setattr(preparation.engines, "run", in_this_process)
    monkeypatch.setattr(scan_files, "RECENT_NS", 0)
    return names


def in_this_process(task, jobs, *_):
    yield from (task(*job) for job in jobs)


def test_scans_copied_again_are_the_same_and_read_once(luna16, folder, done, settings, reads):
    before, held = times(done), contents(done)
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    prepare(folder, done, settings)
    assert (times(done), contents(done)) == (before, held)
    assert reads.count("1.2.0.zraw") == 2  # the scan's and the mask's
    reads.clear()
    prepare(folder, done, settings)
    assert reads == []
    os.utime(folder / "subset2" / "1.2.2.mhd")
    prepare(folder, done, settings)
    assert set(reads) == {"1.2.2.mhd", "1.2.2.zraw"}
    (done / seen_files.NAME).write_text("{")
    reads.clear()
    prepare(folder, done, settings)
    assert len(reads) == 16 and contents(done) == held


def test_bytes_that_change_under_the_same_size_and_time_are_seen(folder, done, settings, reads):
    prepare(folder, done, settings)
    before = times(done)
    path = folder / "subset1" / "1.2.1.mhd"
    found = path.stat()
    path.write_bytes(path.read_bytes().replace(b"CompressedData = True", b"CompressedData = true"))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert path.stat().st_size == found.st_size
    assert path.stat().st_mtime_ns == found.st_mtime_ns
    prepare(folder, done, settings)
    after = times(done)
    assert {n for n in after if after[n] != before[n]} == {
        "manifest.json", *(n for n in before if n.startswith("1.2.1."))
    }  # fmt: skip


def test_nothing_is_prepared_that_is_not_accepted(folder, done, settings, reads):
    asked = []

    def accept(identity: dict) -> None:
        asked.append(identity)
        if identity != Dataset(done).identity:
            raise InputError("another dataset")

    prepare(folder, done, settings, accept=accept)
    held = contents(done)
    table = folder / "annotations.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("20.0", "12.0", 1))
    with pytest.raises(InputError, match="another dataset"):
        prepare(folder, done, settings, accept=accept)
    assert contents(done) == held
    prepare(folder, done, settings)
    assert asked[1] == Dataset(done).identity != asked[0]


def test_the_folders_of_the_scans_are_known(luna16, tmp_path, settings, reads):
    prepare(luna16, tmp_path / "out", settings)
    places = seen_files.places_of(luna16, None)
    assert seen_files.prepared_from(tmp_path / "out", places)
    assert not seen_files.prepared_from(tmp_path / "out", seen_files.places_of(tmp_path, None))
    (tmp_path / "out" / "manifest.json").unlink()
    assert not seen_files.prepared_from(tmp_path / "out", places)
