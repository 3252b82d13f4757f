"""What the GPU's compiler makes of a small network with every kind of layer."""

import importlib.util

import pytest

from lung_unet.benchmark import target_program

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is None
    or importlib.util.find_spec("jax_plugins.xla_cuda13") is None,
    reason="the CUDA plug-in is not installed; launch/test_targets.sh has it",
)


@pytest.fixture
def compiled(config, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)

    def compiled(data, space, encoder="plain"):
        config.data.patch = (32, 32, 32)
        config.train.batch_size = 2 * data
        config.model.update(channels=(16, 24, 40, 56), convs=2, deep_supervision=True)
        config.model.update(encoder=encoder, activation="leaky_relu")
        config.mesh.update(data=data, space=space)
        return target_program.measure_program(config, ["h200"], None)["h200"]

    return compiled


@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_convolutions_run_channels_last_and_nothing_is_transposed(compiled, encoder):
    result = compiled(1, 1, encoder)
    for program in (result, result["sliding_window"]):
        assert set(program["convolutions"]) == {"b012f_o012i->b012f"}
        assert program["moved_activations"] == []
        assert program["fits"] and program["predicted_patches_per_s"] > 0
    if encoder == "plain":
        # Two a level down and up; no head, and an upsampling is a matrix product.
        assert sum(result["sliding_window"]["convolutions"].values()) == 2 * 4 + 2 * 3
    assert result["bytes_by_kind_gb"]["norm statistics"] > 0
    assert result["estimated_cycles"] is None


def test_a_mesh_gathers_nothing(compiled):
    result = compiled(4, 2)
    assert result["all_gathers"] == 0
    assert any(kind.startswith("all-reduce of ") for kind in result["collectives"])
    assert set(result["convolutions"]) == {"b012f_o012i->b012f"}
