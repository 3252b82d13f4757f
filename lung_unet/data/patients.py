"""Whose scan is whose, so that no patient is in two splits."""

import collections
import hashlib
import pathlib
import re
from collections.abc import Collection, Hashable, Mapping

from lung_unet.data.tables import read_rows, scan_name
from lung_unet.errors import InputError

KEY = "sha256:"  # so that a key is never taken for a patient's own number, nor the reverse


def patient_key(name: str) -> str:
    """A pseudonym: `sha256:` and 16 digits of the hash of what names a patient.

    A key stays as it is, and of a whole SHA-256 the first digits are taken. A pseudonym is not
    anonymous: who has a list of patients can look them up.
    """
    name = name.strip(" \0")
    if re.fullmatch(f"{KEY}[0-9a-f]{{16}}", name):
        return name
    whole = re.fullmatch("[0-9a-f]{64}", name)
    return KEY + (whole[0] if whole else hashlib.sha256(name.encode()).hexdigest())[:16]


def read_patients(path: pathlib.Path) -> dict[str, str]:
    """The patient's key of each series in a table of columns seriesuid and patient.

    Raises:
      InputError: a broken table, or a series of two patients; it names the line.
    """
    patients: dict[str, str] = {}
    for line, row in read_rows(path, ("seriesuid", "patient")):
        if not row["patient"].strip():
            raise InputError(f"{path}: line {line}: names no patient; correct or remove it")
        key, name = patient_key(row["patient"]), scan_name(row["seriesuid"])
        if patients.setdefault(name, key) != key:
            raise InputError(
                f"{path}: line {line}: series {name} is of another patient above; "
                "correct one of them"
            )
    return patients


def listed(root: pathlib.Path, names: Collection[str]) -> dict[str, str]:
    """What a folder's own patients.csv, if there is one, says of scans of these names.

    Raises:
      InputError: as `read_patients`.
    """
    path = root / "patients.csv"
    patients = read_patients(path) if path.is_file() else {}
    return {name: patient for name, patient in patients.items() if name in names}


def check_apart(
    place: pathlib.Path,
    splits: Mapping[str, Hashable],
    patients: Mapping[str, str | None],
    same: str = "of the same patient",
) -> None:
    """Returns where no patient has scans in two splits; both mappings are by scan. What scans of
    one value have in common, `same` says.

    Raises:
      InputError: one has; it names `place` and both scans.
    """
    first: dict[str, str] = {}
    for name in splits:
        patient = patients.get(name)
        other = first.setdefault(patient, name) if patient else name
        if splits[other] != splits[name]:
            raise InputError(
                f"{place}: {other} and {name} are {same}, but in two splits; put both into one"
            )


def subset_of(key: str) -> int:
    """The subset, 0 to 9, of a patient; it depends on no other patient."""
    return int(key.removeprefix(KEY), 16) % 10


def together(subsets: dict[str, int], patients: dict[str, str]) -> tuple[dict[str, int], list[str]]:
    """The subsets with all series of a patient in the lowest of theirs, and a line for each move.

    Both arguments are by series UID; a series whose patient is not known stays.
    """
    members = collections.defaultdict(list)
    for uid in sorted(subsets.keys() & patients.keys()):
        members[patients[uid]].append(uid)
    lowest = {patient: min(subsets[uid] for uid in uids) for patient, uids in members.items()}
    moves = [
        f"series {uid} moves from subset{subsets[uid]} to subset{lowest[patient]}, where another "
        f"series of patient {patient} is"
        for patient, uids in members.items()
        for uid in uids
        if subsets[uid] != lowest[patient]
    ]
    moved = {uid: lowest[patient] for patient, uids in members.items() for uid in uids}
    return subsets | moved, moves
