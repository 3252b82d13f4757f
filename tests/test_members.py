"""Runs predict together where that means something, and are scored on what none has seen."""

import dataclasses
import json
import shutil

import pytest

from lung_unet.data.manifest import NAME, Dataset
from lung_unet.errors import InputError
from lung_unet.members import check_together, dataset_to_score
from lung_unet.workdir import claim, load


@pytest.fixture
def run(shrunk_config, prepared, tmp_path):
    """run(name, key=value of the configuration) → the run of a claimed workdir."""

    def make(name, fold=0, **values):
        config = shrunk_config()
        config.data.fold = fold
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
        claim(tmp_path / name, config, Dataset(prepared, fold))
        return load(tmp_path / name)

    return make


@pytest.fixture
def new_scans(prepared, tmp_path):
    """new_scans() → another dataset: the same scans, made to be others in the manifest.

    Of the scans `keep` nothing is changed, of `renamed` all but the voxels.
    """

    def make(name="new", keep=(), renamed=(), patients=(), **settings):
        folder = shutil.copytree(prepared, tmp_path / name)
        manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
        manifest["settings"] |= settings
        for number, entry in enumerate(manifest["scans"]):
            if number not in keep:
                entry["series_uid"] = f"9.{number}"
                entry["made_from"]["input"] = f"other {number}"
            if number not in (*keep, *renamed):
                entry["voxels"] = f"other {number}"
        for entry, patient in zip(manifest["scans"], patients, strict=False):
            entry["patient"] = patient
        (folder / NAME).write_text(json.dumps(manifest))
        return folder

    return make


def test_seeds_networks_and_windows_may_differ(run):
    check_together(
        [run("a"), run("b", seed=1), run("c", model__channels=(4, 8, 16)),
         run("d", data__patch=(8, 8, 8), data__window_hu=(-1000.0, 0.0))]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            {"data__label": "any"},
            "the number of readers that make a voxel nodule is 2 in one and 1",
        ),
        ({"evaluation__threshold": 0.4}, "config.evaluation.threshold is None in one and 0.4"),
    ],
)
def test_two_runs_that_mark_something_else_are_named(run, value, told):
    with pytest.raises(InputError, match=told) as error:
        check_together([run("a"), run("b"), run("c", **value)])
    assert "a and " in str(error.value) and "c: " in str(error.value)
    assert "\n" not in str(error.value)


def test_runs_of_another_grid_are_named(run):
    a, b = run("a"), run("b")
    coarse = dataclasses.replace(b, settings=dataclasses.replace(b.settings, spacing_mm=2.0))
    with pytest.raises(InputError, match=r"a and .*b: spacing_mm is 4\.0 in one and 2\.0"):
        check_together([a, coarse])


def test_runs_of_one_fold_are_scored_on_its_splits(run, prepared):
    runs = [run("a", fold=2), run("b", fold=2, seed=1)]
    for split in ("test", "train"):
        dataset = dataset_to_score(runs, None, split)
        assert dataset.fold == 2 and dataset.scans("test") == Dataset(prepared, 2).scans("test")


def test_runs_of_several_folds_are_scored_on_new_scans_alone(run, prepared, new_scans):
    runs = [run("a"), run("b", fold=3)]
    for folder in (None, str(prepared)):
        with pytest.raises(InputError, match=r"of folds 0 and 3.*--data of scans that are new"):
            dataset_to_score(runs, folder, "test")
    folder = new_scans()
    dataset = dataset_to_score(runs, str(folder), "test")
    assert dataset.folder == folder and dataset.fold == 0


@pytest.mark.parametrize(("scan", "seen"), [(0, True), (1, True), (2, False)])
def test_a_scan_that_a_run_was_trained_on_is_refused(run, new_scans, scan, seen):
    """Run b trained on scans 0, 1; of the new dataset 0 is a test scan, 1 a validation scan."""
    runs, folder = [run("a"), run("b", fold=2)], new_scans(keep=(scan,))
    if not seen:
        dataset_to_score(runs[1:], str(folder), "test")
        return
    with pytest.raises(InputError, match=rf"b was trained on its scan 1\.2\.{scan};"):
        dataset_to_score(runs[1:], str(folder), "test")


