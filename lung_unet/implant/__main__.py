"""Put nodules that LIDC-IDRI's readers outlined into real CTs, as a LUNA16 folder to train on.

    python -m lung_unet.implant --ct=DIR[,DIR…] --lidc_xml=DIR --out=LUNA16_FOLDER
        [--scans=10] [--nodules=0,6] [--outlines=0/3] [--ignore=CSV] [--seed=0] [--workers=N]
        [--matrix=512] [--thickness=1,3] [--kernel=0.8,1.5] [--dose=0.4,1] [--fov=0,1]

A hospital has thousands of CTs, and few outlines. Each CT (DICOM series, an image file, or the
scans of a LUNA16 folder) gives --scans new scans: nodules are put into its lungs, and it is then
acquired anew by computation, with other slices, kernel, dose and field of view. Its anatomy is
neither mirrored nor turned. A CT is taken to hold no nodules but those of its readers' XML (in
--lidc_xml or beside it), which are kept, and what --ignore lists, which no loss or score will see.

All scans of a patient are in one subset, and subsets share no outlines; patients.csv and
implants.csv say which are whose. For sets that are made apart, for training and for testing, give
different CTs and disjoint outlines: --outlines=0/3, 1/3 and 2/3. The same arguments give the same
bytes, however many workers there are.
"""

import pathlib
import re
import shlex
import sys
import time

from absl import flags
from rich.progress import track

from lung_unet import command
from lung_unet.errors import InputError


def main() -> None:
    from lung_unet.data import engine, lidc, tables
    from lung_unet.files import make_anew
    from lung_unet.implant import dataset
    from lung_unet.implant.outline_pool import part_of, shapes_of
    from lung_unet.implant.sources import find_cts
    from lung_unet.implant.writer import write_tables

    start = time.monotonic()
    folders = [pathlib.Path(path) for path in command.required("ct")]
    out = pathlib.Path(command.required("out"))
    request = _request()
    marks = lidc.read_marks([command.required("lidc_xml")])
    ignore = flags.FLAGS.ignore
    cts = find_cts(folders, out, marks, tables.read_marks(pathlib.Path(ignore)) if ignore else [])
    part, parts = request.outlines
    own = {uid: of_series for uid, of_series in marks.items() if part_of(uid, parts) == part}
    shapes = shapes_of(own, but=[ct.series_uid for ct in cts])
    print(
        f"{len(cts)} CTs of {len({ct.patient for ct in cts})} patients; to implant, {len(shapes)} "
        f"outlined nodules of {len({shape.series_uid for shape in shapes})} series"
    )
    jobs = dataset.plan(cts, shapes, request)
    make_anew(out)
    named = [(f"{job.ct.series_uid}, scan {i}", job, out) for i, job in enumerate(jobs)]
    made = engine.run(dataset.make, named, workers=flags.FLAGS.workers)
    rows = dict(track(made, "implanting", total=len(jobs)))
    in_order = [rows[name] for name, *_ in named]
    asked = shlex.join(["python", "-m", "lung_unet.implant", *sys.argv[1:]])
    write_tables(out, in_order, [ct.series_uid for ct in cts], asked)
    placed = sum(len(row.implants) for row in in_order)
    unplaced = sum(len(job.shapes) for job in jobs) - placed
    seconds = time.monotonic() - start
    print(
        f"{len(jobs)} scans with {placed} implants ({unplaced} more found no place, or would not "
        f"be seen) in {out}; {seconds:.0f} s, {seconds / len(jobs):.1f} s per scan"
    )


def _request():
    from lung_unet.implant.dataset import Request
    from lung_unet.implant.scanner import Settings

    low, high = _range("nodules", 0, 50)
    return Request(
        scans=flags.FLAGS.scans,
        nodules=(int(low), int(high)),
        seed=flags.FLAGS.seed,
        outlines=_part(flags.FLAGS.outlines),
        scanner=Settings(
            thickness_mm=_range("thickness", 0.1, 100),
            kernel_mm=_range("kernel", 0.1, 10),
            dose=_range("dose", 0.01, 1),
            fov=_range("fov", 0, 1),
            matrix=flags.FLAGS.matrix,
        ),
    )


def _range(name: str, least: float, most: float) -> tuple[float, float]:
    """The two numbers of a flag, or the one twice."""
    given = flags.FLAGS[name].value or []
    try:
        values = [float(text) for text in given]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not least <= values[0] <= values[-1] <= most:
        raise InputError(
            f"--{name}={','.join(given)}: give one number or LOWEST,HIGHEST, from {least:g} to "
            f"{most:g}"
        )
    return values[0], values[-1]


def _part(text: str) -> tuple[int, int]:
    given = re.fullmatch(r"(\d+)/(\d+)", text)
    part, parts = map(int, given.groups()) if given else (0, 0)
    if part >= parts:
        raise InputError(f"--outlines={text}: give PART/PARTS, as 0/3, 1/3 or 2/3")
    return part, parts


def define_flags() -> None:
    flags.DEFINE_list("ct", [], "Folders or files of CTs: DICOM, images, or LUNA16 folders.")
    flags.DEFINE_string("lidc_xml", None, "LIDC-IDRI's XML: a folder, or a tar archive.")
    flags.DEFINE_string("out", None, "The LUNA16 folder to write; one made before is made anew.")
    flags.DEFINE_string(
        "ignore", None,
        "CSV (seriesuid, coordX, coordY, coordZ, diameter_mm) of regions to leave out of losses "
        "and scores, as a tumour without an outline.",
    )  # fmt: skip
    flags.DEFINE_integer("scans", 10, "New scans of each CT.", lower_bound=1)
    flags.DEFINE_list("nodules", ["0", "6"], "LOWEST,HIGHEST number of nodules per scan.")
    flags.DEFINE_string("outlines", "0/1", "PART/PARTS: which part of the outlines, by series UID.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same bytes.", lower_bound=0)
    flags.DEFINE_integer("workers", None, "Processes; all cores by default.", lower_bound=1)
    flags.DEFINE_integer("matrix", 512, "Pixels per side.", lower_bound=32, upper_bound=2048)
    flags.DEFINE_list("thickness", ["1", "3"], "Slice thickness in mm; never below the CT's own.")
    flags.DEFINE_list(
        "kernel", ["0.8", "1.5"],
        "Full width at half maximum in mm of the kernel's point spread: 0.8 is sharp, 1.5 soft.",
    )  # fmt: skip
    flags.DEFINE_list("dose", ["0.4", "1"], "Dose as a fraction of the CT's; less is noisier.")
    flags.DEFINE_list("fov", ["0", "1"], "Field of view: 0 is just the lungs, 1 all of the CT.")


if __name__ == "__main__":
    define_flags()
    command.run(main)
