"""Which runs an ablation is made of: the base and its changes, in each rotation, with each seed."""

import dataclasses
import itertools
import pathlib
from typing import Any

from ml_collections import ConfigDict

from lung_unet import command
from lung_unet.data.datasets import settings_of
from lung_unet.data.labels import agreement
from lung_unet.errors import InputError

BASE = "base"
GIVEN = {  # not the configuration's to say
    "seed": "of which config.seeds says how many there are; leave it out",
    "data.dir": "which is that of the folders given; leave it out",
    "data.fold": "and so the split or the truth, which the folders given say; leave it out",
    "data.lidc_xml": "which is one for all runs; give it as --lidc_xml",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: the base with a change, of one rotation (config.data.fold; None where the split
    is fixed) and one seed. `flags` are those of lung_unet.main.
    """

    change: str
    rotation: int | None
    seed: int
    workdir: pathlib.Path
    flags: tuple[str, ...]
    config: ConfigDict

    @property
    def log(self) -> pathlib.Path:
        return self.workdir.with_suffix(".log")

    @property
    def key(self) -> tuple[int, int]:
        """Runs of one key are compared: they have the same scans and seed."""
        return self.rotation or 0, self.seed

    def __str__(self) -> str:
        rotation = "" if self.rotation is None else f"fold {self.rotation}, "
        return f"{self.change}, {rotation}seed {self.seed}"


def plan(
    ablation: ConfigDict, data: pathlib.Path, out: pathlib.Path, rotations: int | None = None
) -> list[Run]:
    """All runs, seed by seed, rotation by rotation, the base first; `rotations` is how many there
    are, None where the split is fixed.

    Raises:
      InputError: there is no such base, or a change has its name, or sets what its configuration
        does not have, what the one dataset cannot have, or what it is scored against.
    """
    if BASE in ablation.changes:
        raise InputError(f"config.changes: {BASE} is what all are compared with; name it otherwise")
    base = command.read_config(ablation.base, "config.base")
    planned: list[Run] = []
    if ablation.seeds < 1:
        raise InputError(f"config.seeds = {ablation.seeds}: choose 1 or more")
    folds = range(rotations) if rotations else [None]
    for seed, rotation in itertools.product(range(ablation.seeds), folds):
        for change in (BASE, *ablation.changes):
            config = base.copy_and_resolve_references()
            own = {"seed": seed, "data": {"dir": str(data), "fold": rotation or 0}}
            given = [ablation.overrides, ConfigDict(own)]
            if change != BASE:
                given.insert(1, ablation.changes[change])
            values: dict[str, Any] = {}
            for overrides in given:
                flat = command.flattened(command.frozen(overrides))
                for key in flat:
                    if key not in command.flattened(command.frozen(base)):
                        raise InputError(
                            f"{change}: config has no field {key}; see {ablation.base}"
                        )
                    if key in GIVEN and overrides is not given[-1]:
                        raise InputError(f"{change}: sets {key}, {GIVEN[key]}")
                try:
                    config.update(overrides)
                except TypeError as error:
                    raise InputError(f"{change}: {error}; see {ablation.base}") from error
                values |= flat
            if planned and settings_of(config.data) != settings_of(planned[0].config.data):
                raise InputError(
                    f"{change}: changes how scans are prepared, which is done once; set it in "
                    "config.overrides"
                )
            if planned and agreement(config.data) != agreement(planned[0].config.data):
                raise InputError(
                    f"{change}: changes the split or the truth, so that its scores cannot be "
                    "compared with the base's; set it in config.overrides"
                )
            set_by = tuple(f"--config.{key}={_text(value)}" for key, value in values.items())
            name = f"seed{seed}" if rotations is None else f"fold{rotation}_seed{seed}"
            folder = out / "runs" / change / name
            planned.append(Run(change, rotation, seed, folder, set_by, config))
    return planned


def _text(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list) else str(value)
