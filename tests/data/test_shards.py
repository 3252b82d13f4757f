"""A scan's shards hold what they should, are the same every time, and are whole or not trusted."""

import json
import pathlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource

from lung_unet.data import records as record_files
from lung_unet.data import shards
from lung_unet.data.luna16 import Luna16
from lung_unet.data.records import Block, ScanRecord
from lung_unet.data.shards import KINDS, Settings, lung_blocks, nodule_blocks, prepare_scan
from lung_unet.data.volume import AIR_HU, make_labels, make_volume

ROOT = pathlib.Path(__file__).parents[2]
UID = "1.2.0"


@pytest.fixture
def done(prepared, tmp_path) -> pathlib.Path:
    """A copy of the folder `prepared`, to change."""
    return pathlib.Path(shutil.copytree(prepared, tmp_path / "done"))


def records(folder: pathlib.Path, kind: str, uid: str = UID) -> list:
    (path,) = folder.glob(f"subset*/{uid}.{kind}.arrayrecord")
    source = ArrayRecordDataSource([str(path)])
    decode = ScanRecord.decode if kind == "scan" else Block.decode
    return [decode(source[i]) for i in range(len(source))]


def contents(folder: pathlib.Path, pattern: str = "subset*/*") -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob(pattern))}


# --- What they hold -------------------------------------------------------------------------------


def test_the_entry_says_what_is_there(prepared, luna16):
    entry = json.loads((prepared / "subset0" / f"{UID}.json").read_text(encoding="utf-8"))
    for kind in KINDS:
        file = entry["files"][kind]
        assert (prepared / file["name"]).stat().st_size == file["bytes"]
        assert len(records(prepared, kind)) == file["records"]
    (scan,) = records(prepared, "scan")
    assert entry["shape"] == list(scan.volume.hu.shape)
    assert entry["hu_mean"] == pytest.approx(scan.volume.hu[scan.volume.lungs].mean(), abs=0.01)
    assert entry["lung_litres"] == pytest.approx(scan.volume.lungs.sum() * 64e-6, abs=1e-3)
    (nodule,) = entry["nodules"]
    assert (nodule["diameter_mm"], nodule["readers"]) == (20.0, 4)
    assert nodule["voxels"] == (Luna16(luna16).read(UID).votes > 0).sum()
    assert len(entry["spheres"]) == 1
    assert not entry["has_outlines"]


def test_the_scan_record_is_the_volume(prepared, luna16, settings):
    scan = Luna16(luna16).read(UID)
    volume = make_volume(scan, settings.spacing_mm, settings.margin_mm)
    (record,) = records(prepared, "scan")
    np.testing.assert_array_equal(record.volume.hu, volume.hu)
    np.testing.assert_array_equal(record.volume.lungs, volume.lungs)
    assert record.volume.grid.to_json() == volume.grid.to_json()
    assert record.volume.source.to_json() == scan.grid.to_json()
    np.testing.assert_array_equal(record.ignored(), scan.ignore)
    np.testing.assert_array_equal(
        make_labels(record.findings, record.volume), make_labels(scan.findings, volume)
    )


@pytest.mark.parametrize("uid", [f"1.2.{i}" for i in range(4)])
def test_nodule_blocks_show_the_nodule_at_its_centre(prepared, settings, uid):
    blocks = records(prepared, "nodule", uid)
    assert len(blocks) == settings.nodule_blocks
    for block in blocks:
        assert block.hu.shape == settings.block
        assert block.hu[tuple(block.centre)] > -100  # the nodule, in a lung of -850
        labels = block.crop(np.zeros(3, int), settings.block)[1]
        assert labels[tuple(block.centre)] == 4
        np.testing.assert_allclose(np.argwhere(labels == 4).mean(0), block.centre, atol=1)
    assert len({tuple(b.centre) for b in blocks}) > 1  # at different places


