"""What an external validation may claim: on which scans, and what is known of their patients."""

import dataclasses
from typing import Any

from lung_unet.evaluation.operating_point import OperatingPoint


@dataclasses.dataclass(frozen=True)
class Known:
    """How many scans there are, of how many the patient is known, and how many patients these are.

    `other_scans` are what was trained on or chose."""

    scans: int
    named: int
    patients: int


@dataclasses.dataclass(frozen=True)
class External:
    """An external validation: its thresholds, chosen elsewhere, and what was checked.

    `data` is the name of the dataset, `identity` its hash; `own` are its scans, `used` those that
    the models were trained on or chosen by; `tested` of its scans were also test scans of a model.
    """

    data: str
    identity: str
    own: Known
    used: Known
    tested: int
    point: OperatingPoint
    thresholds: str

    @property
    def said(self) -> list[str]:
        """What a reader must know of it, in sentences."""
        patients = f" of {_count(self.own.patients, 'patient')}" if self.own.named else ""
        lines = [
            f"External validation on {self.data}: {_count(self.own.scans, 'scan')}{patients}. None "
            "took part in training, or in the choice of checkpoint and thresholds. Thresholds: "
            f"{self.thresholds}."
        ]
        if self.own.named == self.own.scans and self.used.named == self.used.scans:
            lines.append("Nor did any other scan of a patient of theirs.")
        else:
            lines.append(
                f"The patient is known for {self.own.named} of these {self.own.scans} scans, and "
                f"for {self.used.named} of the {self.used.scans} scans that trained or chose: no "
                "known patient is in both; whether another is cannot be checked."
            )
        if self.tested:
            lines.append(f"{self.tested} of them are test scans of the run's own dataset too.")
        if self.own.named == self.own.scans > 1 == self.own.patients:
            lines.append("All scans are of one patient: the intervals say nothing of others.")
        return lines

    def to_json(self) -> dict[str, Any]:
        """What metrics.json holds of it; the thresholds themselves stand there already."""
        values = dataclasses.asdict(self) | {"said": self.said}
        return {key: value for key, value in values.items() if key != "point"}


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
