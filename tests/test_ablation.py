"""Which runs an ablation is made of, and which are done."""

import json
import pathlib
import runpy
import shutil

import pytest
from ml_collections import ConfigDict

from lung_unet import ablation, command
from lung_unet.ablation import check_runs, check_scans, execute, finished, run_all
from lung_unet.ablation_plan import BASE, plan
from lung_unet.child import Stopped
from lung_unet.data.datasets import settings_of
from lung_unet.errors import InputError
from lung_unet.files import held
from lung_unet.finished import finish
from lung_unet.workdir import FORMAT, hash_of

THESE = {"scans": "these"}
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def config():
    config = runpy.run_path(str(ROOT / "configs" / "ablation.py"))["get_config"]()
    config.base = str(ROOT / config.base)
    return config


def small(changes, **overrides):
    return ConfigDict({
        "base": f"{ROOT}/configs/unet3d.py:smoke", "seeds": 2, "overrides": overrides,
        "changes": changes,
    })  # fmt: skip


@pytest.fixture
def main(monkeypatch):
    """Stands for lung_unet.main: leaves what a run that is done leaves; the list of its calls."""
    calls = []

    def run(arguments, log):
        flags = dict(a.removeprefix("--").split("=", 1) for a in arguments[3:])
        calls.append(flags)
        workdir = pathlib.Path(flags["workdir"])
        (workdir / "checkpoints" / "5").mkdir(parents=True, exist_ok=True)
        by_workdir = {str(r.workdir): r for r in calls_of.runs}
        config = by_workdir[flags["workdir"]].config
        made_with = {
            "format": FORMAT, "config": command.frozen(config), "data": hash_of(THESE),
            "dataset": "", "settings": settings_of(config.data).to_json(),
        }  # fmt: skip
        (workdir / "config.json").write_text(json.dumps(made_with))
        if not calls_of.dies:
            finish(workdir, config.train.steps)

    class calls_of:
        runs, dies, seen = (), False, calls

    monkeypatch.setattr(ablation, "run_logged", run)
    return calls_of