def test_a_nodule_lies_in_the_middle_half_of_its_blocks():
    settings = Settings(block=(8, 12, 16), nodule_blocks=50)
    hu = numbered((40, 40, 40))
    centre = np.array([20.2, 19.7, 18.0])
    blocks = list(
        nodule_blocks(
            hu, np.zeros(hu.shape, np.uint8), [centre], settings, np.random.default_rng(0)
        )
    )
    at = np.array([b.centre for b in blocks])
    assert {b.hu[b.centre] for b in blocks} == {hu[20, 20, 18]}
    assert (at >= np.array(settings.block) / 4 - 1).all()
    assert (at <= np.array(settings.block) * 3 / 4 + 1).all()
    assert (np.ptp(at, axis=0) >= np.array(settings.block) / 3).all()


@pytest.mark.parametrize("at", [(0, 0, 0), (9, 9, 9), (0, 9, 4)])
def test_a_nodule_at_the_end_of_the_volume_is_in_its_blocks(at):
    settings = Settings(block=(6, 6, 6), nodule_blocks=20)
    hu = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
    blocks = nodule_blocks(
        hu, np.zeros(hu.shape, np.uint8), [np.array(at, float)], settings, np.random.default_rng(0)
    )
    for block in blocks:
        assert block.hu[block.centre] == hu[at]
        assert (block.hu != AIR_HU).all()  # moved inside the volume, not padded


def covered(blocks: Iterable[Block], shape) -> np.ndarray:
    """bool (z, y, x): which voxels are in a block; each voxel's value is its number."""
    seen = np.zeros(np.prod(shape), bool)
    for block in blocks:
        numbers = block.hu.astype(np.uint16)
        seen[numbers[numbers < seen.size]] = True
    return seen.reshape(shape)


def numbered(shape) -> np.ndarray:
    return np.arange(np.prod(shape)).astype(np.uint16).view(np.int16).reshape(shape)


@pytest.mark.parametrize("shape", [(10, 10, 10), (17, 30, 21), (25, 8, 40), (5, 31, 12)])
def test_background_blocks_tile_the_lungs(shape):
    settings = Settings(block=(10, 10, 10))
    labels = np.zeros(shape, np.uint8)
    everywhere = list(lung_blocks(numbered(shape), labels, np.ones(shape, bool), settings))
    assert covered(everywhere, shape).all()
    assert len(everywhere) == np.prod(np.ceil(np.array(shape) / 10))  # no more than it takes
    assert all(b.hu.shape == settings.block and b.centre is None for b in everywhere)


def test_background_blocks_of_hardly_any_lung_are_left_out():
    shape, settings = (20, 20, 20), Settings(block=(10, 10, 10))
    lungs = np.zeros(shape, bool)
    lungs[:10, :10, :10] = True
    lungs[0, 0, 10:14] = True
    blocks = list(lung_blocks(numbered(shape), np.zeros(shape, np.uint8), lungs, settings))
    assert len(blocks) == 1
    np.testing.assert_array_equal(blocks[0].hu, numbered(shape)[:10, :10, :10])


def test_blocks_tile_all_but_the_rims_of_real_shapes(prepared, settings):
    (scan,) = records(prepared, "scan")
    volume = scan.volume
    blocks = lung_blocks(
        numbered(volume.hu.shape), np.zeros(volume.hu.shape, np.uint8), volume.lungs, settings
    )
    assert covered(blocks, volume.hu.shape)[volume.lungs].mean() > 0.98


def test_background_blocks_carry_the_labels():
    shape, settings = (12, 12, 12), Settings(block=(12, 12, 12))
    labels = np.zeros(shape, np.uint8)
    labels[3:6, 4:9, 5] = 2
    labels[11, 11, 11] = 255
    (block,) = lung_blocks(numbered(shape), labels, np.ones(shape, bool), settings)
    np.testing.assert_array_equal(block.crop(np.zeros(3, int), shape)[1], labels)


