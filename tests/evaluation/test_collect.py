"""Candidates: what is on a nodule, what is left out, and every wrong source is one line."""

import numpy as np
import pytest

from lung_unet import workdir as runs
from lung_unet.data.crops import KINDS
from lung_unet.data.scan import Finding, Grid
from lung_unet.data.shard_reader import scan_records
from lung_unet.errors import InputError
from lung_unet.evaluation.collect import Collector, hit
from lung_unet.restore import restore_predictor
from lung_unet.second_stage import collect_crops, open_candidates, open_collector
from lung_unet.train.classification import FOLDER


@pytest.fixture
def nodules(dataset):
    """The centre (z, y, x) mm of the nodule in each scan."""
    found = {}
    for split in ("train", "validation", "test"):
        records = scan_records(dataset, split)
        for record in (records[i] for i in range(len(records))):
            found[record.series_uid] = record.findings[0].centre_mm
    return found


@pytest.fixture
def csv(second_config, prepared, nodules, tmp_path):
    """Writes candidates.csv: in each scan one on its nodule, three elsewhere, one contradicted."""
    rows = ["seriesuid,coordX,coordY,coordZ,class"]
    for uid, (z, y, x) in nodules.items():
        rows += [f"{uid},{x + 1},{y},{z},1", f"{uid},{x},{y},{z + 1},0"]
        rows += [f"{uid},{x - d},{y},{z},0" for d in (40, 50, 60)]
    path = tmp_path / "candidates.csv"
    path.write_text("\n".join(rows) + "\n")
    second_config.candidates.csv = str(path)
    second_config.data.dir = str(prepared)
    return path


def test_crops_of_a_list_are_nodules_and_what_lies_elsewhere(second_config, csv, tmp_path, capsys):
    dataset = open_candidates(second_config)
    collector = open_collector(tmp_path, second_config, dataset)
    assert not (tmp_path / FOLDER).exists()  # as the configuration may still be refused
    collect_crops(collector)
    counts = [
        scan["crops"]
        for scan in Collector(tmp_path, second_config, dataset, restore_predictor)("train")
    ]
    # the nodule itself and the mark on it; of the others not the one that is on the nodule
    assert counts == [{"nodule": 2, "other": 3, "rated": 0}] * 2
    assert "train: 4 crops of nodules, 0 of them rated, and 6 of others" in capsys.readouterr().out
    shards = sorted(p.name for p in (tmp_path / FOLDER / "train").glob("*.arrayrecord"))
    uids = sorted(e["series_uid"] for e in dataset.scans("train"))
    assert shards == sorted(f"{uid}.{kind}.arrayrecord" for uid in uids for kind in KINDS)
    second_config.candidates.others = 1
    fewer = Collector(tmp_path / "fewer", second_config, dataset, restore_predictor)("train")
    assert [scan["crops"]["other"] for scan in fewer] == [1, 1]
    assert [len(scan["marks"]) for scan in fewer] == [5, 5]
    assert fewer[0]["voxels"] == [None] * 5 and fewer[0]["truth"] is None


def test_what_lies_beyond_the_volume_is_no_crop_of_air(
    second_config, csv, dataset, tmp_path, monkeypatch
):
    uids = {line.split(",")[0] for line in csv.read_text(encoding="utf-8").splitlines()[1:]}
    csv.write_text(csv.read_text(encoding="utf-8") + "".join(f"{uid},5000,0,0,0\n" for uid in uids))
    scans = Collector(tmp_path / "a", second_config, dataset, restore_predictor)("train")
    assert [scan["crops"] for scan in scans] == [{"nodule": 2, "other": 3, "rated": 0}] * 2
    monkeypatch.setattr(Grid, "holds", lambda *_: False)  # as of nodules that the lungs' box lacks
    scans = Collector(tmp_path / "b", second_config, dataset, restore_predictor)("train")
    assert [scan["crops"] for scan in scans] == [{"nodule": 0, "other": 0, "rated": 0}] * 2


def test_crops_that_are_gone_are_missed(second_config, csv, dataset, tmp_path):
    collector = Collector(tmp_path, second_config, dataset, restore_predictor)
    collector("train")
    collector("train")
    path = min((tmp_path / FOLDER / "train").glob("*.other.arrayrecord"))
    path.unlink()
    with pytest.raises(InputError, match=rf"{path.name}: is missing; delete 1\.2\.\d\.json beside"):
        collector("train")
    min((tmp_path / FOLDER / "train").glob("*.json")).unlink()
    collector("train")
    assert path.exists()


