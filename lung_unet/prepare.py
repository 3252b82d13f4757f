"""Prepare a LUNA16 folder for training: resample, crop to the lungs, cut into blocks, write shards.

    python -m lung_unet.prepare --luna16=DIR [--lidc_xml=DIR] --out=DIR [--config=configs/unet3d.py]
        [--engine=tcp://host:8786] [--pseudonym_key=FILE] [--on_broken=skip]
    python -m lung_unet.prepare --inspect=OUT

A run that was interrupted goes on; one with nothing new to do does nothing. On a Dask cluster all
folders must be shared by its machines, under the same paths. With a key, series have pseudonyms in
all that is written, names and contents; an error about a file of the input still names that file.
With --inspect nothing is prepared: it prints what is in OUT, and draws it in OUT/dataset.html.
"""

import pathlib

from absl import flags

from lung_unet import command
from lung_unet.errors import InputError

flags.DEFINE_string(
    "luna16", None, "Folder of scans: LUNA16, images/ with labels/ and splits.csv, or DICOM."
)
_LIDC_XML = flags.DEFINE_string("lidc_xml", None, "Folder of LIDC-IDRI's XML files.")
flags.DEFINE_string("out", None, "Folder to write shards and manifest.json to.")
_WORKERS = flags.DEFINE_integer("workers", None, "Processes; all cores by default.", lower_bound=1)
_ENGINE = flags.DEFINE_string(
    "engine", "local", "local: this machine; or the Dask scheduler of a cluster, tcp://host:8786."
)
_KEY = flags.DEFINE_string(
    "pseudonym_key", None, "File, 16 bytes or more, of a secret that turns UIDs into pseudonyms."
)
_INSPECT = flags.DEFINE_string(
    "inspect", None, "Prepared folder to look at; nothing is prepared. Writes its dataset.html."
)
_ON_BROKEN = flags.DEFINE_enum(
    "on_broken", "stop", ["stop", "skip"],
    "A scan that cannot be read ends it, or is left out and listed in manifest.json.",
)  # fmt: skip
_CONFIG = command.define_config("configs/unet3d.py")


def main() -> None:
    if _INSPECT.value:
        look(_INSPECT.value)
    else:
        make()


def look(folder: str) -> None:
    if flags.FLAGS.luna16 or flags.FLAGS.out:
        raise InputError("--inspect prepares nothing; give it without --luna16 and --out")
    from lung_unet.evaluation.dataset_report import inspect

    print(f"drawn in {inspect(folder)}")


def make() -> None:
    from lung_unet.data.datasets import settings_of
    from lung_unet.data.preparation import prepare
    from lung_unet.data.pseudonyms import read_key

    luna16, out = command.required("luna16"), pathlib.Path(command.required("out"))
    settings = settings_of(_CONFIG.value.data)
    key = read_key(_KEY.value) if _KEY.value else None
    xml = _LIDC_XML.value or _CONFIG.value.data.lidc_xml or None
    skip = _ON_BROKEN.value == "skip"
    manifest = prepare(luna16, out, settings, xml, _WORKERS.value, _ENGINE.value, key, skip)
    counts = manifest["counts"]
    print(
        f"{counts['scans']} scans, {counts['nodules']} nodules ({counts['spheres']} without an "
        f"outline, as spheres), {counts['ignored_findings']} findings ignored, "
        f"{counts['bytes'] / 1e6:.0f} MB in {out / 'manifest.json'}"
    )


if __name__ == "__main__":
    command.run(main)
