"""A prediction as a DICOM Segmentation that refers to the slices it was made of.

DICOM PS3.3, A.51 (the object), C.8.20 (its modules). Binary, and a segment a finding, which is what
OHIF and 3D Slicer list one by one; frames without a voxel are left out. By its nature the object
carries patient and study of the source series: it belongs where the series does.
"""

import pathlib
import warnings

import highdicom
import pydicom
from pydicom.sr.codedict import codes

from lung_unet import __version__
from lung_unet.data.dicom_checks import in_order
from lung_unet.data.dicom_header import Header, read_attributes
from lung_unet.errors import InputError
from lung_unet.evaluation.prediction import Detection, Prediction
from lung_unet.evaluation.second_stage import Opinion
from lung_unet.files import atomic_path

MOST_SEGMENTS = 65535  # a segment's number has two bytes
SERIES_NUMBER = 1000  # above those that scanners give
MAGENTA = highdicom.color.CIELabColor.from_rgb(255, 79, 216)  # as the pictures draw predictions
SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
# Nothing else of the source is read. What is copied stays as it is, sound or not; what of it the
# standard requires may be empty.
REQUIRED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "StudyID", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
COPIED = (
    *REQUIRED, "SpecificCharacterSet", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)  # fmt: skip
ONE = ("StudyInstanceUID", "FrameOfReferenceUID")  # for all slices
NEEDED = (*ONE, "SOPInstanceUID")  # of each slice
OF_A_SLICE = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "Modality", "Rows",
    "Columns", "PixelSpacing", "SliceThickness", "ImagePositionPatient", "ImageOrientationPatient",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "LossyImageCompression",
    "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip


def write_segmentation(
    path: pathlib.Path, prediction: Prediction, slices: tuple[Header, ...], model: str
) -> None:
    """Writes a prediction with at least one finding; `model` says in a few words what made it.

    Raises:
      InputError: the series lacks what such an object needs, which is named, or there are more
        findings than it can number; it names no patient.
    """
    paths = [s.path for s in in_order(list(slices))]
    series = f"{paths[0].parent}: series {slices[0].series_uid}"
    number = len(prediction.detections)
    if number > MOST_SEGMENTS:
        raise InputError(
            f"{series}: a DICOM Segmentation holds {MOST_SEGMENTS} findings, not {number}; raise "
            "the thresholds; the other files are written"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # they would show the patient's name
            sources = [read_attributes(p, OF_A_SLICE) for p in paths]
            for source in sources:
                for keyword in REQUIRED:
                    setattr(source, keyword, None)
                source.Modality = "CT"
                # What `fault` found equal, to the last digit; and what CTs may leave empty.
                source.ImageOrientationPatient = sources[0].ImageOrientationPatient
                source.SliceThickness = (
                    source.get("SliceThickness") or prediction.scan.spacing_mm[0]
                )
            lacking = [k for k in NEEDED if not all(source.get(k) for source in sources)]
            lacking += [
                f"one {k}"
                for k in ONE
                if not lacking and len({source[k].value for source in sources}) > 1
            ]
            if lacking:
                raise InputError(
                    f"{series}: it has no {' and no '.join(lacking)}, without which there is no "
                    "DICOM Segmentation of it; export the series again; the other files are written"
                )
            segmentation = _segmentation(prediction, sources, model)
            segmentation.update(read_attributes(paths[0], COPIED))
            with atomic_path(path) as temporary:
                segmentation.save_as(temporary)
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"{series}: its DICOM attributes allow no Segmentation ({type(error).__name__}); the "
            "other files are written"
        ) from error


def _segmentation(
    prediction: Prediction, sources: list[pydicom.Dataset], model: str
) -> highdicom.seg.Segmentation:
    version = f"{__version__}, {model}"
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="lung_unet", version=version, family=codes.cid7162.ArtificialIntelligence
    )
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=prediction.labels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _describe(number, detection, algorithm)
            for number, detection in enumerate(prediction.detections, 1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        series_description="Lung nodules, found by lung_unet",
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="lung_unet",
        manufacturer_model_name="lung_unet",
        software_versions=version,
        device_serial_number=model,
        content_label="NODULES",
        content_description="Lung nodules, found by lung_unet",
    )


def _describe(
    number: int, detection: Detection, algorithm: highdicom.AlgorithmIdentificationSequence
) -> highdicom.seg.SegmentDescription:
    lung = highdicom.sr.CodedConcept.from_code(codes.SCT.Lung)
    if detection.lung in SIDES:
        side = highdicom.sr.CodedConcept.from_code(SIDES[detection.lung])
        lung.AnatomicRegionModifierSequence = [side]
    description = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=f"Nodule {number}",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Nodule,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=highdicom.UID(),
        tracking_id=f"Nodule {number}",
        anatomic_regions=[lung],
        display_color=MAGENTA,
    )
    description.SegmentDescription = (
        f"probability {detection.probability:.2f}, diameter {detection.diameter_mm:.1f} mm, "
        f"volume {detection.volume_mm3:.0f} mm3{_of_both_stages(detection.opinion)}"
    )
    return description


def _of_both_stages(opinion: Opinion | None) -> str:
    """What the second stage adds to a description, if there is one."""
    if opinion is None:
        return ""
    rated = "" if opinion.malignancy is None else f", malignancy {opinion.malignancy:.1f} of 5"
    return (
        f"; second stage: nodule {opinion.nodule_probability:.2f}{rated}, score of both stages "
        f"{opinion.score:.2f}"
    )
