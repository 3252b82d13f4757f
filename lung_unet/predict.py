"""Segment lung nodules in a CT.

    python -m lung_unet.predict --workdir=DIR --input=scan.mhd|scan.nii.gz|DICOM_FOLDER --output=DIR

Writes to the output folder, named after the input:
    NAME_mask.nii.gz     uint8, 1 in a nodule, on the input's own grid
    NAME_findings.csv    seriesuid,coordX,coordY,coordZ,probability,diameter_mm: world mm (LPS), as
                         LUNA16 wants a submission, with the diameter added
"""

import csv
import pathlib

import numpy as np
from absl import flags

from lung_unet import command
from lung_unet.data.dicom_series import only_series
from lung_unet.data.images import (
    SUFFIXES,
    check_chest,
    grid_of,
    hounsfield,
    read_image,
    write_image,
)
from lung_unet.data.lungs import segment_lungs
from lung_unet.data.scan import Scan
from lung_unet.data.volume import make_volume
from lung_unet.errors import InputError
from lung_unet.files import atomic_path

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "probability", "diameter_mm")


def read_scan(path: pathlib.Path) -> Scan:
    """The scan of an image file or a DICOM folder, with its lungs.

    Raises:
      InputError: it cannot be read, or its values are not HU.
    """
    image = read_image(path)
    grid, hu = grid_of(image), hounsfield(image, path)
    check_chest(path, hu)
    uid = only_series(path)[0].series_uid if path.is_dir() else name_of(path)
    return Scan(uid, grid, hu, segment_lungs(hu, grid))


def name_of(path: pathlib.Path) -> str:
    """The file's or folder's name without an image suffix."""
    name = path.resolve().name
    suffixes = [s for s in SUFFIXES if name.lower().endswith(s)] if path.is_file() else []
    return name[: -len(max(suffixes, key=len))] if suffixes else name


def predict(workdir: pathlib.Path, source: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the mask and the findings of one scan to the output folder."""
    from lung_unet import workdir as runs
    from lung_unet.evaluation.candidates import find_candidates, mask_on_source
    from lung_unet.evaluation.operating_point import operating_point
    from lung_unet.restore import restore_predictor

    run = runs.load(workdir)
    config = run.config
    scan = read_scan(source)
    predictor, step = restore_predictor(workdir, config)
    point = operating_point(workdir, config, step)
    volume = make_volume(scan, run.settings.spacing_mm, run.settings.margin_mm)
    litres = volume.lungs.sum() * run.settings.spacing_mm**3 * 1e-6
    lungs = f"{litres:.1f} l of lung" if scan.lungs.any() else (
        "no lungs found, so the whole scan is searched"
    )  # fmt: skip
    shape = "×".join(map(str, scan.hu.shape))
    print(f"{source}: {shape} voxels (z, y, x), {lungs}; checkpoint of step {step}")
    probability = predictor(volume.hu, volume.lungs)
    candidates = find_candidates(probability, volume.grid, point.threshold, point.min_diameter_mm)
    mask = mask_on_source(probability, candidates, volume, point.threshold).astype(np.uint8)

    name = name_of(source)
    mask_path, findings_path = output / f"{name}_mask.nii.gz", output / f"{name}_findings.csv"
    write_image(mask_path, mask, scan.grid)
    with atomic_path(findings_path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for c in candidates:
            z, y, x = c.centre_mm
            row = (scan.series_uid, *(f"{v:.3f}" for v in (x, y, z)))
            writer.writerow((*row, f"{c.probability:.6f}", f"{c.diameter_mm:.2f}"))
    print(f"{len(candidates)} findings in {findings_path}")
    print(f"mask in {mask_path}")


def main() -> None:
    command.set_up_jax()
    workdir, source, output = (
        pathlib.Path(command.required(name)) for name in ("workdir", "input", "output")
    )
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; give a folder as --output")
    predict(workdir, source, output)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the training run.")
    flags.DEFINE_string("input", None, "An image file or a folder of one DICOM series.")
    flags.DEFINE_string("output", None, "Folder to write to.")
    command.run(main)
