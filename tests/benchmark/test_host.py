"""What the host's measurements report hangs together: input, inference, preparation."""

import numpy as np
import pytest

from lung_unet.benchmark import input as pipeline
from lung_unet.benchmark.inference import measure_inference, show_inference
from lung_unet.benchmark.prepare import measure_prepare, show_prepare


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(pipeline, "REPEAT_S", 0.05)
    monkeypatch.setattr(pipeline, "UTILISATION_S", 0.2)


def test_input_counts_the_bytes_of_patches(config, prepared, short, capsys):
    config.data.dir = str(prepared)
    result = pipeline.measure_input(config, 2, None, None)
    patch_mb = (np.prod(config.data.patch) * 3 + 4) / 1e6  # int16 HU, uint8 labels, the block
    for row in (result, result["one_thread"]):
        low, high = row["patches_per_s_spread"]
        assert low <= row["patches_per_s"] <= high
        assert row["mb_per_s"] == pytest.approx(row["patches_per_s"] * patch_mb)
        assert row["patches"] > 0 and row["cpu_s_per_patch"] > 0
    assert result["step_ms"] == pytest.approx(323 * config.train.batch_size / 7)
    assert 0 < result["utilisation"] <= 1
    pipeline.show_input(result)
    assert f"{100 * result['utilisation']:.1f}% of the time" in capsys.readouterr().out


def test_an_accelerator_that_takes_no_time_is_never_used(config, prepared, short):
    config.data.dir = str(prepared)
    assert pipeline.measure_input(config, 1, 0.0, None)["utilisation"] == 0


def test_inference_reports_the_rate_of_all_voxels(config, capsys):
    result = measure_inference(config, 2, (24, 24, 24))
    for row in (result, result["half_lungs"]):
        assert row["mvoxel_per_s"] * row["s_per_scan"] == pytest.approx(24**3 / 1e6)
    assert result["peak_memory_mb"] > 0
    show_inference(result)
    assert "24 × 24 × 24 voxels" in capsys.readouterr().out


def test_prepare_writes_shards_each_time(config, capsys):
    result = measure_prepare(config, 2, (24, 96, 96))
    assert result["written_mb"] > 0.01
    assert 0 < result["s_per_scan_spread"][0] <= result["s_per_scan"]
    assert result["peak_memory_mb"] > 0
    show_prepare(result)
    assert "24 × 96 × 96 voxels of 2 × 0.7 × 0.7 mm to 4 mm" in capsys.readouterr().out
