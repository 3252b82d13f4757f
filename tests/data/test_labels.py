"""Which votes make a voxel nodule, and which settings cannot be."""

import pytest

from lung_unet.data.labels import agreement
from lung_unet.errors import InputError


@pytest.mark.parametrize(
    "label, consensus, readers", [("consensus", 3, 3), ("soft", 2, 2), ("any", 4, 1)]
)
def test_a_voxel_is_scored_by_the_readers_that_must_agree(config, label, consensus, readers):
    config.data.update(label=label, consensus=consensus)
    assert agreement(config.data) == readers


@pytest.mark.parametrize("change", [{"label": "majority"}, {"consensus": 0}, {"consensus": 5}])
def test_what_cannot_be_is_named(config, change):
    config.data.update(change)
    with pytest.raises(InputError, match=rf"config\.data\.{next(iter(change))}"):
        agreement(config.data)
