"""Whole sets: LUNA16's layout, votes to the voxel, split by patient and outline, same bytes."""

import csv
import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from lung_unet.data import lidc
from lung_unet.data.combined import combine
from lung_unet.data.luna16 import Luna16
from lung_unet.data.patients import patient_key
from lung_unet.data.tables import Mark
from lung_unet.errors import InputError
from lung_unet.implant import dataset, scanner
from lung_unet.implant.outline_pool import part_of, shapes_of
from lung_unet.implant.sources import find_cts
from lung_unet.implant.writer import write_tables

SETTINGS = scanner.Settings(thickness_mm=(2.5, 5.0), matrix=128)
ALL = dataset.Request(2, (3, 5), 0, (0, 1), SETTINGS)


def build(folders, readings, out, request=ALL, ignored=()):
    marks = lidc.read_marks([readings])
    cts = find_cts(folders, out, marks, ignored)
    part, parts = request.outlines
    shapes = shapes_of({u: m for u, m in marks.items() if part_of(u, parts) == part})
    out.mkdir()
    jobs = dataset.plan(cts, shapes, request)
    rows = [dataset.make(str(i), job, out)[1] for i, job in enumerate(jobs)]
    write_tables(out, rows, [ct.series_uid for ct in cts], "test")
    return jobs


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def made(dicom, readings, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "set"
    region = Mark("1.2.1", np.array([-120.0, 10.0, 50.0]), 24.0, 2)
    build(dicom, readings, out, ignored=[region])
    return out


def test_a_set_is_read_as_luna16_with_every_nodule_outlined(made):
    source = Luna16(made)
    assert len(source.paths) == 4 and not source.notes and not source.absent
    implants = table(made / "implants.csv")
    assert len(implants) > 8
    for uid in source.paths:
        scan, matches = source.read_matched(uid)
        assert matches and all(match.finding is not None for match in matches)
        assert scan.lungs_source == "seg-lungs-LUNA16" and scan.hu.min() >= -1024
        for row in (row for row in implants if row["seriesuid"] == uid):
            centre = np.array([float(row[f"coord{axis}"]) for axis in "ZYX"])
            finding = min(
                (f for f in scan.findings if f.reader_bits.any()),
                key=lambda f: np.linalg.norm(f.centre_mm - centre),
            )
            np.testing.assert_allclose(finding.centre_mm, centre, atol=1e-4)
            assert finding.diameter_mm == pytest.approx(float(row["diameter_mm"]), abs=1e-4)
            assert finding.readers == int(row["readers"])
            assert finding.included == (finding.readers >= 3)
            assert finding.ratings["texture"] == pytest.approx(float(row["texture"]), abs=0.01)
            # The nodule is where its outline is: brighter inside than in the lung around.
            box = scan.hu[finding.box]
            assert box[finding.votes >= 2].mean() > -500


def test_the_cts_own_nodules_are_kept_and_regions_ignored(made):
    source = Luna16(made)
    rows = table(made / "scans.csv")
    for row in rows:
        scan = source.read(row["seriesuid"])
        if row["ct_seriesuid"] == "1.2.0":
            own = np.array([-200 + 30 * 2.5, -90 + 79.5 * 1.2, -95 + 112.5 * 1.2])
            near = [f for f in scan.findings if np.linalg.norm(f.centre_mm - own) < 2]
            assert len(near) == 1 and near[0].included and near[0].readers == 4
            volume = (near[0].votes == 4).sum() * np.prod(scan.spacing_mm)
            assert volume == pytest.approx(5 * 8 * 10 * 2.5 * 1.44, rel=0.25)
            assert np.median(scan.hu[near[0].box][near[0].votes == 4]) > 0
        else:
            voxel = np.rint(scan.grid.to_voxel([-120.0, 10.0, 50.0])).astype(int)
            assert scan.ignore[tuple(voxel)]
            ball = scan.ignore.sum() * np.prod(scan.spacing_mm)
            assert ball >= 0.85 * 4 / 3 * np.pi * 12**3
            implanted = [f for f in scan.findings if f.outlined and f.included]
            for finding in implanted:
                gap = np.linalg.norm(finding.centre_mm - [-120, 10, 50])
                assert gap > 12 + 0.4 * finding.diameter_mm


def test_patients_are_apart_in_subsets_that_share_no_outline(made):
    source = Luna16(made)
    scans = {row["seriesuid"]: row for row in table(made / "scans.csv")}
    assert source.patients == {uid: row["patient"] for uid, row in scans.items()}
    assert set(source.patients.values()) == {patient_key("MRN-0"), patient_key("MRN-1")}
    subset_of = {row["ct_seriesuid"]: source.subsets[uid] for uid, row in scans.items()}
    assert len(set(subset_of.values())) == 2
    used = {subset: set() for subset in subset_of.values()}
    for row in table(made / "implants.csv"):
        used[source.subsets[row["seriesuid"]]].add(row["outline_seriesuid"])
    first, second = used.values()
    assert first and second and not first & second


def test_the_same_arguments_give_the_same_bytes_on_any_worker(dicom, readings, made, tmp_path):
    marks = lidc.read_marks([readings])
    region = Mark("1.2.1", np.array([-120.0, 10.0, 50.0]), 24.0, 2)
    cts = find_cts(dicom, tmp_path, marks, [region])
    jobs = dataset.plan(cts, shapes_of(marks), ALL)
    dataset.make("last first", jobs[-1], tmp_path)
    uid = jobs[-1].series_uid
    written = sorted(tmp_path.rglob(f"{uid}.*"))
    assert len(written) == 5
    for path in written:
        assert path.read_bytes() == (made / path.relative_to(tmp_path)).read_bytes(), path
    other = dataset.plan(cts, shapes_of(marks), dataclasses.replace(ALL, seed=1))
    assert not {job.series_uid for job in jobs} & {job.series_uid for job in other}
    assert [s.series_uid for s in jobs[0].shapes] != [s.series_uid for s in other[0].shapes]


def test_sets_in_two_splits_must_share_no_patient_and_no_outline(dicom, readings, tmp_path):
    few = dataclasses.replace(ALL, scans=1)
    one, two, same = (tmp_path / name for name in ("one", "two", "same"))
    build(dicom[:1], readings, one, dataclasses.replace(few, outlines=(0, 2)))
    build(dicom[1:], readings, two, dataclasses.replace(few, outlines=(1, 2)))
    build(dicom[1:], readings, same, dataclasses.replace(few, outlines=(0, 2), nodules=(9, 9)))
    third = tmp_path / "third"
    (third / "subset0").mkdir(parents=True)
    for path in (one / "subset0").iterdir():  # any scan that is no one's
        text = path.read_bytes().replace(path.stem.encode(), b"1.2.77")
        (third / "subset0" / f"1.2.77{path.suffix}").write_bytes(text)
    (third / "annotations.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n")
    combine({"train": [one], "validation": [third], "test": [two]}, tmp_path / "out")
    with pytest.raises(InputError, match="outlines"):
        combine({"train": [one], "validation": [third], "test": [same]}, tmp_path / "out")
    (third / "scans.csv").write_text("seriesuid,ct_seriesuid\n1.2.77,1.2.1\n")
    with pytest.raises(InputError, match="CT"):
        combine({"train": [one], "validation": [third], "test": [two]}, tmp_path / "out")


def test_each_outline_is_used_before_any_is_used_again(dicom, readings, tmp_path):
    marks = lidc.read_marks([readings])
    cts = find_cts(dicom[:1], tmp_path, marks, [])
    shapes = shapes_of(marks)
    request = dataclasses.replace(ALL, scans=8, nodules=(6, 6))
    drawn = [
        (s.series_uid, s.number)
        for job in dataset.plan(cts, shapes, request)
        for s in job.shapes
        if s.readers >= 3
    ]
    agreed = sum(s.readers >= 3 for s in shapes)
    assert len(drawn) == pytest.approx(0.75 * 48, abs=9) and len(drawn) < agreed
    assert len(set(drawn)) == len(drawn)


def test_a_region_of_no_ct_or_outside_one_is_refused(dicom, readings, tmp_path):
    marks = lidc.read_marks([readings])
    with pytest.raises(InputError, match=r"1\.2\.99"):
        find_cts(dicom, tmp_path, marks, [Mark("1.2.99", np.zeros(3), 5.0, 2)])
    far = find_cts(dicom, tmp_path, marks, [Mark("1.2.0", np.full(3, 900.0), 5.0, 2)])
    with pytest.raises(InputError, match="--ignore: line 2"):
        far[0].read()
    with pytest.raises(InputError, match="given already"):
        find_cts([dicom[0], dicom[0]], tmp_path, marks, [])


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "lung_unet.implant", *map(str, arguments)],
        capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip


