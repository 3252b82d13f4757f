"""What of the readers' votes is nodule, by `config.data.label`.

consensus   voxels that `config.data.consensus` or more readers outlined
any         voxels that any reader outlined
soft        the share of the readers as the target; scored as consensus
"""

from ml_collections import ConfigDict

from lung_unet.data.scan import READERS
from lung_unet.errors import InputError

RULES = ("consensus", "any", "soft")


def agreement(data: ConfigDict) -> int:
    """The number of readers from which a voxel counts as nodule when it is scored.

    Raises:
      InputError: no such rule, or a consensus that four readers cannot have.
    """
    if data.label not in RULES:
        raise InputError(f"config.data.label = {data.label!r}: choose one of {', '.join(RULES)}")
    if not 1 <= data.consensus <= READERS:
        raise InputError(f"config.data.consensus = {data.consensus}: choose 1 to {READERS}")
    return 1 if data.label == "any" else data.consensus