def test_a_volume_smaller_than_a_block_is_padded_with_air():
    settings = Settings(block=(8, 12, 8), nodule_blocks=3)
    hu, labels = np.full((5, 20, 6), 7, np.int16), np.ones((5, 20, 6), np.uint8)
    lungs = np.ones(hu.shape, bool)
    centre = np.array([2.0, 10.0, 5.0])
    near = list(nodule_blocks(hu, labels, [centre], settings, np.random.default_rng(0)))
    for block in (*near, *lung_blocks(hu, labels, lungs, settings)):
        found = block.crop(np.zeros(3, int), settings.block)[1]
        assert block.hu.shape == settings.block
        assert (block.hu[:5, :, :6] == 7).all()
        assert (found[:5, :, :6] == 1).all()
        for padded in (block.hu[5:], block.hu[:, :, 6:]):
            assert (padded == AIR_HU).all()
        assert not found[5:].any()
        assert not found[:, :, 6:].any()
    assert all((b.centre[0], b.centre[2]) == (2, 5) for b in near)


def test_settings_round_trip():
    settings = Settings(0.7, 3.5, (10, 20, 30), 2)
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


# --- Making them again ----------------------------------------------------------------------------


def test_the_same_scan_makes_the_same_bytes(prepared, luna16, tmp_path, settings):
    prepare_scan(Luna16(luna16), UID, tmp_path, settings)
    assert contents(tmp_path) == contents(prepared, "subset0/*")


def test_finished_scans_are_left_alone(done, luna16, settings):
    before = {p: p.stat().st_mtime_ns for p in done.glob("subset0/*")}
    entry = prepare_scan(Luna16(luna16), UID, done, settings)
    assert entry == json.loads((done / "subset0" / f"{UID}.json").read_text(encoding="utf-8"))
    assert {p: p.stat().st_mtime_ns for p in done.glob("subset0/*")} == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["missing", "cut short", "empty"])
def test_a_shard_that_is_not_whole_is_made_again(done, luna16, prepared, settings, kind, damage):
    path = done / "subset0" / f"{UID}.{kind}.arrayrecord"
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut short" else b"")
    prepare_scan(Luna16(luna16), UID, done, settings)
    assert contents(done) == contents(prepared)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"made_from": 1', '{"files": {}}', '"x"']
)
def test_an_entry_that_is_broken_is_not_trusted(done, luna16, prepared, settings, text):
    (done / "subset0" / f"{UID}.json").write_text(text)
    (done / "subset0" / f"{UID}.scan.arrayrecord").unlink()
    prepare_scan(Luna16(luna16), UID, done, settings)
    assert contents(done) == contents(prepared)


def test_other_settings_and_versions_make_other_shards(done, luna16, monkeypatch):
    before = contents(done)
    other = Settings(spacing_mm=5.0, margin_mm=8.0, block=(20, 20, 20), nodule_blocks=2)
    assert (
        prepare_scan(Luna16(luna16), UID, done, other)["made_from"]["settings"]["spacing_mm"] == 5
    )
    after = contents(done)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.startswith(f"subset0/{UID}.")}
    monkeypatch.setattr(shards, "__version__", "9.9")
    assert prepare_scan(Luna16(luna16), UID, done, other)["made_from"]["version"] == "9.9"


# --- Interruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("fatal", [1, 2, 5, 11])
def test_an_error_while_writing_leaves_nothing_that_is_trusted(
    luna16, tmp_path, prepared, settings, monkeypatch, fatal
):
    writer = record_files.ArrayRecordWriter
    written = []

    class Failing:
        def __init__(self, *arguments):
            self._writer = writer(*arguments)

        def write(self, record):
            written.append(record)
            if len(written) == fatal:
                raise OSError("no space left on device")
            self._writer.write(record)

        def close(self):
            self._writer.close()

    dataset = Luna16(luna16)
    with monkeypatch.context() as patch:
        patch.setattr(record_files, "ArrayRecordWriter", Failing)
        with pytest.raises(OSError, match="no space"):
            prepare_scan(dataset, UID, tmp_path, settings)
    left = contents(tmp_path)
    assert f"subset0/{UID}.json" not in left
    assert not [name for name in left if "/." in name]  # nothing temporary
    prepare_scan(dataset, UID, tmp_path, settings)
    assert contents(tmp_path) == contents(prepared, "subset0/*")


