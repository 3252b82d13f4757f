"""A finished second stage opens with what was chosen for it; any other is refused in one line."""

import json

import pytest

from lung_unet import second_stage as module
from lung_unet import workdir as runs
from lung_unet.errors import InputError
from lung_unet.evaluation.judge import SecondStage, identity_of, store
from lung_unet.second_stage import open_second_stage


@pytest.fixture
def classifier(second_config, dataset, tmp_path, monkeypatch):
    """The workdir of a finished classifier."""
    folder = tmp_path / "cls"
    runs.claim(folder, second_config, dataset)
    monkeypatch.setattr(module, "restore_classifier", lambda *_: (None, 3))
    settings = identity_of(folder, second_config, runs.identity(dataset), 3)
    store(folder, SecondStage(None, 0.7, False, settings, 0.4, {"step": 9}), 0.9)
    return folder


def test_a_finished_classifier_opens_with_what_was_chosen(classifier, workdir):
    opened = open_second_stage(classifier, runs.load(workdir))
    assert opened.weight == 0.7 and opened.rated is False
    assert opened.finding_threshold == 0.4 and opened.segmentation == {"step": 9}


def test_each_wrong_classifier_is_one_line(classifier, workdir, monkeypatch):
    def refused(said, folder=classifier):
        with pytest.raises(InputError, match=said) as error:
            open_second_stage(folder, runs.load(workdir))
        assert "\n" not in str(error.value)

    refused("is a run of segmentation; give a classifier", workdir)
    refused("no such folder", classifier / "none")
    path = classifier / "config.json"
    text = path.read_text(encoding="utf-8")
    other = json.loads(text)
    other["settings"]["spacing_mm"] = 1.0
    path.write_text(json.dumps(other))
    refused("at 1 mm, the segmentation at 4 mm")
    other = json.loads(text)
    other["config"]["data"]["fold"] = 2
    path.write_text(json.dumps(other))
    refused("another dataset or fold")
    path.write_text(text)
    monkeypatch.setattr(module, "restore_classifier", lambda *_: (None, 4))
    refused("was not chosen yet for its checkpoint of step 4")
