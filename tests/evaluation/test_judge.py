"""A second stage opened beside a segmentation: what it says of marks, and what is refused."""

import json

import numpy as np
import pytest

from lung_unet import workdir as runs
from lung_unet.errors import InputError
from lung_unet.evaluation import judge as module
from lung_unet.evaluation.judge import SecondStage, identity_of, open_second_stage, store
from lung_unet.evaluation.split import evaluate_split

MEMBERS = [{"step": 7}]


class Knowing:
    """Calls marks left of the middle nodules, the further the more malignant."""

    def __call__(self, volume, centres_mm):
        x = np.array([centre[2] for centre in centres_mm])
        return np.where(x > 0, 0.9, 0.2), np.clip(3 + x / 50, 1, 5)

    def attribution(self, volume, centre_mm):
        return np.zeros((8, 8, 8), np.int16), np.zeros((8, 8, 8), np.float32)


@pytest.fixture
def second():
    return SecondStage(Knowing(), 0.5, True, {"step": 3})


@pytest.fixture
def classifier(second_config, dataset, tmp_path, monkeypatch):
    """The workdir of a finished classifier."""
    folder = tmp_path / "cls"
    runs.claim(folder, second_config, dataset)
    monkeypatch.setattr(module, "restore_classifier", lambda *_: (Knowing(), 3))
    settings = identity_of(folder, second_config, runs.identity(dataset), 3)
    store(folder, SecondStage(Knowing(), 0.7, False, settings), 0.9)
    return folder


def test_metrics_and_report_have_both_stages(config, dataset, oracle, second, tmp_path):
    metrics = evaluate_split(oracle(shift=1), config, dataset, "test", tmp_path, MEMBERS, second)
    own = metrics["second_stage"]
    assert own["first_stage"]["cpm"] == metrics["cpm"] and own["weight"] == 0.5
    assert json.loads((tmp_path / "metrics.json").read_text())["second_stage"] == own
    report = (tmp_path / "report.html").read_text()
    assert "integrated gradients" in report and "no nodule that was found is rated" in report
    assert (tmp_path / "figures" / "second_stage.png").exists()
    rows = (tmp_path / "candidates_second_stage.csv").read_text().splitlines()
    assert (
        rows[0]
        == "seriesuid,coordX,coordY,coordZ,probability,first_stage,nodule_probability,malignancy"
    )
    assert len(rows) == 1 + own["marks"]
    evaluate_split(oracle(shift=1), config, dataset, "test", tmp_path, MEMBERS)
    assert "second_stage" not in json.loads((tmp_path / "metrics.json").read_text())
    assert not (tmp_path / "figures" / "second_stage.png").exists()


def test_without_ratings_nothing_is_said_of_malignancy(second, dataset, tmp_path):
    silent = SecondStage(second.classifier, 0.5, False, {})
    (opinion,) = silent(None, [np.zeros(3)], [0.4])
    assert opinion.malignancy is None and 0 < opinion.score < 1
    (rated,) = second(None, [np.array([0, 0, 50.0])], [0.4])
    assert rated.malignancy == 4 and rated.nodule_probability == pytest.approx(0.9)


def test_a_finished_classifier_opens_with_what_was_chosen(classifier, workdir):
    opened = open_second_stage(classifier, runs.load(workdir))
    assert opened.weight == 0.7 and opened.rated is False


def test_each_wrong_classifier_is_one_line(
    classifier, second_config, config, dataset, workdir, monkeypatch
):
    def refused(said, folder=classifier):
        with pytest.raises(InputError, match=said) as error:
            open_second_stage(folder, runs.load(workdir))
        assert "\n" not in str(error.value)

    refused("is a run of segmentation; give a classifier", workdir)
    refused("no such folder", classifier / "none")
    path = classifier / "config.json"
    text = path.read_text()
    for key, value, said in (
        ("settings", {"spacing_mm": 1.0}, "at 1 mm, the segmentation at 4 mm"),
        ("config", {"data": {"fold": 2}}, "another dataset or fold"),
    ):
        found = json.loads(text)
        inner = found[key].get("data", found[key]) if key == "config" else found[key]
        inner.update(value.get("data", value))
        path.write_text(json.dumps(found))
        refused(said)
    path.write_text(text)
    monkeypatch.setattr(module, "restore_classifier", lambda *_: (Knowing(), 4))
    refused("was not chosen yet for its checkpoint of step 4")
