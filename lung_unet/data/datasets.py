"""The dataset that a configuration asks for, made where it is not there yet."""

import os
import pathlib
import shutil

from ml_collections import ConfigDict

from lung_unet.data import phantom
from lung_unet.data.manifest import NAME, Dataset
from lung_unet.data.preparation import prepare
from lung_unet.data.scan import READERS
from lung_unet.data.shards import Settings
from lung_unet.errors import InputError
from lung_unet.files import temporary_name

OUTLINES = ("readers", "sphere")
LABELLED = ("min_readers", "outlines")  # settings that say what is nodule


def settings_of(data: ConfigDict) -> Settings:
    """What `config.data` says of how shards are made.

    Raises:
      InputError: a value that cannot be.
    """
    settings = Settings(
        float(data.spacing_mm), float(data.margin_mm), tuple(data.block), int(data.nodule_blocks),
        int(data.min_readers), data.outlines,
    )  # fmt: skip
    if not 0.1 <= settings.spacing_mm <= 10:
        raise InputError(f"config.data.spacing_mm = {settings.spacing_mm}: choose 0.1 to 10 mm")
    if len(settings.block) != 3 or min(settings.block) < 1 or settings.nodule_blocks < 1:
        raise InputError("config.data.block needs three sizes, and nodule_blocks at least 1")
    if not 0 <= settings.margin_mm <= 1000:
        raise InputError(f"config.data.margin_mm = {settings.margin_mm}: choose 0 to 1000 mm")
    if not 1 <= settings.min_readers <= READERS:
        raise InputError(f"config.data.min_readers = {settings.min_readers}: choose 1 to {READERS}")
    if settings.outlines not in OUTLINES:
        raise InputError(
            f"config.data.outlines = {settings.outlines!r}: choose {' or '.join(OUTLINES)}"
        )
    return settings


def open_dataset(data: ConfigDict, workdir: pathlib.Path, make: bool = True) -> Dataset:
    """`data.dir` if it is prepared; prepared from it into the workdir if it holds scans; the
    phantom, built and prepared in the workdir, if it is empty.

    Without `make`, what an earlier call made is taken as it is.

    Raises:
      InputError: no such folder, or nothing in it that can be read.
    """
    source = pathlib.Path(data.dir)
    if data.dir and not source.is_dir():
        raise InputError(
            f"{source}: no such folder; give a prepared dataset or a LUNA16 folder, one's own "
            "images and labels, or DICOM as config.data.dir, or leave it empty for the phantom"
        )
    if data.dir and (source / NAME).exists():
        dataset = Dataset(source, data.fold)
        wanted = data.spacing_mm
        other = f", not at config's {wanted:g}" if dataset.spacing_mm != wanted else ""
        print(f"data: {source}, at {dataset.spacing_mm:g} mm{other}")
        for name in LABELLED:
            made = dataset.manifest["settings"][name]
            if made != data[name]:
                print(f"data: was prepared with {name} = {made}, not config's {data[name]}")
        return dataset
    if not make:
        return Dataset(workdir / "data", data.fold)
    if not data.dir:
        source = workdir / "phantom"
        build_phantom(source, data.phantom_scans)
    print(f"data: preparing {source} into {workdir / 'data'}, at {data.spacing_mm:g} mm")
    prepare(source, workdir / "data", settings_of(data), data.lidc_xml or None)
    return Dataset(workdir / "data", data.fold)


def build_phantom(out: pathlib.Path, scans: int) -> None:
    """Builds the phantom in `out` unless it is there."""
    if out.exists():
        print(f"data: config.data.dir is empty, so this is the phantom dataset in {out}")
        return
    print(f"data: config.data.dir is empty, so a phantom of {scans} scans is built in {out}")
    temporary = temporary_name(out)
    try:
        phantom.build(temporary, scans)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
