"""The data depend on the seed alone, resume exactly, and are never silently wrong."""

import collections
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from ml_collections import ConfigDict

from lung_unet.data.manifest import Dataset
from lung_unet.data.mining import Mining
from lung_unet.data.pipeline import training_batches, validation_batches
from lung_unet.data.records import Block, block_of
from lung_unet.data.shard_reader import Shards, scan_records
from lung_unet.data.shards import Settings
from lung_unet.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = Settings(4.0, 8.0, (12, 12, 12), 3)
OPTIONS = {"patch": (8, 6, 8), "batch_size": 2, "nodule_fraction": 0.5, "seed": 1, "threads": 2,
           "prefetch": 2}  # fmt: skip


def write_blocks(path: pathlib.Path, blocks: list[Block]) -> dict:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for block in blocks:
        writer.write(block.encode())
    writer.close()
    name = f"{path.parent.name}/{path.name}"
    return {"name": name, "bytes": path.stat().st_size, "records": len(blocks)}


def numbered_block(number: int, centre: tuple[int, int, int] | None) -> Block:
    """All HU are the block's number; a nodule is one voxel, the centre."""
    labels = np.zeros(SETTINGS.block, np.uint8)
    if centre:
        labels[centre] = 1
    hu = np.full(SETTINGS.block, number, np.int16)
    return block_of(hu, labels, np.array(centre) if centre else None)


def write_dataset(folder: pathlib.Path, nodules: int = 3, background: int = 5) -> Dataset:
    """Four scans; scan i has nodule blocks 100 i + 0, 1, … and background blocks 100 i + 50, …"""
    rng = np.random.default_rng(0)
    entries = []
    for i in range(4):
        blocks = {
            "nodule": [
                numbered_block(100 * i + k, tuple(int(c) for c in rng.integers(0, 12, 3)))
                for k in range(nodules)
            ],
            "background": [numbered_block(100 * i + 50 + k, None) for k in range(background)],
            "scan": [],
        }
        files = {
            kind: write_blocks(folder / f"subset{i}" / f"{i}.{kind}.arrayrecord", contents)
            for kind, contents in blocks.items()
        }
        entries.append(
            {"series_uid": str(i), "subset": i, "files": files, "made_from": {"input": str(i)}}
        )
    counts = {"nodule": 4 * nodules, "background": 4 * background, "scan": 0}
    manifest = {
        "source": "LUNA16",
        "settings": SETTINGS.to_json(),
        "counts": counts,
        "scans": entries,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Dataset(folder)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("numbered"))


def first(dataset: Dataset, count: int, **options) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(iter(training_batches(dataset, **OPTIONS | options)), count))


def numbers(batches) -> np.ndarray:
    """The number of the block that each patch was cropped from."""
    return np.concatenate([b["hu"][:, 0, 0, 0] for b in batches])


def assert_same(found, expected) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a["hu"], b["hu"])
        np.testing.assert_array_equal(a["labels"], b["labels"])


def differ(found, expected) -> bool:
    return (
        any((a["labels"] != b["labels"]).any() for a, b in zip(found, expected, strict=True))
        and (numbers(found) != numbers(expected)).any()
    )


# --- Patches --------------------------------------------------------------------------------------


def test_a_batch_is_as_documented(numbered):
    for batch in first(numbered, 4, batch_size=3):
        assert batch.keys() == {"hu", "labels", "block"}
        assert batch["hu"].shape == batch["labels"].shape == (3, 8, 6, 8)
        assert batch["hu"].dtype == np.int16
        assert batch["labels"].dtype == np.uint8
        assert batch["block"].shape == (3,) and batch["block"].dtype == np.int32
        for patch in batch["hu"]:
            assert len(np.unique(patch)) == 1  # of one block


@pytest.mark.parametrize("patch", [(8, 6, 8), (12, 12, 12), (1, 1, 1), (11, 2, 7)])
def test_every_nodule_patch_contains_the_centre(numbered, patch):
    batches = first(numbered, 40, nodule_fraction=1.0, patch=patch)
    labels = np.concatenate([b["labels"] for b in batches])
    assert (labels.sum((1, 2, 3)) == 1).all()
    if patch == (8, 6, 8):  # anywhere in the patch, but its rim
        at = np.argwhere(labels)[:, 1:]
        assert (np.ptp(at, axis=0) >= [4, 3, 4]).all()