@pytest.mark.parametrize(("scan", "did"), [(0, "trained"), (1, "trained"), (3, "validated")])
@pytest.mark.parametrize("split", ["test", "all"])
def test_a_scan_that_trained_or_chose_is_refused_in_any_split(run, new_scans, scan, did, split):
    """Run b trained on scans 0, 1, chose on 3 and tested on 2. `test` of the new dataset is 0, and
    its validation split 1."""
    folder, b = new_scans(keep=(scan,)), run("b", fold=2)
    if split == "test" and scan > 1:  # it is in training there
        dataset_to_score([b], str(folder), split)
        return
    with pytest.raises(InputError, match=rf"b was {did} on its scan 1\.2\.{scan};"):
        dataset_to_score([b], str(folder), split)


def test_every_scan_of_a_new_dataset_is_one_split(run, prepared, new_scans):
    dataset = dataset_to_score([run("a"), run("b", fold=3)], str(new_scans()), "all")
    assert dataset.fold is None and len(dataset.scans("all")) == 4
    with pytest.raises(InputError, match=r"is what .*a was trained on"):
        dataset_to_score([run("a")], str(prepared), "all")
    with pytest.raises(InputError, match="give it as --data"):
        dataset_to_score([run("a")], None, "all")


def test_a_scan_of_a_subset_of_no_split_can_be_validated_on(run, new_scans):
    """A test scan of the run is new to it, and two scans leave splits empty."""
    folder = new_scans(keep=(2,))
    manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
    manifest["scans"] = manifest["scans"][2:]
    (folder / NAME).write_text(json.dumps(manifest))
    dataset = dataset_to_score([run("b", fold=2)], str(folder), "all")
    assert [e["series_uid"] for e in dataset.scans("all")] == ["1.2.2", "9.3"]


@pytest.mark.parametrize(("patient", "did"), [("P0", "trained"), ("P3", "validated"), ("P2", "")])
@pytest.mark.parametrize("split", ["test", "all"])
def test_another_scan_of_a_patient_that_trained_or_chose_is_refused(
    run, shrunk_config, new_scans, tmp_path, patient, did, split
):
    own = new_scans("own", keep=range(4), patients=["P0", "P1", "P2", "P3"])
    config = shrunk_config()
    config.data.fold = 2
    claim(tmp_path / "b", config, Dataset(own, 2))
    folder = str(new_scans(patients=[patient]))  # of its test scan
    if not did:
        dataset_to_score([load(tmp_path / "b")], folder, split)
        return
    with pytest.raises(InputError, match=rf"b was {did} on another scan of the patient of .*9\.0;"):
        dataset_to_score([load(tmp_path / "b")], folder, split)


def test_a_scan_under_another_name_and_in_other_files_is_the_same(run, new_scans):
    with pytest.raises(InputError, match=r"a was trained on its scan 9\.0;"):
        dataset_to_score([run("a", fold=2)], str(new_scans(renamed=(0,))), "test")
    folder = new_scans("tested", renamed=(2,))  # which is the run's test scan
    assert dataset_to_score([run("a", fold=2)], str(folder), "test").folder == folder


def test_the_manifest_alone_tells_what_a_run_was_trained_on(run, prepared, new_scans, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(prepared / "manifest.json", moved)
    elsewhere = dataclasses.replace(run("a"), dataset=moved)
    folder = new_scans()
    assert dataset_to_score([elsewhere], str(folder), "test").folder == folder


def test_where_nobody_can_tell_it_is_refused(run, new_scans, tmp_path):
    folder = str(new_scans())
    gone = dataclasses.replace(run("a"), dataset=tmp_path / "gone")
    with pytest.raises(InputError, match=r"gone: does not tell any more which scans .*a was"):
        dataset_to_score([gone], folder, "test")
    changed = dataclasses.replace(run("a"), data="other")
    with pytest.raises(InputError, match="it is another version now"):
        dataset_to_score([changed], folder, "test")
    with pytest.raises(InputError, match=r"is not the dataset, or the version of it, that .*a"):
        dataset_to_score([changed], None, "test")
    for name, settings in (("key", {"pseudonym_key": "k"}), ("fine", {"spacing_mm": 1.0})):
        with pytest.raises(InputError, match=f"prepared with {next(iter(settings))} "):
            dataset_to_score([run("a")], str(new_scans(name, **settings)), "test")
