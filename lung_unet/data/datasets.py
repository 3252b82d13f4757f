"""The dataset that a configuration asks for, made where it is not there yet."""

import os
import pathlib
import shutil

from ml_collections import ConfigDict

from lung_unet.data import phantom
from lung_unet.data.manifest import NAME, Dataset
from lung_unet.data.preparation import Accept, prepare, refuse_other_settings
from lung_unet.data.scan import READERS
from lung_unet.data.seen_files import places_of, prepared_from
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


def open_dataset(
    data: ConfigDict, workdir: pathlib.Path, make: bool = True, accept: Accept | None = None
) -> Dataset:
    """`data.dir` if it is prepared; prepared from it into the workdir if it holds scans; the
    phantom, built and prepared in the workdir, if it is empty.

    Scans that were prepared into the workdir before need not be there any more. Without `make`,
    what an earlier call made is taken as it is. `accept` is as in `prepare`.

    Raises:
      InputError: no such folder, or nothing in it that can be read; and what `accept` raises.
    """
    source, made = pathlib.Path(data.dir), workdir / "data"
    if data.dir and (source / NAME).exists():
        dataset = Dataset(source, data.fold)
        wanted = data.spacing_mm
        other = f", not at config's {wanted:g}" if dataset.spacing_mm != wanted else ""
        print(f"data: {source}, at {dataset.spacing_mm:g} mm{other}")
        for name in LABELLED:
            value = dataset.manifest["settings"][name]
            if value != data[name]:
                print(f"data: was prepared with {name} = {value}, not config's {data[name]}")
        return dataset
    if not data.dir:
        source = workdir / "phantom"
    xml = pathlib.Path(data.lidc_xml) if data.lidc_xml else None
    gone = [folder for folder in (source, xml) if folder and not _holds_anything(folder)]
    if not make or (gone and _made_before(made, workdir, source, xml)):
        if gone:
            print(f"data: {gone[0]} is not there; {made}, which was prepared from it, is used")
        if make:
            refuse_other_settings(made, settings_of(data))
        return Dataset(made, data.fold)
    if data.dir and not source.is_dir():
        there = f", as {made}, which was prepared before," if (made / NAME).exists() else ""
        raise InputError(
            f"{source}: no such folder; give a prepared dataset{there} or a LUNA16 folder, one's "
            "own images and labels, or DICOM as config.data.dir, or leave it empty for the phantom"
        )
    if not data.dir:
        build_phantom(source, data.phantom_scans)
    print(f"data: preparing {source} into {made}, at {data.spacing_mm:g} mm")
    prepare(source, made, settings_of(data), xml, accept=accept)
    return Dataset(made, data.fold)


def _holds_anything(folder: pathlib.Path) -> bool:
    """False also for a folder that nothing is mounted on."""
    return folder.is_dir() and any(folder.iterdir())


def _made_before(
    made: pathlib.Path, workdir: pathlib.Path, source: pathlib.Path, xml: pathlib.Path | None
) -> bool:
    """Whether `made` is what these folders, now gone, were prepared into."""
    if source == workdir / "phantom":  # wherever the workdir was then
        return (made / NAME).exists()
    return prepared_from(made, places_of(source, xml))


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