def test_background_patches_come_from_everywhere_in_a_block(tmp_path):
    dataset = write_dataset(tmp_path, nodules=0)
    hu = np.arange(12**3, dtype=np.int16).reshape(SETTINGS.block)
    for i in range(4):
        block = block_of(hu, np.zeros(hu.shape, np.uint8), None)
        write_blocks(tmp_path / f"subset{i}" / f"{i}.background.arrayrecord", [block] * 5)
    alone = {"batch_size": 1, "patch": (11, 12, 10), "nodule_fraction": 0.0}
    corners = {int(b["hu"][0, 0, 0, 0]) for b in first(dataset, 300, **alone)}
    assert corners == {hu[z, 0, x] for z in range(2) for x in range(3)}


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_nodule_fraction(numbered, fraction):
    found = numbers(first(numbered, 50, nodule_fraction=fraction))
    assert (found % 100 < 50).mean() == pytest.approx(fraction, abs=0.02)


@pytest.mark.parametrize(
    ("size", "fraction"),
    [(2, 0.5), (1, 1.0), (2, 0.25), (8, 0.75), (10, 0.7), (20, 0.35), (7, 0.5), (3, 1 / 3)],
)
def test_each_batch_has_exactly_its_share_of_nodules(numbered, size, fraction):
    """As nnU-Net's, which has one of two; where the share is no whole number, one more or less."""
    batches = first(numbered, 20, batch_size=size, nodule_fraction=fraction)
    nodules = np.array([(numbers([b]) % 100 < 50).sum() for b in batches])
    assert (np.abs(nodules - size * fraction) < (0.01 if size * fraction % 1 < 0.01 else 1)).all()
    assert nodules.sum() == pytest.approx(20 * size * fraction, abs=1)


def test_the_training_split_alone_is_read_and_each_block_once_an_epoch(numbered):
    found = numbers(first(numbered, 30))
    nodules, background = found[found % 100 < 50], found[found % 100 >= 50]
    of_nodules = [100 * i + k for i in (2, 3) for k in range(3)]
    of_background = [100 * i + 50 + k for i in (2, 3) for k in range(5)]
    epochs = nodules[:30].reshape(5, 6)
    for epoch in epochs:
        assert sorted(epoch) == of_nodules
    assert len({tuple(epoch) for epoch in epochs}) > 1  # shuffled again
    for epoch in background[:30].reshape(3, 10):
        assert sorted(epoch) == of_background


def test_background_blocks_are_numbered_and_nodules_are_not(numbered):
    batches = first(numbered, 30)
    found, block = numbers(batches), np.concatenate([b["block"] for b in batches])
    in_order = [100 * i + 50 + k for i in (2, 3) for k in range(5)]
    assert set(block) == {-1, *range(10)}
    for number, kept in zip(found, block, strict=True):
        assert kept == (in_order.index(number) if number % 100 >= 50 else -1)


def mining_of(fraction: float, *hard: int) -> Mining:
    """Only some of the ten background blocks have false positives."""
    mining = Mining(ConfigDict({"every": 1, "fraction": fraction}), 10)
    mining.record(np.arange(10), np.isin(np.arange(10), hard).astype(np.float32))
    mining.refresh()
    return mining


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1.0])
def test_the_mined_share_is_of_hard_blocks_and_the_rest_is_uniform(numbered, fraction):
    batches = first(numbered, 40, batch_size=8, mining=mining_of(fraction, 7))
    block = np.stack([np.sort(b["block"][b["block"] >= 0]) for b in batches])
    assert block.shape == (40, 4)  # beside four nodules
    assert ((block == 7).sum(1) >= 4 * fraction).all()
    counts = np.bincount(block.ravel(), minlength=10) / block.size
    expected = np.full(10, (1 - fraction) / 10)
    expected[7] += fraction
    np.testing.assert_allclose(counts, expected, atol=0.02)


