"""Targets are found by name or file, and what cannot be is told."""

import venv

import pytest

from lung_unet.benchmark import target_program, targets
from lung_unet.benchmark.predicted import predict
from lung_unet.benchmark.traffic import Convolution
from lung_unet.errors import InputError


def test_gpus_have_the_numbers_of_their_data_sheets():
    sheets = {"a100": (312, 2039, 85), "h100": (989, 3352, 85), "h200": (989, 4800, 151),
              "b200": (2250, 8000, 180)}  # fmt: skip
    for name, sheet in sheets.items():
        target = targets.find(name)
        found = target.tflops, target.gb_per_s, target.memory_gb
        assert found == pytest.approx(sheet, rel=0.01)


@pytest.mark.parametrize("name", ["v4", "H200", "", "../h200"])
def test_an_unknown_target_lists_those_there_are(name):
    with pytest.raises(InputError, match=r"a100, b200, h100, h200, v5e, v5p, v6e"):
        targets.find(name)


def test_a_file_is_a_target_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "mine.txtpb"
    path.write_text((targets.FOLDER / "h200.txtpb").read_text().replace("132", "66"))
    assert targets.find(str(path)).name == "mine"
    assert targets.find(str(path)).tflops == pytest.approx(targets.find("h200").tflops / 2)
    for text in ("", "nonsense {", path.read_text().replace("major: 9", "major: 7")):
        path.write_text(text)
        with pytest.raises(InputError, match=r"mine\.txtpb"):
            targets.find(str(path))
    with pytest.raises(InputError, match="none"):
        targets.find(str(tmp_path / "none.txtpb"))


@pytest.mark.parametrize("name", ["h200", "v5e"])
def test_a_missing_plug_in_names_what_installs_it(name, monkeypatch, tmp_path):
    monkeypatch.setattr(target_program, "PYTHON", tmp_path / "none")
    monkeypatch.setattr(target_program, "PLATFORMS", {"cuda": "no_such", "tpu": "no_such"})
    with pytest.raises(InputError, match=r"launch/targets\.sh"):
        target_program.python_for(targets.find(name))


def test_an_interrupted_installation_names_what_completes_it(config, monkeypatch, tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    bare = tmp_path / "bare" / "bin" / "python"
    monkeypatch.setattr(target_program, "python_for", lambda target: str(bare))
    with pytest.raises(InputError, match=r"bare/bin/python.*launch/targets\.sh"):
        target_program.measure_program(config, ["h200"], None)


def test_what_does_not_fit_says_by_how_much_and_what_would():
    part = {"fits": False, "memory_gb": 58.2}
    result = {**part, "device_memory_gb": 16.9, "batch_size": 14, "mesh": [2, 1]}
    told = target_program.too_large({"v5e": result | {"sliding_window": {"fits": True}}})
    assert "v5e" in told and "41.3" in told and "batch of 2" in told
    assert target_program.too_large({"v5e": {"fits": True}}) is None


def test_the_model_adds_products_bytes_and_collectives():
    h200 = targets.find("h200")
    last, first = (Convolution(f"{x}_o012i->{x}", 1e12, 1e12) for x in ("b012f", "bf012"))
    fast = predict(h200, [(last, 2)], 43e9, 45e8, None, "bfloat16")
    assert fast.convolutions_ms == pytest.approx(2e3 / 290, rel=0.01)
    assert (fast.bytes_ms, fast.collectives_ms) == pytest.approx((10, 10), rel=0.01)
    assert fast.step_ms == pytest.approx(2e3 / 290 + 20, rel=0.01)
    slow = predict(h200, [(first, 1)], 0, 0, None, "bfloat16")
    assert slow.step_ms == pytest.approx(1e3 / 194, rel=0.01)
    tpu = predict(targets.find("v5e"), [(last, 1)], 0, 0, 1_500_000, "bfloat16")
    assert tpu.step_ms == pytest.approx(1)
