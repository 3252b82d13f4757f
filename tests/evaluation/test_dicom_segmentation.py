"""The DICOM Segmentation: its source, its place and its voxels, as readers of DICOM find them."""

import dataclasses
import shutil
import subprocess

import highdicom
import numpy as np
import pydicom
import pytest

from lung_unet.data.inputs import find_inputs, read_input
from lung_unet.data.scan import Grid
from lung_unet.errors import InputError
from lung_unet.evaluation.dicom_segmentation import write_segmentation
from lung_unet.evaluation.prediction import Detection, Prediction
from lung_unet.evaluation.second_stage import Opinion

NAME = "Müller^Jörg"


@pytest.fixture
def series(tmp_path, write_series, direction, personal):
    """An `Input` of a series turned in any way, its name in Latin-1, its dates and sex unsound."""
    hu = np.random.default_rng(0).integers(-1000, 400, (9, 16, 20)).astype(np.int16)
    grid = Grid(hu.shape, np.array([2.5, 0.5, 0.75]), np.array([5.0, -20.0, -10.0]), direction)
    folder = write_series(tmp_path / "ct", "1.2.3.4", hu, grid, personal)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientName, dataset.PatientSex, dataset.StudyDate = NAME, "", "19991231"
        dataset.save_as(path)
    return find_inputs(folder, tmp_path / "out").scans[0]


@pytest.fixture
def prediction(series) -> Prediction:
    """Two findings that touch, most probable first."""
    scan = read_input(series)
    labels = np.zeros(scan.grid.shape, np.uint16)
    labels[2:5, 3:9, 4:12], labels[4:7, 9:12, 4:12] = 1, 2
    one = Detection(np.zeros(3), np.zeros(3), 8.25, 260.4, 0.876, "left")
    detections = [one, dataclasses.replace(one, probability=0.5, lung="outside")]
    return Prediction(scan, np.zeros(scan.grid.shape, np.uint8), labels, detections)


@pytest.fixture
def written(series, prediction, tmp_path):
    path = tmp_path / "out" / "ct_segmentation.dcm"
    write_segmentation(path, prediction, series.slices, model="step 600")
    return path


def test_every_frame_refers_to_the_slice_it_lies_on_and_shows_the_mask(series, prediction, written):
    sources = {s.SOPInstanceUID: s for s in (pydicom.dcmread(h.path) for h in series.slices)}
    dataset = pydicom.dcmread(written)
    frames = dataset.PerFrameFunctionalGroupsSequence
    assert len(frames) == dataset.NumberOfFrames == 6
    masks = dict.fromkeys(sources, 0)
    for frame, pixels in zip(frames, dataset.pixel_array, strict=True):
        (reference,) = frame.DerivationImageSequence[0].SourceImageSequence
        source = sources[reference.ReferencedSOPInstanceUID]
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(position, source.ImagePositionPatient, atol=1e-6)
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        masks[source.SOPInstanceUID] = masks[source.SOPInstanceUID] + number * pixels
    shared = dataset.SharedFunctionalGroupsSequence[0]
    any_source = next(iter(sources.values()))
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    np.testing.assert_allclose(orientation, any_source.ImageOrientationPatient, atol=1e-6)
    measures = shared.PixelMeasuresSequence[0]
    np.testing.assert_allclose(measures.PixelSpacing, any_source.PixelSpacing)
    assert measures.SpacingBetweenSlices == pytest.approx(2.5)
    assert dataset.FrameOfReferenceUID == any_source.FrameOfReferenceUID
    for uid, source in sources.items():
        place = np.array(source.ImagePositionPatient, float)[::-1]
        z = round(prediction.scan.grid.to_voxel(place)[0])
        np.testing.assert_array_equal(masks[uid] + np.zeros((16, 20), int), prediction.labels[z])


