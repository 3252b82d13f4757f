"""A workdir goes on with the run that made it, and with no other."""

import json
import pathlib
import shutil

import pytest

from lung_unet.command import frozen
from lung_unet.data.manifest import Dataset
from lung_unet.errors import InputError
from lung_unet.finished import finish, is_finished
from lung_unet.workdir import check_data, claim, load


@pytest.fixture
def workdir(tmp_path, config, dataset) -> pathlib.Path:
    """Of a run that was trained."""
    claim(tmp_path / "run", config, dataset)
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    return tmp_path / "run"


def refused(saying: str, call, *arguments) -> None:
    with pytest.raises(InputError, match=saying) as error:
        call(*arguments)
    assert "\n" not in str(error.value)


def test_a_run_says_what_made_it(workdir, config, dataset, settings):
    run = load(workdir)
    assert frozen(run.config) == frozen(config)
    assert run.settings == settings
    assert run.dataset == dataset.folder
    assert run.config.data.patch[0] == config.data.patch[0]


def test_the_same_run_goes_on(workdir, config, dataset):
    before = (workdir / "config.json").read_text(encoding="utf-8")
    claim(workdir, config, dataset)
    assert (workdir / "config.json").read_text(encoding="utf-8") == before


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.steps", 9), ("train.log_every", 7), ("train.eval_every", 7), ("data.threads", 3),
     ("train.checkpoint_every", 7), ("data.prefetch", 9), ("mesh.data", 2), ("mesh.space", 2),
     ("evaluation.threshold", 0.3), ("data.dir", "elsewhere"), ("variant", "")],
)  # fmt: skip
def test_what_may_differ(workdir, config, dataset, key, value):
    config.update_from_flattened_dict({key: value})
    claim(workdir, config, dataset)
    assert frozen(load(workdir).config) == frozen(config)


def test_a_run_from_before_an_augmentation_goes_on_without_it(workdir, config, dataset):
    made = workdir / "config.json"
    found = json.loads(made.read_text(encoding="utf-8"))
    del found["config"]["augment"]["kernel"]
    made.write_text(json.dumps(found))
    config.augment.kernel.update(probability=0.0, amount=(0.0, 3.0))
    claim(workdir, config, dataset)
    config.augment.kernel.probability = 0.5
    refused(r"augment\.kernel", claim, workdir, config, dataset)


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", 5), ("optimizer.learning_rate", 1.0), ("data.patch", (8, 8, 8)), ("data.fold", 1),
     ("model.channels", (4, 8, 16)), ("train.batch_size", 3), ("loss.name", "dice"),
     ("augment.flip.probability", 0.0), ("data.consensus", 3)],
)  # fmt: skip
def test_another_configuration_is_refused(workdir, config, dataset, key, value):
    before = (workdir / "config.json").read_text(encoding="utf-8")
    config.update_from_flattened_dict({key: value})
    refused(f"config.{key} = .*choose another --workdir", claim, workdir, config, dataset)
    assert (workdir / "config.json").read_text(encoding="utf-8") == before


def test_what_was_never_trained_can_be_put_right(workdir, config, dataset):
    (workdir / "checkpoints" / "4").rmdir()
    config.train.batch_size = 1  # as a message said
    claim(workdir, config, dataset)
    assert load(workdir).config.train.batch_size == 1


def test_a_run_that_is_done_is_not_made_shorter(workdir, config, dataset):
    finish(workdir, 4)
    before = (workdir / "config.json").read_text(encoding="utf-8")
    config.train.steps = 1
    refused("is done, with 4 steps; choose no fewer", claim, workdir, config, dataset)
    assert (workdir / "config.json").read_text(encoding="utf-8") == before and is_finished(workdir)


def test_what_another_run_left_is_not_this_one_s(workdir, config, dataset):
    finish(workdir, 4)
    (workdir / "metrics.json").touch()
    (workdir / "checkpoints" / "4").rmdir()
    config.train.batch_size = 1
    claim(workdir, config, dataset)
    assert not is_finished(workdir) and not (workdir / "metrics.json").exists()


@pytest.mark.parametrize(
    ("key", "value", "done"),
    [
        ("train.steps", 9, False),
        ("evaluation.threshold", 0.3, False),
        ("data.threads", 3, True),
    ],
)
def test_a_run_with_more_to_do_is_not_done(workdir, config, dataset, key, value, done):
    finish(workdir, 4)
    config.update_from_flattened_dict({key: value})
    claim(workdir, config, dataset)
    assert is_finished(workdir) == done


def test_data_that_a_refused_run_prepared_are_named(workdir, config, dataset):
    config.train.batch_size = 1
    refused("choose another --workdir$", claim, workdir, config, dataset)
    (workdir / "data").mkdir()
    saying = f"choose another --workdir, with --config.data.dir={workdir}/data for its data"
    refused(saying, claim, workdir, config, dataset)


