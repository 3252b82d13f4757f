"""How a command is told which scans are trained on, choose, and are tested on: by patient.

--train=DIR,… --validation=DIR,… --test=DIR,…    one split, each LUNA16 folder in one of it
--patients=DIR,DIR,DIR,…                         a rotation for each LUNA16 folder: rotation k
                                                 tests on folder k, validates on the next
                                                 (after the last, the first) and trains on the
                                                 others
"""

import dataclasses
import json
import pathlib

from absl import flags

from lung_unet.data.combined import combine, combine_patients
from lung_unet.data.manifest import SPLITS
from lung_unet.errors import InputError


@dataclasses.dataclass(frozen=True)
class Given:
    """The folders that a command was given, absolute: of each split, or of each patient."""

    splits: dict[str, list[pathlib.Path]]
    patients: list[pathlib.Path]
    lidc_xml: pathlib.Path | None

    @property
    def names(self) -> list[str]:
        """What each rotation is tested on, in short; nothing where the split is fixed."""
        short = [path.name for path in self.patients]
        return short if len(set(short)) == len(short) else list(map(str, self.patients))

    def to_json(self) -> str:
        """What distinguishes one choice of scans from another."""
        order = {split: sorted(map(str, paths)) for split, paths in self.splits.items()}
        given = {"patients": list(map(str, self.patients))} if self.patients else order
        return json.dumps(given | {"lidc_xml": self.lidc_xml and str(self.lidc_xml)}, indent=1)

    def combine(self, out: pathlib.Path) -> None:
        """Makes `out` a LUNA16 folder of them all, a fold of which is a rotation.

        Raises:
          InputError: as `combined.combine` and `combined.combine_patients`.
        """
        if self.patients:
            combine_patients(self.patients, out, self.lidc_xml)
        else:
            combine(self.splits, out, self.lidc_xml)


def define() -> None:
    """Defines --train, --validation, --test and --patients."""
    for split in SPLITS:
        flags.DEFINE_list(split, [], f"LUNA16 folders of the {split} split.")
    flags.DEFINE_list(
        "patients",
        [],
        "LUNA16 folders, each of one patient or one hospital: each is tested on once, by what the "
        "others trained and chose.",
    )


def given() -> Given | None:
    """What the flags say, with --lidc_xml; None where none of them is given.

    Raises:
      InputError: --patients beside a fixed split.
    """
    splits = {s: [pathlib.Path(f).resolve() for f in getattr(flags.FLAGS, s)] for s in SPLITS}
    patients = [pathlib.Path(f).resolve() for f in flags.FLAGS.patients]
    for split, paths in splits.items():
        if patients and paths:
            raise InputError(f"--{split}: is not used with --patients, which rotates; leave it out")
    if not patients and not any(splits.values()):
        return None
    xml = flags.FLAGS.lidc_xml and pathlib.Path(flags.FLAGS.lidc_xml).resolve()
    return Given(splits, patients, xml or None)