def test_highdicom_reads_the_labels_back(series, prediction, written):
    by_place = sorted(
        series.slices, key=lambda h: prediction.scan.grid.to_voxel(h.position[::-1])[0]
    )
    uids = [pydicom.dcmread(h.path).SOPInstanceUID for h in by_place]
    segmentation = highdicom.seg.segread(written)
    read = segmentation.get_pixels_by_source_instance(
        uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(read, prediction.labels)


def test_segments_say_what_they_are_and_how_probable(written):
    first, second = pydicom.dcmread(written).SegmentSequence
    assert (first.SegmentNumber, second.SegmentNumber) == (1, 2)
    assert first.SegmentDescription == "probability 0.88, diameter 8.2 mm, volume 260 mm3"
    assert first.TrackingUID != second.TrackingUID
    for segment in (first, second):
        coded = segment.SegmentedPropertyTypeCodeSequence[0]
        assert (coded.CodeValue, coded.CodingSchemeDesignator) == ("27925004", "SCT")
        coded = segment.SegmentedPropertyCategoryCodeSequence[0]
        assert (coded.CodeValue, coded.CodingSchemeDesignator) == ("49755003", "SCT")
        assert segment.AnatomicRegionSequence[0].CodeValue == "39607008"
        algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
        assert algorithm.AlgorithmName == "lung_unet"
        assert algorithm.AlgorithmVersion.endswith("step 600")
    (side,) = first.AnatomicRegionSequence[0].AnatomicRegionModifierSequence
    assert side.CodeMeaning == "Left"
    assert "AnatomicRegionModifierSequence" not in second.AnatomicRegionSequence[0]


def test_a_segment_says_what_the_second_stage_does(series, prediction, tmp_path):
    opinions = Opinion(0.934, 4.26, 0.915), Opinion(0.2, None, 0.3)
    judged = [
        dataclasses.replace(detection, opinion=opinion)
        for detection, opinion in zip(prediction.detections, opinions, strict=True)
    ]
    path = tmp_path / "judged.dcm"
    both = dataclasses.replace(prediction, detections=judged)
    write_segmentation(path, both, series.slices, model="step 600")
    rated, unrated = (
        segment.SegmentDescription for segment in pydicom.dcmread(path).SegmentSequence
    )
    assert rated == (
        "probability 0.88, diameter 8.2 mm, volume 260 mm3; second stage: nodule 0.93, malignancy "
        "4.3 of 5, score of both stages 0.92"
    )
    assert unrated.endswith("; second stage: nodule 0.20, score of both stages 0.30")


def test_patient_and_study_are_the_sources_and_no_more_of_it_is_copied(written, personal):
    dataset = pydicom.dcmread(written)
    assert dataset.PatientName == NAME and dataset.PatientID == "MRN-774900"
    assert dataset.StudyInstanceUID == personal["0020|000d"]
    assert dataset.SeriesInstanceUID != "1.2.3.4"
    content = written.read_bytes()
    for tag in ("0008|0080", "0008|1030", "0008|103e", "0010|1040", "0020|4000", "0018|1000"):
        assert personal[tag].encode() not in content


@pytest.mark.parametrize(
    ("keyword", "of", "value"),
    [
        ("FrameOfReferenceUID", slice(None), None),
        ("FrameOfReferenceUID", slice(1), ""),
        ("FrameOfReferenceUID", slice(1), "1.2.3"),
        ("StudyInstanceUID", slice(3, 4), None),
        ("SOPInstanceUID", slice(3, 4), None),
    ],
)
def test_what_the_series_lacks_is_named_and_no_patient(
    series, prediction, tmp_path, keyword, of, value
):
    for header in series.slices[of]:
        dataset = pydicom.dcmread(header.path)
        setattr(dataset, keyword, value)
        if value is None:
            del dataset[keyword]
        dataset.save_as(header.path)
    with pytest.raises(InputError, match=rf"series 1\.2\.3\.4.*{keyword}") as error:
        write_segmentation(tmp_path / "out" / "x.dcm", prediction, series.slices, model="step 1")
    assert "Müller" not in str(error.value)
    assert not list((tmp_path / "out").glob("*"))


def test_more_findings_than_segments_can_be_numbered(series, prediction, tmp_path):
    many = dataclasses.replace(prediction, detections=prediction.detections[:1] * 65_536)
    with pytest.raises(InputError, match="holds 65535 findings, not 65536"):
        write_segmentation(tmp_path / "x.dcm", many, series.slices, model="step 1")


def test_a_source_without_preamble_and_with_unknown_representations(
    series, prediction, written, tmp_path
):
    for header in series.slices:
        dataset = pydicom.dcmread(header.path)
        plain = header.path.with_suffix(".explicit")
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.save_as(plain, implicit_vr=False, little_endian=True)
        data = plain.read_bytes()
        plain.unlink()
        at = data.index(b"\x10\0\x10\0PN")
        start = data.index(b"\x08\0\x05\0CS")  # the character set, which comes first
        private = b"\x09\0\x10\0LO\4\0TEST\x09\0\1\x10??\0\0\4\0\0\0abcd"
        header.path.write_bytes((data[:at] + private + data[at:])[start:])
    slices = find_inputs(series.path, tmp_path / "out").scans[0].slices
    path = tmp_path / "again.dcm"
    write_segmentation(path, prediction, slices, model="step 600")
    first, second = pydicom.dcmread(written), pydicom.dcmread(path)
    np.testing.assert_array_equal(second.pixel_array, first.pixel_array)
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert second[name].value == first[name].value


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="no dciodvfy (Debian: dicom3tools)")
def test_dciodvfy_has_nothing_against_it(written):
    said = subprocess.run(["dciodvfy", written], capture_output=True, text=True).stderr
    assert said.splitlines()[-1] == "Segmentation"
    assert not [line for line in said.splitlines() if line.startswith("Error")]
