"""Segment lung nodules in chest CTs.

    python -m lung_unet.predict --workdir=DIR --input=PATH --output=DIR [--backend=onnx|openvino]
                                [--classifier=DIR]
    python -m lung_unet.predict --workdir=A,B,C --thresholds=DIR --input=PATH --output=DIR

Of several runs the probabilities are averaged; DIR is where lung_unet.evaluate has scored them
together, and so chosen their thresholds.

PATH is an image file (.mhd, .mha, .nii, .nii.gz, .nrrd, .nhdr), a folder of such files, or a
folder of DICOM files, with any number of series in it and below it. Each scan has a name: of its
file without suffix, or of the folder of its series; where names are the same, files keep their
suffix and series add their UID. For each scan, the output folder gets

    NAME_mask.nii.gz           uint8, 1 in a nodule, on the input's own grid
    NAME_probability.nii.gz    nodule probability, 0..1 in steps of 1/255, on the same grid
    NAME_findings.csv          begins with seriesuid,coordX,coordY,coordZ,probability: world mm
                               (LPS), as LUNA16 wants a submission; size, lung, voxel follow
    NAME_findings.json         the same; also what is outside the lungs, and so no finding, and what
                               was wrong with the scan
    NAME_finding_001.png       each finding in three planes, of the 50 most probable
    NAME_segmentation.dcm      for DICOM, where something was found: a DICOM Segmentation; it copies
                               patient and study of the source, and no other file does

With --classifier, the workdir of a run of configs/classifier3d.py, both stages decide what is a
finding; each also has the second stage's nodule_probability, malignancy (1 to 5) and score of both
stages, and a PNG NAME_finding_001_why.png of what it looked at.

A scan that cannot be read is named in a line, the others go on, and the command exits 1. One that
the same model has predicted already, all of whose files are there, is left as it is; remove its
NAME_findings.json to have it done again.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from rich.progress import track

from lung_unet import __version__, command
from lung_unet.data.inputs import Input, find_inputs, fingerprint, read_input
from lung_unet.data.read_ahead import ReadAhead
from lung_unet.data.scan import Scan
from lung_unet.data.shards import Settings
from lung_unet.data.volume import Volume, make_volume
from lung_unet.errors import InputError, unexpected

if TYPE_CHECKING:
    from lung_unet.evaluation.judge import SecondStage
    from lung_unet.evaluation.operating_point import OperatingPoint
    from lung_unet.workdir import Run


@dataclasses.dataclass(frozen=True)
class Model:
    """What predicts: `made_with` is what a scan's JSON says of it, `identity` all it depends on."""

    predictor: Callable[[np.ndarray, np.ndarray], np.ndarray]
    point: "OperatingPoint"
    second: "SecondStage | None"
    made_with: dict
    identity: dict
    name: str


def restore(
    members: Sequence["Run"],
    backend: str,
    thresholds: pathlib.Path,
    classifier: pathlib.Path | None,
) -> Model:
    """The mean of the runs, restored and compiled, with the thresholds chosen in a folder.

    Raises:
      InputError: something of it is missing or broken.
    """
    from lung_unet.data import lungs
    from lung_unet.evaluation.candidates import VERSION
    from lung_unet.evaluation.operating_point import operating_point
    from lung_unet.evaluation.resume import member
    from lung_unet.restore import restore_runs
    from lung_unet.second_stage import open_second_stage

    predictor, steps = restore_runs(members, backend)
    point = operating_point(members, steps, thresholds)
    ran = [member(run, step) for run, step in zip(members, steps, strict=True)]
    made_with = {
        "checkpoint_step": steps[0] if len(steps) == 1 else steps,
        "threshold": point.threshold,
        "finding_threshold": point.finding_threshold,
    }
    identity: dict = {"members": ran, "point": vars(point), "backend": backend}
    identity |= {"version": __version__, "candidates": VERSION, "lungs": lungs.VERSION}
    second = open_second_stage(classifier, members[0]) if classifier else None
    if second:
        second = second.beside(ran, point)
        made_with["classifier_step"] = second.settings["step"]
        if second.finding_threshold is not None:
            made_with["score_threshold"] = second.finding_threshold
            del made_with["finding_threshold"]
        identity["second"] = second.decides | {"rated": second.rated}
    name = f"checkpoint of step {steps[0]}" if len(steps) == 1 else f"mean of {len(steps)} runs"
    return Model(predictor, point, second, made_with, identity, name)


def read(settings: Settings, source: Input) -> tuple[Scan, Volume]:
    """The scan, and what the network sees of it.

    Raises:
      InputError: it cannot be read.
    """
    scan = read_input(source)
    return scan, make_volume(scan, settings.spacing_mm, settings.margin_mm)