def test_what_is_mined_changes_neither_nodules_nor_the_uniform_share(numbered):
    plain, found = (numbers(first(numbered, 40, mining=m)) for m in (None, mining_of(0.5, 7)))
    assert found[found % 100 < 50].tolist() == plain[plain % 100 < 50].tolist()
    uniform = found[found % 100 >= 50][::2]  # every other one is mined
    assert uniform.tolist() == plain[plain % 100 >= 50][: len(uniform)].tolist()


def test_new_scores_take_effect_at_once_and_exactly(numbered):
    """Whatever was read ahead: as if these had been the scores from the start."""
    mining = mining_of(0.5, 7)
    iterator = iter(training_batches(numbered, **OPTIONS, mining=mining))
    before = [next(iterator) for _ in range(9)]
    mining.set_state(mining_of(0.5, 2).get_state())
    iterator.set_state(iterator.get_state())
    after = [next(iterator) for _ in range(9)]
    assert_same(before, first(numbered, 9, mining=mining_of(0.5, 7)))
    assert_same(after, first(numbered, 18, mining=mining_of(0.5, 2), threads=5)[9:])
    hard = [set(numbers(batches)) & {252, 352} for batches in (before, after)]
    assert hard[0] >= {352} and hard[1] >= {252}


def test_a_block_is_cropped_elsewhere_each_time(numbered):
    batches = first(numbered, 40, nodule_fraction=1.0, batch_size=1)
    seen = collections.defaultdict(set)
    for batch in batches:
        seen[int(numbers([batch])[0])].add(batch["labels"].tobytes())
    assert all(len(crops) > 1 for crops in seen.values())


def test_without_nodules_only_background_can_be_asked_for(tmp_path):
    dataset = write_dataset(tmp_path, nodules=0)
    with pytest.raises(InputError, match="train split has no nodule; prepare scans that have some"):
        training_batches(dataset, **OPTIONS)
    found = numbers(first(dataset, 10, nodule_fraction=0.0))
    assert (found % 100 >= 50).all()


def test_without_blocks_there_is_an_error(tmp_path):
    dataset = write_dataset(tmp_path, nodules=0, background=0)
    with pytest.raises(InputError, match="the train split has no blocks"):
        training_batches(dataset, **OPTIONS)
    with pytest.raises(InputError, match="the validation split has no blocks"):
        validation_batches(dataset, patch=(8, 8, 8), batch_size=2, patches=4, seed=0)


@pytest.mark.parametrize("patch", [(13, 8, 8), (8, 8, 128), (8, 8), (8, 8, 8, 8), (0, 8, 8), ()])
def test_a_patch_that_no_block_holds_is_refused(numbered, patch):
    for batches in (
        lambda: training_batches(numbered, **OPTIONS | {"patch": patch}),
        lambda: validation_batches(numbered, patch=patch, batch_size=2, patches=4, seed=0),
    ):
        with pytest.raises(InputError, match=r"config\.data\.patch"):
            batches()


# --- Order ----------------------------------------------------------------------------------------


def test_the_seed_alone_decides(numbered):
    expected = first(numbered, 8)
    assert_same(first(numbered, 8), expected)
    assert_same(first(numbered, 8, threads=5, prefetch=1), expected)
    assert differ(first(numbered, 8, seed=2), expected)


def test_the_seed_decides_where_a_block_is_cropped(numbered):
    """Not only in which order the blocks come."""
    crops = []
    for seed in (1, 2):
        batches = first(numbered, 60, batch_size=1, nodule_fraction=1.0, seed=seed)
        crops.append([b["labels"] for b in batches if numbers([b])[0] == 200])
    assert len(crops[0]) == len(crops[1]) == 10
    assert any((a != b).any() for a, b in zip(*crops, strict=True))


@pytest.mark.parametrize(("shards", "mining"), [(2, None), (4, mining_of(0.5, 2, 7))])
def test_shards_read_parts_of_the_same_global_batches(numbered, shards, mining):
    options = {"batch_size": 8, "mining": mining}
    whole = first(numbered, 6, **options)
    parts = [first(numbered, 6, **options, shard=i, shards=shards) for i in range(shards)]
    together = [
        {key: np.concatenate([b[key] for b in batch]) for key in ("hu", "labels")}
        for batch in zip(*parts, strict=True)
    ]
    assert_same(together, whole)