def test_a_full_disk_is_told_as_the_library_has_it(luna16, tmp_path, settings):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # a shard has 64 KiB and more
    try:
        with pytest.raises(OSError, match=r"File too large.*nodule\.arrayrecord"):
            prepare_scan(Luna16(luna16), UID, tmp_path, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not contents(tmp_path)


def test_a_nodule_beyond_the_lungs_and_their_margin_has_no_blocks(luna16, tmp_path, settings):
    folder = pathlib.Path(shutil.copytree(luna16, tmp_path / "luna16"))
    z, y, x = Luna16(folder).read(UID).grid.to_world([0, 0, 0])
    with open(folder / "annotations.csv", "a") as table:
        table.write(f"{UID},{x},{y},{z},5\n")
    entry = prepare_scan(Luna16(folder), UID, tmp_path, settings)
    assert len(entry["nodules"]) == 2
    assert entry["files"]["nodule"]["records"] == settings.nodule_blocks


def test_what_is_ignored_is_counted_where_it_has_voxels(luna16, tmp_path, settings):
    folder = pathlib.Path(shutil.copytree(luna16, tmp_path / "luna16"))
    scan = Luna16(folder).read(UID)
    on, off = scan.findings[0].centre_mm, scan.findings[0].centre_mm + np.array([0, 0, -40.0])
    rows = "".join(f"{UID},{x},{y},{z},-1\n" for z, y, x in (on, off))
    (folder / "annotations_excluded.csv").write_text(
        f"seriesuid,coordX,coordY,coordZ,diameter_mm\n{rows}"
    )
    entry = prepare_scan(Luna16(folder), UID, tmp_path, settings)
    assert entry["ignored_findings"] == 1 and entry["ignored_voxels"] > 0


KILLED = """
import os, signal, sys
from lung_unet.data import records, shards
from lung_unet.data.luna16 import Luna16

class Killing(records.ArrayRecordWriter):
    written = 0
    def write(self, record):
        super().write(record)
        Killing.written += 1
        if Killing.written == 4:
            os.kill(os.getpid(), signal.SIGKILL)

records.ArrayRecordWriter = Killing
root, out, uid = sys.argv[1:]
settings = shards.Settings(4.0, 8.0, (20, 20, 20), 2)
shards.prepare_scan(Luna16(root), uid, shards.pathlib.Path(out), settings)
"""


def test_a_run_killed_half_way_leaves_nothing_that_is_trusted(luna16, tmp_path, prepared, settings):
    assert Settings(4.0, 8.0, (20, 20, 20), 2) == settings
    command = [sys.executable, "-c", KILLED, str(luna16), str(tmp_path), UID]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    left = contents(tmp_path)
    assert left, "the run was killed before it wrote anything"
    assert f"subset0/{UID}.json" not in left
    assert f"subset0/{UID}.background.arrayrecord" not in left
    prepare_scan(Luna16(luna16), UID, tmp_path, settings)
    visible = {k: v for k, v in contents(tmp_path).items() if "/." not in k}
    assert visible == contents(prepared, "subset0/*")


def test_a_change_that_was_killed_half_way_leaves_nothing_that_is_trusted(
    luna16, tmp_path, prepared
):
    """Shards have round sizes: one of before the change may be as large as one of after it."""
    folder = pathlib.Path(shutil.copytree(luna16, tmp_path / "luna16"))
    out = pathlib.Path(shutil.copytree(prepared, tmp_path / "out"))
    table = folder / "annotations.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("20.0", "12.0", 1))
    command = [sys.executable, "-c", KILLED, str(folder), str(out), UID]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9
    assert not (out / "subset0" / f"{UID}.json").exists()
    assert not (out / "manifest.json").exists()  # nothing trains on it now