def test_every_change_of_the_config_is_one_of_the_recipe(config, tmp_path):
    runs = plan(config, tmp_path / "data", tmp_path)
    assert len(runs) == config.seeds * (1 + len(config.changes))
    base = runs[0]
    assert base.change == BASE and base.config.data.dir == str(tmp_path / "data")
    for run in runs[1 : 1 + len(config.changes)]:
        assert command.frozen(run.config) != command.frozen(base.config), run.change
        assert run.config.seed == base.seed == 0
    assert {run.config.seed for run in runs} == set(range(config.seeds))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x": {"model": {"channel": 3}}}, "x: config has no field model\\.channel"),
        ({"x": {"train": {"steps": "many"}}}, "x: .*steps"),
    ],
)
def test_what_the_recipe_does_not_have_is_refused_before_anything_runs(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        plan(small(changes), tmp_path, tmp_path)
    with pytest.raises(InputError, match=r"base: config has no field model\.depth"):
        plan(small({}, model={"depth": 3}), tmp_path, tmp_path)


def test_a_change_of_the_preparation_is_refused(tmp_path):
    with pytest.raises(InputError, match="x: changes how scans are prepared"):
        plan(small({"x": {"data": {"spacing_mm": 1.0}}}), tmp_path, tmp_path)


def test_a_run_is_done_once_as_it_is_configured(main, tmp_path):
    changes = {"soft": {"data": {"label": "soft"}, "augment": {"noise": {"sigma": (0.0, 0.2)}}}}
    runs = main.runs = plan(small(changes, train={"steps": 5}), tmp_path / "data", tmp_path)
    assert [(r.change, r.seed) for r in runs] == [
        (BASE, 0), ("soft", 0), (BASE, 1), ("soft", 1)
    ]  # fmt: skip
    soft = runs[1]
    assert not finished(soft)
    execute(soft, runs[0], "c.py")
    assert finished(soft) and not finished(runs[3])
    (flags,) = main.seen
    assert flags["config"] == "c.py" and flags["config.data.label"] == "soft"
    assert flags["config.augment.noise.sigma"] == "(0.0, 0.2)" and flags["config.seed"] == "0"
    assert flags["config.train.steps"] == "5" and flags["config.data.dir"] == f"{tmp_path}/data"
    longer = plan(small(changes, train={"steps": 6}), tmp_path / "data", tmp_path)
    assert not finished(longer[1])


def test_a_run_that_trains_otherwise_now_is_refused_and_one_scored_otherwise_goes_on(
    main, tmp_path
):
    def planned(steps, overlap):
        overrides = {"train": {"steps": steps}, "evaluation": {"overlap": overlap}}
        main.runs = plan(small({}, **overrides), tmp_path / "data", tmp_path)
        return main.runs[0]

    execute(planned(5, 0.25), main.runs[0], "c.py")
    check_runs(main.runs, THESE)
    run = planned(5, 0.5)
    assert not finished(run)
    check_runs(main.runs, THESE)
    execute(run, run, "c.py")
    assert finished(run)
    planned(6, 0.5)
    with pytest.raises(InputError, match=r"seed0: was made with config\.train\.steps = 5, not 6"):
        check_runs(main.runs, THESE)


def test_a_run_is_done_wherever_its_folder_is_and_however_it_ran(main, tmp_path):
    (run, _) = main.runs = plan(small({}), tmp_path / "data", tmp_path)
    execute(run, run, "c.py")
    otherwise = {"data": {"threads": 3}, "train": {"log_every": 7}, "timeout_s": 9.0}
    (moved, _) = plan(small({}, **otherwise), tmp_path / "moved" / "data", tmp_path)
    assert finished(moved)
    check_runs([moved], THESE)


def test_each_rotation_is_a_fold_with_each_seed(tmp_path):
    changes = {"soft": {"data": {"label": "soft"}}}
    runs = plan(small(changes), tmp_path / "data", tmp_path, rotations=4)
    assert [(r.change, *r.key) for r in runs] == [
        (change, rotation, seed)
        for seed in range(2) for rotation in range(4) for change in (BASE, "soft")
    ]  # fmt: skip
    for run in runs:
        assert run.config.data.fold == run.rotation and run.config.seed == run.seed
        assert f"--config.data.fold={run.rotation}" in run.flags
        assert run.workdir.name == f"fold{run.rotation}_seed{run.seed}"
        assert f"fold {run.rotation}, seed {run.seed}" in str(run)
    assert len({run.workdir for run in runs}) == len(runs)
    fixed = plan(small(changes), tmp_path / "data", tmp_path)
    assert {r.workdir.name for r in fixed} == {"seed0", "seed1"}
    assert {r.config.data.fold for r in fixed} == {0}
    none = small(changes)
    none.seeds = 0
    with pytest.raises(InputError, match=r"config\.seeds = 0"):
        plan(none, tmp_path, tmp_path, rotations=4)


def test_each_rotation_of_a_change_of_evaluation_has_its_own_bases_checkpoints(
    main, tmp_path, monkeypatch
):
    monkeypatch.setattr(ablation, "_write_table", lambda *_: "")
    changes = {"mirrors": {"evaluation": {"mirror_axes": (0, 1, 2)}}}
    runs = main.runs = plan(small(changes), tmp_path / "data", tmp_path, rotations=3)
    bases = [run for run in runs if run.change == BASE]
    for base in bases:
        execute(base, base, "c.py")
        (base.workdir / "checkpoints" / "weights").write_text(str(base.key))
    assert not run_all(runs, "c.py", tmp_path)
    for run in runs:
        assert (run.workdir / "checkpoints" / "weights").read_text(encoding="utf-8") == str(run.key)


@pytest.mark.parametrize("key", ["fold", "dir"])
def test_what_the_folders_say_is_refused_in_the_configuration_of_all_runs(key, tmp_path):
    value = {"fold": 1, "dir": "elsewhere"}[key]
    with pytest.raises(InputError, match=rf"base: sets data\.{key}, .*leave it out"):
        plan(small({}, data={key: value}), tmp_path, tmp_path)
    with pytest.raises(InputError, match="x: sets seed"):
        plan(small({"x": {"seed": 3}}), tmp_path, tmp_path)


def test_a_change_called_as_the_base_is_refused(tmp_path):
    with pytest.raises(InputError, match="base is what all are compared with"):
        plan(small({BASE: {"data": {"label": "soft"}}}), tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"label": "any"}, "the split or the truth"), ({"consensus": 3}, "the split or the truth"),
     ({"fold": 1}, "the split or the truth"), ({"lidc_xml": "xml"}, "give it as --lidc_xml")],
)  # fmt: skip
def test_what_is_scored_against_another_truth_is_refused(change, said, tmp_path):
    with pytest.raises(InputError, match=f"x: .*{said}"):
        plan(small({"x": {"data": change}}), tmp_path, tmp_path)