@pytest.mark.parametrize("after", [0, 1, 7, 23])
@pytest.mark.parametrize("threads", [1, 4])
def test_an_iterator_resumes_exactly_with_any_number_of_threads(numbered, after, threads):
    iterator = iter(training_batches(numbered, **OPTIONS))
    for _ in range(after):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(5)]
    other = iter(training_batches(numbered, **OPTIONS | {"threads": threads, "prefetch": 7}))
    other.set_state(state)
    assert_same([next(other) for _ in range(5)], expected)
    iterator.set_state(state)  # and back in place
    assert_same([next(iterator) for _ in range(5)], expected)


def test_a_state_survives_json(numbered):
    iterator = iter(training_batches(numbered, **OPTIONS))
    next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = next(iterator)
    iterator.set_state(state)
    assert_same([next(iterator)], [expected])


def test_validation_patches_are_the_same_every_time(numbered):
    options = {"patch": (8, 8, 8), "batch_size": 4, "patches": 10, "seed": 3}
    batches = validation_batches(numbered, **options)
    assert_same(validation_batches(numbered, **options), batches)
    assert [b["hu"].shape for b in batches] == [(4, 8, 8, 8)] * 3  # patches, filled up to batches
    found = numbers(batches)
    assert set(found // 100) == {1}  # subset 1 validates
    assert (found % 100 < 50).sum() == 6  # half around nodules
    assert differ(validation_batches(numbered, **options | {"seed": 4}), batches)


# --- Real records, and broken ones ----------------------------------------------------------------


def test_scan_records_are_in_the_manifest_s_order(dataset):
    records = scan_records(dataset, "train")
    assert len(records) == 2
    assert [records[i].series_uid for i in range(2)] == ["1.2.2", "1.2.3"]
    assert [e["series_uid"] for e in dataset.scans("train")] == ["1.2.2", "1.2.3"]


def test_batches_of_prepared_scans(dataset):
    (batch,) = first(dataset, 1, patch=(16, 16, 16), nodule_fraction=1.0)
    for hu, labels in zip(batch["hu"], batch["labels"], strict=True):
        assert hu[labels == 4].mean() > -200 > -500 > hu[labels == 0].mean()


def noise_blocks(count: int) -> list[Block]:
    rng = np.random.default_rng(0)
    none = np.zeros(SETTINGS.block, np.uint8)
    return [
        block_of(rng.integers(-1000, 1000, SETTINGS.block).astype(np.int16), none, None)
        for _ in range(count)
    ]


@pytest.mark.parametrize("damaged", [0, 2, 4])
def test_a_broken_record_is_named_by_shard_and_number(tmp_path, damaged):
    """Random voxels do not compress, so a record's bytes can be found in its shard."""
    blocks = noise_blocks(5)
    paths = [tmp_path / "good.arrayrecord", tmp_path / "bad.arrayrecord"]
    for path in paths:
        write_blocks(path, blocks)
    content = bytearray(paths[1].read_bytes())
    reach = len(content)
    found = None
    for at in range(200, reach, 400):  # the first damage that hits this record
        broken = bytearray(content)
        broken[at] ^= 0xFF
        paths[1].write_bytes(broken)
        records = Shards([str(p) for p in paths], Block.decode)
        for number in range(5):
            try:
                records[5 + number]
            except InputError as error:
                if number == damaged:
                    found = str(error)
        if found:
            break
    assert found
    assert f"bad.arrayrecord: record {damaged} is broken" in found
    assert "\n" not in found
    np.testing.assert_array_equal(records[damaged].hu, blocks[damaged].hu)  # the good shard's


def test_damage_anywhere_is_an_error_or_without_effect(tmp_path):
    blocks = noise_blocks(3)
    path = tmp_path / "a.arrayrecord"
    write_blocks(path, blocks)
    content = path.read_bytes()
    errors = 0
    for at in [
        *range(0, len(content), 997),
        *range(0, 64, 9),
        *range(len(content) - 64, len(content), 9),
    ]:
        broken = bytearray(content)
        broken[at] ^= 0xFF
        path.write_bytes(broken)
        try:
            records = Shards([str(path)], Block.decode)
            found = [records[i].hu for i in range(3)]
        except InputError as error:
            assert str(path) in str(error)
            errors += 1
        else:
            for hu, block in zip(found, blocks, strict=True):
                np.testing.assert_array_equal(hu, block.hu)
    assert errors > 5


def test_a_broken_record_stops_training_with_one_line(tmp_path):
    dataset = write_dataset(tmp_path, nodules=0)
    for i in (2, 3):
        path = tmp_path / f"subset{i}" / f"{i}.background.arrayrecord"
        write_blocks(path, noise_blocks(5))
        content = bytearray(path.read_bytes())
        for at in range(500, 12_000, 100):
            content[at] ^= 0xFF
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"background\.arrayrecord: record \d is broken"):
        first(dataset, 10, nodule_fraction=0.0)