def test_the_command_makes_a_set_and_says_what_it_did(dicom, readings, tmp_path):
    out = tmp_path / "out"
    arguments = (f"--ct={dicom[0]}", f"--lidc_xml={readings}", f"--out={out}", "--scans=1",
                 "--nodules=2", "--matrix=96", "--workers=1", "--outlines=1/2")  # fmt: skip
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "1 scans with 2 implants" in done.stdout and "100%" in done.stdout
    assert {p.name for p in out.iterdir()} >= {
        "subset0", "seg-lungs-LUNA16", "lidc_xml", "annotations.csv", "annotations_excluded.csv",
        "seriesuids.csv", "patients.csv", "implants.csv", "scans.csv", "README.md",
    }  # fmt: skip
    assert all(part_of(row["outline_seriesuid"], 2) == 1 for row in table(out / "implants.csv"))
    assert "CC BY 3.0" in (out / "README.md").read_text(encoding="utf-8")
    helped = run("--help").stdout
    assert all(flag in helped for flag in ("--ct", "--ignore", "--thickness", "--dose"))


@pytest.mark.parametrize("flag, told", [
    ("--thickness=5,1", "--thickness"), ("--outlines=3/3", "--outlines"), ("--dose=2", "--dose"),
    ("--nodules=many", "--nodules"), ("--ct=/nowhere", "/nowhere"), ("--lidc_xml=/nowhere", "/now"),
    ("--ignore=/nowhere.csv", "/nowhere.csv"),
])  # fmt: skip
def test_a_users_mistake_is_one_line(dicom, readings, tmp_path, flag, told):
    done = run(f"--ct={dicom[0]}", f"--lidc_xml={readings}", f"--out={tmp_path / 'out'}", flag)
    assert done.returncode == 1 and told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
