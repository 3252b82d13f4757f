"""A patient is known by a pseudonym, and is never in two splits."""

import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from lung_unet.data.manifest import split_subsets
from lung_unet.data.patients import patient_key, read_patients, subset_of, together
from lung_unet.errors import InputError

UIDS = [f"1.2.{i}" for i in range(12)]


def test_a_key_says_nothing_of_the_name_and_is_always_the_same():
    key = patient_key("MRN-774900")
    assert key == patient_key(" MRN-774900\0")  # DICOM pads
    assert key != patient_key("MRN-774901")
    assert len(key) == 23
    assert "774900" not in key


def test_what_is_a_key_already_stays():
    key = patient_key("anyone")
    assert patient_key(key) == key
    assert patient_key("0123456789abcdef" * 4) == "sha256:0123456789abcdef"


@pytest.mark.parametrize("number", ["7749001", "1234567890123456", "ABCDEF0123456789"])
def test_a_number_that_looks_like_a_hash_is_hashed(number):
    assert number[:8].lower() not in patient_key(number).lower()


@hypothesis.given(st.text(max_size=20))
@hypothesis.settings(derandomize=True, deadline=None)
def test_a_subset_is_one_of_ten_and_the_patients_own(name):
    assert 0 <= subset_of(patient_key(name)) <= 9
    assert subset_of(patient_key(name)) == subset_of(patient_key(patient_key(name)))


@hypothesis.given(
    st.fixed_dictionaries({uid: st.integers(0, 9) for uid in UIDS}),
    st.dictionaries(st.sampled_from([*UIDS, "1.2.99"]), st.sampled_from("abcde")),
)
@hypothesis.settings(derandomize=True, deadline=None)
def test_no_patient_is_in_two_splits_of_any_fold(subsets, patients):
    moved, notes = together(subsets, patients)
    assert moved.keys() == subsets.keys()
    changed = {uid for uid in subsets if moved[uid] != subsets[uid]}
    assert len(notes) == len(changed)
    assert all(any(f"series {uid} moves" in note for note in notes) for uid in changed)
    assert all(moved[uid] < subsets[uid] for uid in changed)
    folds = len(set(moved.values()))
    for fold in range(folds if folds > 2 else 0):
        for split, held in split_subsets(list(moved.values()), fold).items():
            inside = {patients[u] for u in moved if u in patients and moved[u] in held}
            outside = {patients[u] for u in moved if u in patients and moved[u] not in held}
            assert not inside & outside, split


def refused(path: pathlib.Path, text: str, saying: str) -> None:
    path.write_text(text)
    with pytest.raises(InputError, match=saying) as error:
        read_patients(path)
    assert "\n" not in str(error.value)


def test_a_table_of_patients(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_text("patient,seriesuid\nDoe,1.2.0\nDoe,1.2.1\nDoe,1.2.1\nRoe,1.2.2\n")
    patients = read_patients(path)
    assert patients["1.2.0"] == patients["1.2.1"] == patient_key("Doe") != patients["1.2.2"]
    refused(path, "seriesuid,patient\n1.2.0,a\n1.2.0,b\n", "line 3: series 1.2.0 is of another")
    refused(path, "seriesuid,patient\n1.2.0, \n", "line 2: names no patient")
    refused(path, "seriesuid\n1.2.0\n", "column patient is missing")
