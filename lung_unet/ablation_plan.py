"""Which runs an ablation is made of: the base and its changes, with each seed."""

import dataclasses
import pathlib
from typing import Any

from ml_collections import ConfigDict

from lung_unet import command
from lung_unet.data.datasets import settings_of
from lung_unet.data.labels import agreement
from lung_unet.errors import InputError

BASE = "base"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: the base with a change, of one seed. `flags` are those of lung_unet.main."""

    change: str
    seed: int
    workdir: pathlib.Path
    flags: tuple[str, ...]
    config: ConfigDict

    @property
    def log(self) -> pathlib.Path:
        return self.workdir.with_suffix(".log")


def plan(ablation: ConfigDict, data: pathlib.Path, out: pathlib.Path) -> list[Run]:
    """All runs, seed by seed, the base first.

    Raises:
      InputError: there is no such base, or a change has its name, or sets what its configuration
        does not have, what the one dataset cannot have, or what it is scored against.
    """
    if BASE in ablation.changes:
        raise InputError(f"config.changes: {BASE} is what all are compared with; name it otherwise")
    base = command.read_config(ablation.base, "config.base")
    planned: list[Run] = []
    for seed in range(ablation.seeds):
        for change in (BASE, *ablation.changes):
            config = base.copy_and_resolve_references()
            given = [ablation.overrides, ConfigDict({"seed": seed, "data": {"dir": str(data)}})]
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
                    if key == "data.lidc_xml":
                        raise InputError(f"{change}: sets {key}; give it as --lidc_xml")
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
            if planned and _scored_against(config) != _scored_against(planned[0].config):
                raise InputError(
                    f"{change}: changes the split or the truth, so that its scores cannot be "
                    "compared with the base's; set it in config.overrides"
                )
            set_by = tuple(f"--config.{key}={_text(value)}" for key, value in values.items())
            folder = out / "runs" / change / f"seed{seed}"
            planned.append(Run(change, seed, folder, set_by, config))
    return planned


def _scored_against(config: ConfigDict) -> tuple[int, int]:
    return config.data.fold, agreement(config.data)


def _text(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list) else str(value)
