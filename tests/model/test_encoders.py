"""The residual encoder has the blocks and the drop rates that it should."""

import pytest
from flax import nnx

from lung_unet.model import unet
from lung_unet.model.encoders import blocks_of
from lung_unet.model.layers import ConvBlock, ResidualBlock


def test_drop_rates_grow_linearly_with_depth_to_the_last(config):
    config.model.update(encoder="residual", channels=(2, 4), blocks=(1, 3), stochastic_depth=0.4)
    encoder = nnx.eval_shape(lambda: unet.build(config, nnx.Rngs(0))).encoder
    stem, *first = encoder[0]
    blocks = [*first, *encoder[1]]
    assert isinstance(stem, ConvBlock) and all(isinstance(b, ResidualBlock) for b in blocks)
    assert [b.number for b in blocks] == [0, 1, 2, 3]
    assert [b.drop_rate for b in blocks] == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("levels, blocks", [(2, (1, 3)), (6, (1, 3, 4, 6, 6, 6))])
def test_without_a_choice_the_blocks_are_those_of_nnunet(config, levels, blocks):
    config.model.channels = (2,) * levels
    assert blocks_of(config.model) == blocks
