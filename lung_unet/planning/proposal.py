"""What a plan proposes, and the configuration file that says so."""

import dataclasses
import json
import pathlib
import shlex
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from ml_collections import ConfigDict

from configs import unet3d
from lung_unet.data.image_folder import ImageFolder
from lung_unet.data.manifest import NAME, Dataset
from lung_unet.data.shards import Settings

GB = 1e9
WIDTH = 96  # characters of a line of the file's docstring


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A network and what it trains on. Sizes are (z, y, x) in voxels.

    `strides` are those of each step down. Each of the mesh's `data` rows trains on `batch` patches,
    whose depth its `space` devices share.
    """

    spacing_mm: float
    window_hu: tuple[float, float]
    patch: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    batch: int
    data: int = 1
    space: int = 1
    variant: str = ""  # of configs/unet3d.py, for all that is not proposed

    def __str__(self) -> str:
        split = f" over {self.space} devices" if self.space > 1 else ""
        features = ", ".join(map(str, self.channels))
        return f"{self.data * self.batch} × ({times(self.patch)}){split}, features {features}"

    def settings(self) -> dict[str, Any]:
        """Fields of the configuration and their values."""
        halved = all(step == (2, 2, 2) for step in self.strides)
        few = {"model.deep_supervision": False} if len(self.channels) < 4 else {}  # none to see to
        return few | {
            "data.spacing_mm": self.spacing_mm,
            "data.window_hu": self.window_hu,
            "data.patch": self.patch,
            "model.channels": self.channels,
            "model.strides": () if halved else self.strides,
            "train.batch_size": self.data * self.batch,
            "mesh.data": self.data,
            "mesh.space": self.space,
        }

    def config(self) -> ConfigDict:
        """The configuration with these settings."""
        config = unet3d.get_config(self.variant)
        config.update_from_flattened_dict(self.settings())
        return config


# What a proposal's train step holds on one device; costs nothing when it is asked again.
StepBytes = Callable[[Proposal], int]


def data_settings(proposal: Proposal, dataset: Dataset) -> dict[str, Any]:
    """Fields of `config.data` that name the proposal's dataset: this one if its spacing is the
    proposal's and its blocks hold the patch; else one to be prepared beside it, in larger blocks
    and otherwise as this one."""
    held = all(p <= b for p, b in zip(proposal.patch, dataset.block, strict=True))
    if held and proposal.spacing_mm == dataset.spacing_mm:
        return {"dir": str(dataset.folder.absolute()), "block": dataset.block}
    made = Settings.from_json(dataset.manifest["settings"])
    block = tuple(5 * size // 4 for size in proposal.patch)
    folder = dataset.folder.absolute()
    other = folder.with_name(f"{folder.name}_planned")
    if (other / NAME).exists():  # of another plan perhaps
        there = Dataset(other, fold=None, shards=False)
        if (there.spacing_mm, there.block) != (proposal.spacing_mm, block):
            sizes = "x".join(map(str, block))
            other = folder.with_name(f"{other.name}_{proposal.spacing_mm:g}mm_{sizes}")
    return {
        "dir": str(other),
        "block": block,
        "margin_mm": made.margin_mm,
        "nodule_blocks": made.nodule_blocks,
        "min_readers": made.min_readers,
        "outlines": made.outlines,
    }


def prepare_again(dataset: Dataset, config_file: pathlib.Path, out: str) -> str:
    """The command that prepares a dataset's scans anew, with a plan's configuration; XML and FILE
    are those that it was prepared with."""
    config, out = shlex.quote(f"--config={config_file}"), shlex.quote(f"--out={out}")
    words = f"python -m lung_unet.prepare {config} --luna16=SCANS {out}"
    read_from_xml = dataset.manifest["source"] != ImageFolder.kind  # which has labels of its own
    if dataset.manifest["counts"]["scans_with_outlines"] and read_from_xml:
        words += " --lidc_xml=XML"
    if dataset.manifest["settings"]["pseudonym_key"]:
        words += " --pseudonym_key=FILE"
    return words


def config_text(proposal: Proposal, data: dict[str, Any], title: str, reasons: list[str]) -> str:
    """A file like those of configs/, with fields of `config.data` and the proposal's settings."""
    lines = [title, ""]
    wrapper = textwrap.TextWrapper(
        WIDTH, "- ", "  ", break_long_words=False, break_on_hyphens=False
    )
    lines += [line for reason in reasons for line in wrapper.wrap(reason)]
    settings = {f"data.{key}": value for key, value in data.items()} | proposal.settings()
    body = "\n".join(f"    config.{key} = {_literal(v)}" for key, v in settings.items())
    docstring = "\n".join(lines).replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    docstring = docstring.encode("utf-8", "backslashreplace").decode()  # names that are no UTF-8
    return f'''"""{docstring}
"""

from ml_collections import ConfigDict

from configs import unet3d


def get_config() -> ConfigDict:
    config = unet3d.get_config({_literal(proposal.variant)})
{body}
    return config
'''


def _literal(value: Any) -> str:
    if not isinstance(value, str):
        return repr(value)
    text = json.dumps(value, ensure_ascii=False)  # in double quotes, as in the other files
    return text.encode("utf-8", "backslashreplace").decode()


def times(sizes: Iterable[float]) -> str:
    """Sizes as 128 × 128 × 96."""
    return " × ".join(f"{size:g}" for size in sizes)