def write_garbage(path: pathlib.Path, blocks: list[Block], *at: int) -> None:
    """A shard whose records `at` are none."""
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for number, block in enumerate(blocks):
        writer.write(b"garbage" if number in at else block.encode())
    writer.close()


def test_a_skipped_record_is_the_next_one_every_time_and_told_once(numbered, tmp_path, capsys):
    """The order of all others does not change."""
    dataset = write_dataset(tmp_path)
    blocks = [numbered_block(350 + k, None) for k in range(5)]
    path = tmp_path / "subset3" / "3.background.arrayrecord"
    write_garbage(path, blocks, 1, 4)  # the last one's next is the first of all: 250
    with pytest.raises(InputError, match=r"3\.background\.arrayrecord: record [14] is broken"):
        first(dataset, 20)
    for threads in (1, 4):
        found = numbers(first(dataset, 20, on_broken="skip", threads=threads))
        whole = numbers(first(numbered, 20))
        expected = np.select([whole == 351, whole == 354], [352, 250], whole)
        np.testing.assert_array_equal(found, expected)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2
        for number in (1, 4):
            assert sum(f"{path}: record {number} is broken" in line for line in lines) == 1


def test_a_shard_without_a_whole_index_is_named(tmp_path):
    """As a power cut leaves it: of the right size, and empty at its end."""
    paths = [tmp_path / name for name in ("a.arrayrecord", "b.arrayrecord")]
    for path in paths:
        write_blocks(path, noise_blocks(3))
    size = paths[1].stat().st_size
    with open(paths[1], "r+b") as file:
        file.seek(size - (1 << 16))
        file.write(bytes(1 << 16))
    with pytest.raises(InputError, match=r"b\.arrayrecord: is broken .*delete the shard") as error:
        Shards(list(map(str, paths)), Block.decode, "skip")
    assert "\n" not in str(error.value)


MANY = """
import resource, sys
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, int(sys.argv[1]) or most))
from lung_unet.data.shard_reader import Shards
from lung_unet.errors import InputError
try:
    records = Shards(sys.argv[2:], bytes, "skip")
    print(len([records[i] for i in range(len(records))]))
except InputError as error:
    print(error)
"""


def test_more_shards_than_a_process_has_open_files_by_default(tmp_path):
    paths = [tmp_path / f"{number}.arrayrecord" for number in range(60)]
    for path in paths:
        write_blocks(path, [numbered_block(1, None)])

    def read(most: int) -> str:
        command = [sys.executable, "-c", MANY, str(most), *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert read(0) == "60"
    told = read(40)  # as many as the system lets: nothing is broken, nothing is skipped
    assert "may have no more files open" in told and len(told.splitlines()) == 1


def test_a_record_is_skipped_to_the_next_that_is_whole(tmp_path):
    blocks = [numbered_block(k, None) for k in range(6)]
    path = tmp_path / "a.arrayrecord"
    write_garbage(path, blocks, 1, 2, 3, 5)
    records = Shards([str(path)], Block.decode, "skip")
    assert [int(r.hu[0, 0, 0]) for r in records] == [0, 4, 4, 4, 4, 0]
    write_garbage(path, blocks, *range(6))
    with pytest.raises(InputError, match=r"a\.arrayrecord.*all records are broken; run again"):
        Shards([str(path)], Block.decode, "skip", "run again")[2]
    with pytest.raises(InputError, match=r"config\.data\.on_broken = 'warn': choose stop or"):
        Shards([str(path)], Block.decode, "warn")