def test_candidates_are_kept_and_named_by_any_path(tmp_path, second_config, dataset):
    claim(tmp_path, second_config, dataset)
    second_config.candidates.update(workdir="/elsewhere/../RUN", csv="/moved.csv")
    claim(tmp_path, second_config, dataset)  # collect.py knows what is in them
    (tmp_path / "candidates").mkdir()
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    second_config.train.batch_size += 1
    saying = f"choose another --workdir, and move {tmp_path}/candidates there for its candidates"
    refused(saying, claim, tmp_path, second_config, dataset)


def test_a_configuration_with_another_key_is_refused(workdir, config, dataset):
    with config.unlocked():
        config.model.extra = 1
    refused("config.model.extra = None, not 1", claim, workdir, config, dataset)


def test_another_dataset_is_refused(workdir, config, prepared, tmp_path):
    other = pathlib.Path(shutil.copytree(prepared, tmp_path / "other"))
    claim(workdir, config, Dataset(other))  # a copy is the same dataset
    assert load(workdir).dataset == other
    manifest = json.loads((other / "manifest.json").read_text(encoding="utf-8"))
    manifest["scans"][3]["made_from"]["input"] = "changed"
    (other / "manifest.json").write_text(json.dumps(manifest))
    before = (workdir / "config.json").read_text(encoding="utf-8")
    refused("another dataset or another version", claim, workdir, config, Dataset(other))
    assert (workdir / "config.json").read_text(encoding="utf-8") == before


def test_what_differs_and_where_the_scans_of_before_are(workdir, config, dataset, prepared):
    shutil.copytree(prepared, workdir / "data")
    now = json.loads(json.dumps(dataset.identity))
    check_data(workdir, now, "scans")
    now["scans"][2][2] = "changed"
    saying = rf"another dataset .* \(1 of .*1\.2\.2\).*--config.data.dir={workdir}/data"
    refused(saying, check_data, workdir, now, "scans")
    shutil.rmtree(workdir / "data")
    refused(
        "another dataset .* scans; choose another --workdir$", check_data, workdir, now, "scans"
    )
    now["settings"]["format"] += 1
    refused("dataset of format .* the version of lung_unet", check_data, workdir, now, "scans")
    shutil.rmtree(workdir / "checkpoints")
    check_data(workdir, now, "scans")  # nothing was trained on others


def test_a_workdir_that_moves_takes_its_data_along(tmp_path, config, prepared):
    for stored in ("as now", "as before"):
        workdir = tmp_path / stored
        shutil.copytree(prepared, workdir / "data")
        claim(workdir, config, Dataset(workdir / "data"))
        if stored == "as before":  # where the folder was
            found = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
            found["dataset"] = str(workdir / "data")
            (workdir / "config.json").write_text(json.dumps(found))
        moved = workdir.rename(tmp_path / f"{stored}, moved")
        assert load(moved).dataset == moved / "data"
        claim(moved, config, Dataset(moved / "data"))


def test_checkpoints_of_nobody_are_refused(tmp_path, config, dataset):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    refused("holds checkpoints but no config.json", claim, tmp_path, config, dataset)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 2, "data": 3}'])
def test_a_broken_config_json(workdir, config, dataset, text):
    (workdir / "config.json").write_text(text)
    refused("config.json: is broken", load, workdir)
    refused("config.json: is broken", claim, workdir, config, dataset)


def test_a_config_json_without_any_of_its_keys(workdir):
    whole = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    broken = [{k: v for k, v in whole.items() if k != key} for key in whole if key != "format"]
    broken += [whole | {key: 3} for key in ("config", "settings", "dataset")]
    for content in broken:
        (workdir / "config.json").write_text(json.dumps(content))
        refused("config.json: is broken", load, workdir)


def test_a_run_of_another_version_is_refused(workdir, config, dataset):
    whole = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    older = {key: value for key, value in whole.items() if key != "format"}
    for content in (older, whole | {"format": whole["format"] + 1}):
        (workdir / "config.json").write_text(json.dumps(content))
        refused("made by another version of lung_unet; use that one, or train", load, workdir)
        refused("made by another version of lung_unet", claim, workdir, config, dataset)


def test_no_workdir(tmp_path):
    refused("no such folder; give the --workdir of a training run", load, tmp_path / "none")
    refused("has no config.json; give the --workdir of a training run", load, tmp_path)


@pytest.mark.parametrize("path", ["/proc/run", "file/run"])
def test_a_workdir_that_cannot_be_written(tmp_path, config, dataset, path):
    (tmp_path / "file").touch()
    refused(
        r"run: cannot be written \(.+\); choose another", claim, tmp_path / path, config, dataset
    )