def test_runs_of_other_scans_are_refused(main, tmp_path):
    runs = main.runs = plan(small({}), tmp_path / "data", tmp_path)
    check_scans(runs, "those", tmp_path)
    check_scans(runs, "these", tmp_path)  # nothing was run on the others
    execute(runs[1], runs[1], "c.py")
    check_scans(runs, "these", tmp_path)
    with pytest.raises(InputError, match=r"its runs are of other scans.*another --out"):
        check_scans(runs, "those", tmp_path)
    check_scans(runs, "these", tmp_path)
    check_runs(runs, THESE)
    with pytest.raises(InputError, match=r"seed1: is of these scans as they were before"):
        check_runs(runs, {"scans": "those"})


def test_a_run_that_fails_is_told_and_the_others_are_done(main, tmp_path, capsys, monkeypatch):
    changes = {"soft": {"data": {"label": "soft"}}, "sgd": {"optimizer": {"name": "sgd"}}}
    runs = main.runs = plan(small(changes), tmp_path / "data", tmp_path)
    monkeypatch.setattr(ablation, "_write_table", lambda *_: "")
    works = ablation.run_logged

    def fails(arguments, log):
        if "soft" in str(log):
            raise InputError(f"{log}: the loss is nan; put that right and run again")
        works(arguments, log)

    monkeypatch.setattr(ablation, "run_logged", fails)
    failed = run_all(runs, "c.py", tmp_path)
    assert [(r.change, r.seed) for r in failed] == [("soft", 0), ("soft", 1)]
    assert all(finished(r) for r in runs if r.change != "soft")
    assert "soft, seed 0: failed: " in capsys.readouterr().out

    def stopped(arguments, log):
        raise Stopped(f"{log}: was stopped")

    monkeypatch.setattr(ablation, "run_logged", stopped)
    with pytest.raises(Stopped):
        run_all(runs, "c.py", tmp_path)


def test_scans_that_name_no_patient_are_told_in_the_table(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    runs = plan(small({}), tmp_path / "data", tmp_path)
    assert "4 of the 4 scans name no patient" in ablation._write_table(runs, tmp_path, ())
    path = tmp_path / "data" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for entry, patient in zip(manifest["scans"], "PQRS", strict=True):
        entry["patient"] = patient
    path.write_text(json.dumps(manifest))
    assert "name no patient" not in ablation._write_table(runs, tmp_path, ())


def test_a_run_that_was_stopped_is_not_done(main, tmp_path):
    main.runs = plan(small({}), tmp_path, tmp_path)
    main.dies = True
    with pytest.raises(Stopped, match="run the same command again"):
        execute(main.runs[0], main.runs[0], "c.py")
    assert not finished(main.runs[0])


def test_what_changes_evaluation_alone_is_scored_on_the_bases_checkpoints(
    main, tmp_path, monkeypatch
):
    changes = {
        "mirrors": {"evaluation": {"mirror_axes": (0, 1, 2)}},
        "sgd": {"optimizer": {"name": "sgd"}},
    }
    base, mirrors, sgd, base1, mirrors1, _ = main.runs = plan(small(changes), tmp_path, tmp_path)
    execute(base, base, "c.py")
    (base.workdir / "checkpoints" / "weights").write_text("of the base")
    (base.workdir / "evaluation").mkdir()
    for run in (mirrors, sgd):
        execute(run, base, "c.py")
        assert finished(run) and not (run.workdir / "evaluation").exists()
    assert (mirrors.workdir / "checkpoints" / "weights").read_text(
        encoding="utf-8"
    ) == "of the base"
    assert not (sgd.workdir / "checkpoints" / "weights").exists()
    base1.workdir.mkdir(parents=True)  # another process is training it
    execute(mirrors1, base1, "c.py")
    assert finished(mirrors1) and list(base1.workdir.iterdir()) == []
    monkeypatch.setattr("lung_unet.files.LEASE_S", 0)
    with (
        held(sgd.workdir / ".lock"),
        pytest.raises(InputError, match="a process of before still"),
    ):
        execute(sgd, base, "c.py")
    assert finished(sgd)