def test_a_list_of_some_scans_says_of_how_many_it_knows_nothing(
    second_config, csv, dataset, tmp_path, capsys
):
    uid = csv.read_text(encoding="utf-8").splitlines()[1].split(",")[0]
    csv.write_text(
        "".join(
            l for l in csv.read_text(encoding="utf-8").splitlines(True) if not l.startswith(uid)
        )
    )
    Collector(tmp_path, second_config, dataset, restore_predictor)
    assert "has no candidate in 1 of 4 scans" in capsys.readouterr().out


def test_marks_of_a_segmentation_are_its_froc_marks(
    second_config, config, dataset, workdir, oracle, tmp_path
):
    second_config.candidates.workdir = str(workdir)
    second_config.data.fold = None  # the segmentation's
    assert open_candidates(second_config).folder == dataset.folder.absolute()
    assert second_config.data.fold == config.data.fold
    (scan,) = Collector(tmp_path, second_config, dataset, lambda *_: (oracle(shift=2), 0))(
        "validation"
    )
    assert len(scan["marks"]) == 1 and scan["marks"][0][3] == pytest.approx(0.9)
    assert scan["crops"] == {"nodule": 2, "other": 0, "rated": 0}
    ((hit, wrong),) = scan["voxels"]
    assert 0 < hit < scan["truth"] and wrong > 0


def test_luna16s_rule_says_what_a_mark_is_on():
    def finding(x, included):
        bits = np.zeros((1, 1, 1), np.uint8)
        return Finding(np.array([0.0, 0.0, x]), 10.0, 4, included, np.zeros(3, int), bits)

    one, ignored = finding(0.0, True), finding(6.0, False)
    assert hit(np.array([0, 0, 4.9]), (ignored, one)) is one  # on both: the one that counts
    assert hit(np.array([0, 0, 5.0]), (ignored, one)) is ignored
    assert hit(np.array([0, 0, -5.0]), (ignored, one)) is None and hit(np.zeros(3), ()) is None


def test_each_wrong_source_is_one_line_that_names_it(
    second_config, csv, dataset, workdir, tmp_path
):
    def refused(said, **candidates):
        second_config.candidates.update(**{"workdir": "", "csv": ""} | candidates)
        with pytest.raises(InputError, match=said) as error:
            Collector(
                tmp_path / "cls", second_config, open_candidates(second_config), restore_predictor
            )
        assert "\n" not in str(error.value)

    refused("give a segmentation workdir, or a csv")
    refused("nowhere: no such folder", workdir=str(tmp_path / "nowhere"))
    refused("no such file", csv=str(tmp_path / "none.csv"))
    csv.write_text("seriesuid,coordX,coordY,coordZ,class\n9.9,1,2,3,0\n")
    refused("names none of the 4 scans", csv=str(csv))
    csv.write_text("seriesuid,coordX,coordY,coordZ,class\n1.2.0,1,2,3,7\n")
    refused("line 2", csv=str(csv))
    second_config.data.fold = 1
    refused("another dataset, version of it or fold", workdir=str(workdir))
    second_config.data.fold, second_config.data.dir = 0, ""
    refused(r"config\.candidates\.workdir is empty", csv=str(csv))


def test_a_segmentation_that_was_not_scored_is_told_to_be(second_config, config, dataset, tmp_path):
    runs.claim(tmp_path / "seg", config, dataset)
    second_config.candidates.workdir = str(tmp_path / "seg")
    with pytest.raises(InputError, match=r"run python -m lung_unet\.evaluate --workdir="):
        Collector(
            tmp_path / "cls", second_config, open_candidates(second_config), lambda *_: (None, 4)
        )


def test_training_does_not_go_on_with_other_candidates(second_config, csv, dataset, tmp_path):
    Collector(tmp_path, second_config, dataset, restore_predictor)("validation")
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    Collector(tmp_path, second_config, dataset, restore_predictor)
    csv.write_text(
        csv.read_text(encoding="utf-8") + csv.read_text(encoding="utf-8").splitlines()[1] + "\n"
    )
    with pytest.raises(InputError, match="was trained on other candidates"):
        Collector(tmp_path, second_config, dataset, restore_predictor)
