"""What was dropped, guessed or differs in a prepared dataset is told, counted and named."""

import json

import pytest

from lung_unet.data.consistency import by_kind, consistency


@pytest.fixture
def manifest(prepared) -> dict:
    return json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))


ROWS = ["annotations.csv: 4 rows read, 4 of scans that are here"]


def test_lungs_and_annotations_without_outline(manifest):
    assert list(consistency(manifest))[:2] == ["lungs: 4 from seg-lungs-LUNA16, 0 computed", *ROWS]
    entries = manifest["scans"]
    entries[0]["lungs"] = "computed"
    entries[1]["has_outlines"] = True
    entries[1]["spheres"] = [{"centre_mm": [1.0, 2.0, 3.0], "diameter_mm": 7.25}] * 12
    manifest["tables"] = {}
    lines = list(consistency(manifest))
    assert lines[0] == "lungs: 3 from seg-lungs-LUNA16, 1 computed"
    assert lines[1] == "12 annotations matched no reader's outline and became spheres:"
    assert lines[2:-1] == ["  1.2.1: 7.2 mm at x 3.0, y 2.0, z 1.0 mm"] * 10
    assert "2 more" in lines[-1]
    assert len([line for line in consistency(manifest, None) if "7.2 mm at" in line]) == 12
    entries[3]["files"]["nodule"]["records"] = 0
    assert list(consistency(manifest))[-1].startswith(
        "1.2.3: 1 of its nodules lie beyond the lungs"
    )


def test_rows_of_scans_that_are_not_here_are_counted(manifest):
    manifest["tables"] = {"annotations.csv": {"rows": 25, "matched": 13, "left": 12}}
    (line,) = [line for line in consistency(manifest) if line.startswith("annotations.csv")]
    assert "25 rows" in line and "13 of scans that are here" in line and "12 of scans" in line


@pytest.mark.parametrize(("counts", "word"), [(False, "ignored"), (True, "count")])
def test_findings_that_luna16_does_not_list_are_named(manifest, counts, word):
    found = {"centre_mm": [1, 2, 3], "diameter_mm": 7.3, "readers": 3, "counts": counts}
    manifest["scans"][2]["unlisted"] = [found]
    first, second = list(consistency(manifest))[3:]
    assert first.startswith("1 findings") and word in first and "annotations.csv" in first
    assert second == "  1.2.2: 7.3 mm at x 3.0, y 2.0, z 1.0 mm"


def test_warnings_are_counted_by_their_kind_and_name_their_scans(manifest):
    for number, entry in enumerate(manifest["scans"]):
        entry["warnings"] = ["lungs not plausible"]
        if number:
            entry["warnings"].append(f"{number} of 9 outlines lie outside, at z -{number}.5 mm")
    assert {kind: len(found) for kind, found in by_kind(manifest).items()} == {
        "lungs not plausible": 4,
        "… of … outlines lie outside, at z … mm": 3,
    }
    lines = list(consistency(manifest, most=2))[3:]
    assert lines[0] == "4 scans: lungs not plausible"  # of all: they need no names
    assert lines[1].startswith("3 scans: …")
    assert lines[2] == "  1.2.1: 1 of 9 outlines lie outside, at z -1.5 mm"
    assert "1 more" in lines[4] and "manifest.json" in lines[4] and len(lines) == 5
    assert len(list(consistency(manifest, None))) == 3 + 5


def test_scans_without_a_nodule_and_broken_scans_are_counted(manifest):
    manifest["scans"][0]["nodules"] = manifest["scans"][2]["nodules"] = []
    manifest["skipped"] = [{"series_uid": "1.2.9", "subset": 1, "reason": "a.mhd: is cut short"}]
    lines = list(consistency(manifest))
    assert "2 of 4 scans have no nodule that counts" in lines
    assert lines[-2].startswith("1 broken scans are left out")
    assert lines[-1] == "  1.2.9: a.mhd: is cut short"
