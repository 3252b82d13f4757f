"""With a key nothing that is written tells a series UID; without the key nothing can be linked."""

import json
import pathlib
import re

import pytest

from lung_unet.data.consistency import consistency
from lung_unet.data.manifest import Dataset
from lung_unet.data.preparation import prepare
from lung_unet.data.pseudonyms import Key, read_key
from lung_unet.data.records import decode
from lung_unet.data.shard_reader import scan_records
from lung_unet.data.shards import KINDS
from lung_unet.errors import InputError

KEY, OTHER = Key(b"sixteen bytes or"), Key(b"sixteen bytes so")
UIDS = [f"1.2.{i}" for i in range(4)]


@pytest.fixture(scope="module")
def hidden(luna16, settings, tmp_path_factory) -> pathlib.Path:
    """The folder `luna16`, prepared with a key."""
    out = tmp_path_factory.mktemp("hidden")
    prepare(luna16, out, settings, workers=1, key=KEY)
    return out


def names_a_series(text: str) -> bool:
    return re.search(r"(?<![\d.])1\.2\.[0-3](?![\d])", text) is not None


def test_nothing_that_is_written_names_a_series(hidden, prepared):
    assert names_a_series(
        (prepared / "manifest.json").read_text(encoding="utf-8")
    )  # as it does without a key
    for path in hidden.rglob("*"):
        assert not names_a_series(path.name)
        if path.suffix == ".json":
            assert not names_a_series(path.read_text(encoding="utf-8"))
    dataset = Dataset(hidden)
    for split in dataset.splits:
        for kind in KINDS:
            for shard in dataset.shards(split, kind):
                for record in records(shard):
                    assert not names_a_series(json.dumps(decode(record)[0]))


def records(shard: str) -> list[bytes]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    source = ArrayRecordDataSource([shard])
    return [source[i] for i in range(len(source))]


def test_pseudonyms_are_one_a_series_everywhere(hidden):
    expected = [KEY.pseudonym(uid).series_uid for uid in UIDS]
    assert len(set(expected)) == 4
    manifest = json.loads((hidden / "manifest.json").read_text(encoding="utf-8"))
    assert [e["series_uid"] for e in manifest["scans"]] == expected
    for number, uid in enumerate(expected):
        folder = hidden / f"subset{number}"
        assert {p.name for p in folder.iterdir()} == {
            f"{uid}.json", *(f"{uid}.{kind}.arrayrecord" for kind in KINDS)
        }  # fmt: skip
        assert json.loads((folder / f"{uid}.json").read_text(encoding="utf-8"))["series_uid"] == uid
    dataset = Dataset(hidden)
    found = [r.series_uid for split in ("test", "validation", "train")
             for r in scan_records(dataset, split)]  # fmt: skip
    assert found == expected


def test_a_pseudonym_is_a_uid(hidden):
    for uid in UIDS:
        pseudonym = KEY.pseudonym(uid).series_uid
        assert re.fullmatch(r"2\.25\.[1-9][0-9]*", pseudonym)
        assert len(pseudonym) <= 64


def test_another_key_makes_other_pseudonyms_and_hashes():
    ours, theirs = KEY.pseudonym("1.2.0"), OTHER.pseudonym("1.2.0")
    assert ours == Key(KEY.secret).pseudonym("1.2.0")
    assert ours.series_uid != theirs.series_uid
    assert ours.hash("text") != theirs.hash("text")
    assert KEY.fingerprint != OTHER.fingerprint
    assert KEY.secret.hex() not in repr(KEY) and "sixteen" not in repr(KEY)


def test_the_input_s_fingerprint_needs_the_key_too(hidden, prepared):
    """Or one who guesses a UID could confirm it, from what the files of the archive are like."""
    plain, ours = (
        [
            e["made_from"]["input"]
            for e in json.loads((f / "manifest.json").read_text(encoding="utf-8"))["scans"]
        ]
        for f in (prepared, hidden)
    )
    assert not set(plain) & set(ours)
    assert ours == [KEY.pseudonym(u).hash(p) for u, p in zip(UIDS, plain, strict=True)]


@pytest.mark.parametrize("key", [OTHER, None])
def test_keys_do_not_mix(luna16, hidden, settings, key):
    with pytest.raises(InputError, match=f"pseudonym_key = '{KEY.fingerprint}'.*choose another"):
        prepare(luna16, hidden, settings, key=key)


def test_keys_do_not_mix_in_a_folder_that_is_not_finished(luna16, tmp_path, settings):
    prepare(luna16, tmp_path, settings, workers=1)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(InputError, match="pseudonym_key = ''"):
        prepare(luna16, tmp_path, settings, key=KEY)


def test_the_same_key_goes_on(luna16, hidden, settings):
    before = {p: p.stat().st_mtime_ns for p in hidden.rglob("*")}
    prepare(luna16, hidden, settings, workers=1, key=Key(KEY.secret))
    assert {p: p.stat().st_mtime_ns for p in hidden.rglob("*")} == before


def test_what_is_printed_names_no_series(hidden):
    manifest = json.loads((hidden / "manifest.json").read_text(encoding="utf-8"))
    for entry in manifest["scans"]:
        entry["has_outlines"] = True
    lines = list(consistency(manifest))
    assert len(lines) == 4 + 4  # lungs, two tables, and a line above the four spheres
    assert not names_a_series("\n".join(lines))
    text = KEY.replace_uids("series 1.2.3 moves from subset3 to subset0, 1.5 mm")
    assert (
        text == f"series {KEY.pseudonym('1.2.3').series_uid} moves from subset3 to subset0, 1.5 mm"
    )


def test_a_key_is_a_file_of_16_bytes_or_more(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(KEY.secret)
    assert read_key(path) == KEY
    path.write_bytes(KEY.secret[:15])
    for wrong, saying in ((path, "has 15 bytes, a key needs 16"), (tmp_path, "cannot be read")):
        with pytest.raises(InputError, match=saying) as error:
            read_key(wrong)
        assert "\n" not in str(error.value)
        assert str(wrong) in str(error.value)
