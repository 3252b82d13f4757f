"""OUT/inputs.json of a prepared dataset: what the files of its scans were like when they were read.

So they are not read again where nothing was written to them. It also names the folders that they
were in, unless series have pseudonyms. It may be deleted: the files are read once more then.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from lung_unet.data.scan_files import Seen
from lung_unet.data.shards import MANIFEST
from lung_unet.files import write_text

NAME = "inputs.json"


def places_of(scans: str | pathlib.Path, lidc_xml: str | pathlib.Path | None) -> list[str | None]:
    """The folders that scans are read from, as inputs.json holds them."""
    return [str(pathlib.Path(place).absolute()) if place else None for place in (scans, lidc_xml)]


def prepared_from(out: pathlib.Path, places: list[str | None]) -> bool:
    """Whether a folder was prepared, to its end, from these `places_of` scans."""
    return (out / MANIFEST).exists() and _inputs_in(out).get("places") == places


def _inputs_in(out: pathlib.Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        found = json.loads((out / NAME).read_text(encoding="utf-8"))
        return {
            "places": found["places"],
            "seen": {name: Seen(*map(str, seen)) for name, seen in found["seen"].items()},
        }
    return {}  # files are read again then


@contextlib.contextmanager
def remembering(out: pathlib.Path, places: list[str | None] | None) -> Iterator[dict[str, Seen]]:
    """What is known of the files of each scan, by its name; what was learnt within is kept."""
    before = _inputs_in(out)
    seen: dict[str, Seen] = before.get("seen", {})
    known = dict(seen)
    yield seen
    if (seen, places) != (known, before.get("places")):
        told = {name: [s.content, s.state] for name, s in sorted(seen.items()) if s.state}
        write_text(out / NAME, json.dumps({"places": places, "seen": told}, indent=1))