def predict(
    workdirs: Sequence[pathlib.Path],
    path: pathlib.Path,
    output: pathlib.Path,
    backend: str = "jax",
    thresholds: pathlib.Path | None = None,
    classifier: pathlib.Path | None = None,
) -> None:
    """Writes what the model finds in each scan of a file or folder to the output folder.

    The model is the mean of the workdirs' runs, its thresholds those that were chosen in the folder
    `thresholds`, or in the workdir of one alone. It is restored and compiled once; a scan is read
    while the one before it is predicted. Scans that it predicted before are left as they are.

    Raises:
      InputError: no run, no scan, an output that cannot be written, or scans that failed, of which
        each is printed in a line, when the others are done.
    """
    from lung_unet import workdir as runs
    from lung_unet.evaluation.dicom_segmentation import write_segmentation
    from lung_unet.evaluation.prediction import predict_scan
    from lung_unet.evaluation.prediction_files import is_written, write_prediction
    from lung_unet.members import check_together

    members = [runs.load(workdir) for workdir in workdirs]
    check_together(members)
    inputs = find_inputs(path, output)
    if inputs.left_out:
        print(f"{path}: left out: {inputs.left_out}")
    total = len(inputs.scans) + len(inputs.errors)
    failed: list[str] = []

    def fail(error: InputError) -> None:
        if total == 1:
            raise error
        failed.append(str(error).partition(": ")[0])
        print(f"error: {error}", file=sys.stderr)

    for error in inputs.errors:
        fail(error)

    @functools.cache  # while the first scan is read, or before it is known which that is
    def model() -> Model:
        return restore(members, backend, thresholds or workdirs[0], classifier)

    files = {source.name: fingerprint(source) for source in inputs.scans}  # before they are read

    def made_from(source: Input) -> str | None:
        told = json.dumps([model().identity, files[source.name]], sort_keys=True)
        return files[source.name] and hashlib.sha256(told.encode()).hexdigest()

    def written(source: Input) -> bool:
        return is_written(output, source.name, bool(source.slices), lambda: made_from(source))

    to_do = [source for source in inputs.scans if not written(source)]
    if before := len(inputs.scans) - len(to_do):
        print(f"{before} of {total} scans: predicted before, by the same model; left as they are")
    with ReadAhead(functools.partial(read, members[0].settings), to_do) as scans:
        if to_do:
            model()
        for source, result in track(scans, "predict", len(to_do), disable=total == 1 or not to_do):
            if isinstance(result, InputError):
                fail(result)
                continue
            scan, volume = result
            m = model()
            print(f"{source}: {describe(scan)}; {m.name}")
            for warning in scan.warnings:
                print(f"warning: {source}: {warning}")
            made_with = m.made_with | {"made_from": made_from(source)}
            try:
                prediction = predict_scan(m.predictor, scan, volume, m.point, m.second)
                try:
                    write_prediction(output, source.name, prediction, made_with)
                    if source.slices and prediction.detections:
                        segmentation = output / f"{source.name}_segmentation.dcm"
                        write_segmentation(segmentation, prediction, source.slices, m.name)
                except (OSError, RuntimeError) as error:  # SimpleITK raises the latter
                    reason = " ".join(str(error).split()[-20:])
                    raise InputError(
                        f"{source}: {output} cannot be written ({reason}); free space, or give "
                        "another --output"
                    ) from error
            except InputError as error:
                fail(error)
                continue
            except Exception as error:
                if total == 1:
                    raise
                fail(unexpected(source, error))
                continue
            outside = len(prediction.outside)
            print(
                f"{len(prediction.detections)} findings in {output / source.name}_findings.csv"
                + (f"; {outside} more outside the lungs, in its .json alone" if outside else "")
            )
    if failed:
        raise InputError(f"{len(failed)} of {total} scans failed: {', '.join(failed)}")


def describe(scan: Scan) -> str:
    """What a scan is like, in a few words."""
    shape = "×".join(map(str, scan.hu.shape))
    return f"{shape} voxels (z, y, x), {scan.lung_litres:.1f} l of lung"


def main() -> None:
    command.set_up_jax()
    workdirs = command.workdirs()
    path, output = (pathlib.Path(command.required(name)) for name in ("input", "output"))
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; give a folder as --output")
    thresholds, classifier = (
        pathlib.Path(given) if given else None
        for given in (flags.FLAGS.thresholds, flags.FLAGS.classifier)
    )
    predict(workdirs, path, output, flags.FLAGS.backend, thresholds, classifier)


if __name__ == "__main__":
    flags.DEFINE_multi_string("workdir", None, "Folder of a training run; several as A,B,C.")
    flags.DEFINE_string(
        "thresholds", None, "Folder that lung_unet.evaluate has scored the runs in."
    )
    flags.DEFINE_string("input", None, "An image file, or a folder of image files or DICOM series.")
    flags.DEFINE_string("output", None, "Folder to write to.")
    flags.DEFINE_string("classifier", None, "Folder of the second stage's training run.")
    flags.DEFINE_string("backend", "jax", "What runs the network: jax; onnx or openvino, on a CPU.")
    command.run(main)
