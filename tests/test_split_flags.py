"""A command takes the scans of each split, or a folder of each patient, and never both."""

import json

import pytest
from absl import flags

from lung_unet import split_flags
from lung_unet.errors import InputError


@pytest.fixture
def parse(monkeypatch):
    own = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", own)
    for split in ("train", "validation", "test", "patients"):
        flags.DEFINE_list(split, [], "", flag_values=own)
    flags.DEFINE_string("lidc_xml", None, "", flag_values=own)

    def parse(*given):
        own.unparse_flags()
        for name in own:
            own[name].unparse()
        own(["command", *given])
        return split_flags.given()

    return parse


def test_patients_rotate_in_the_order_given_and_are_named_by_their_folders(parse, tmp_path):
    given = parse(f"--patients={tmp_path}/b,{tmp_path}/a,{tmp_path}/c", f"--lidc_xml={tmp_path}/x")
    assert given.names == ["b", "a", "c"]
    assert json.loads(given.to_json()) == {
        "patients": [f"{tmp_path}/{name}" for name in "bac"], "lidc_xml": f"{tmp_path}/x"
    }  # fmt: skip
    other = parse(f"--patients={tmp_path}/a,{tmp_path}/b,{tmp_path}/c", f"--lidc_xml={tmp_path}/x")
    assert other.to_json() != given.to_json()  # rotation 0 tests on another
    same = parse(f"--patients={tmp_path}/a/s,{tmp_path}/b/s,{tmp_path}/c/s")
    assert same.names == [f"{tmp_path}/{name}/s" for name in "abc"]


def test_the_order_of_a_splits_folders_changes_nothing(parse):
    one = parse("--train=a,b", "--validation=c", "--test=d")
    assert one.to_json() == parse("--train=b,a", "--validation=c", "--test=d").to_json()
    assert one.names == [] and parse() is None


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_fixed_split_beside_patients_is_refused(parse, split):
    with pytest.raises(InputError, match=f"--{split}: is not used with --patients"):
        parse("--patients=a,b,c", f"--{split}=d")
