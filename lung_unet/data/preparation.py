"""Every scan of a folder to shards: on all cores of one machine, or on a Dask cluster."""

import contextlib
import dataclasses
import json
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lung_unet.data import engine as engines
from lung_unet.data.manifest import NAME, SPLITS, identity_of, write_manifest
from lung_unet.data.pseudonyms import Key, Pseudonym
from lung_unet.data.scan_files import Seen, look
from lung_unet.data.seen_files import places_of, remembering
from lung_unet.data.shards import Settings, prepare_scan
from lung_unet.data.source import Source, only, open_source
from lung_unet.errors import InputError
from lung_unet.files import LOCK, held, remove_leftovers

Accept = Callable[[dict], None]  # raises an InputError for an identity that is not wanted


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker does with one scan. Paths are absolute: workers start anywhere."""

    out: pathlib.Path
    settings: Settings
    source: Source  # of this scan alone
    series_uid: str
    pseudonym: Pseudonym | None
    patient: str | None
    seen: Seen | None  # of an earlier time

    def __str__(self) -> str:
        return self.pseudonym.series_uid if self.pseudonym else self.series_uid


def prepare(
    scans: str | pathlib.Path,
    out: str | pathlib.Path,
    settings: Settings,
    lidc_xml: str | pathlib.Path | None = None,
    workers: int | None = None,
    engine: str = engines.LOCAL,
    key: Key | None = None,
    accept: Accept | None = None,
) -> dict:
    """Writes shards of all scans and manifest.json to `out`; returns the manifest.

    What an interrupted run finished is kept, and only scans that are new or changed are prepared:
    whose files have other bytes, or about which the tables say something else. Files are read to
    see that where their sizes, times or names are not those of the last time. With a key, series
    have pseudonyms in all that is written. On a cluster, the folders must be shared by all
    machines.

    `accept` is called with the identity that the dataset will have, before anything is prepared;
    for that, files are read twice.

    Raises:
      InputError: bad input, `out` was prepared with other settings or another key, or the engine
        fails; and what `accept` raises.
    """
    out = pathlib.Path(out)
    if key:
        settings = dataclasses.replace(settings, pseudonym_key=key.fingerprint)
    dataset = open_source(
        pathlib.Path(scans).absolute(),
        pathlib.Path(lidc_xml).absolute() if lidc_xml else None,
        settings.min_readers,
        settings.outlines,
    )
    subsets = len(set(dataset.subsets.values()))
    if subsets < len(SPLITS):
        print(
            f"{dataset.root}: scans in {subsets} subset(s), which will do to inspect; training and "
            "scoring take three"
        )
    for note in dataset.notes:
        print(f"{dataset.root}: {key.replace_uids(note) if key else note}")
    with held(out / LOCK, wait=f"{out}: another process prepares it; waiting"):
        refuse_other_settings(out, settings)
        places = None if key else places_of(scans, lidc_xml)
        with remembering(out, places) as seen:
            jobs = _jobs(dataset, out, settings, key, seen)
            _tell_of_missing(out, [str(job) for job in jobs])
            if accept:
                jobs = _look_at_all(jobs, seen, engine, workers)
                subset = dataset.subsets
                told = ((str(j), subset[j.series_uid], seen[str(j)].content) for j in jobs)
                accept(identity_of(settings.to_json(), told))
            return _prepare_all(dataset, out, settings, jobs, seen, engine, workers)


def _jobs(
    dataset: Source,
    out: pathlib.Path,
    settings: Settings,
    key: Key | None,
    seen: dict[str, Seen],
) -> list[Job]:
    jobs = []
    for uid in dataset.subsets:
        patient = dataset.patients.get(uid)
        if key and patient:
            patient = key.pseudonym(patient).series_uid
        pseudonym = key.pseudonym(uid) if key else None
        known = seen.get(pseudonym.series_uid if pseudonym else uid)
        part = only(dataset, uid)
        jobs.append(Job(out.absolute(), settings, part, uid, pseudonym, patient, known))
    return jobs


def _look_at_all(
    jobs: list[Job], seen: dict[str, Seen], engine: str, workers: int | None
) -> list[Job]:
    """The jobs with what their files are now, which `seen` is told as well."""
    tasks = [(job,) for job in jobs]
    for name, found in _in_progress("read", _look, tasks, engine, workers):
        seen[name] = found
    return [dataclasses.replace(job, seen=seen[str(job)]) for job in jobs]


def _prepare_all(
    dataset: Source,
    out: pathlib.Path,
    settings: Settings,
    jobs: list[Job],
    seen: dict[str, Seen],
    engine: str,
    workers: int | None,
) -> dict:
    entries = []
    tasks = [(job,) for job in jobs]
    for entry, found in _in_progress("prepare", _prepare_one, tasks, engine, workers):
        entries.append(entry)
        seen[entry["series_uid"]] = found
    for folder in out.glob("subset[0-9]"):
        remove_leftovers(folder)  # of workers that died; here, since all others are done
    return write_manifest(out, dataset, settings, entries)


def _in_progress(
    title: str, task: Callable, jobs: list[tuple[Job]], engine: str, workers: int | None
) -> Iterator[Any]:
    """What the task returns of each job, with a bar that shows how many are done."""
    columns = (
        TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("scans"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with (
        Progress(*columns) as progress,
        contextlib.closing(engines.run(task, jobs, engine, workers)) as results,
    ):
        bar = progress.add_task("", total=len(jobs))
        for result in results:
            yield result
            progress.advance(bar)


def refuse_other_settings(out: pathlib.Path, settings: Settings) -> None:
    """Returns where a folder holds nothing, or what these settings make: nothing is overwritten.

    Raises:
      InputError: it was prepared with other settings, or its manifest is broken.
    """
    found = _settings_in(out)
    for key, value in settings.to_json().items():
        if found is not None and found.get(key) != value:
            if key == "format":
                raise InputError(
                    f"{out}: was prepared by another version of lung_unet (format "
                    f"{found.get(key)}, not {value}); choose another --out, or another --workdir "
                    "of main"
                )
            raise InputError(
                f"{out}: was prepared with {key} = {found.get(key)!r}, not {value!r}; "
                "choose another --out, or another --workdir of main"
            )


def _tell_of_missing(out: pathlib.Path, series: list[str]) -> None:
    """Tells of scans that were prepared and are not there any more; refuses if these are all."""
    if not (out / NAME).exists():
        return
    manifest = json.loads((out / NAME).read_text(encoding="utf-8"))
    before = {entry["series_uid"] for entry in manifest["scans"]}
    missing = len(before - set(series))
    if missing == len(before) > 0:
        raise InputError(
            f"{out}: was prepared from other scans; choose another --out, or another --workdir of "
            "main"
        )
    if missing:
        print(f"{out}: {missing} scans of before are not there any more and are left out")


def _settings_in(out: pathlib.Path) -> dict | None:
    """What a folder was prepared with, or began to be; None where nothing tells."""
    if (out / NAME).exists():
        try:
            return dict(json.loads((out / NAME).read_text(encoding="utf-8"))["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{out / NAME}: is broken ({error}); remove it or choose another --out"
            ) from error
    for path in out.glob("subset[0-9]/*.json"):  # of a run that was interrupted
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return dict(json.loads(path.read_text(encoding="utf-8"))["made_from"]["settings"])
    return None


def _look(job: Job) -> tuple[str, Seen]:
    hide = job.pseudonym.hash if job.pseudonym else str
    return str(job), look(job.source.scan_files(job.series_uid), job.seen, hide)


def _prepare_one(job: Job) -> tuple[dict, Seen]:
    if not job.out.is_dir():
        raise InputError(
            f"{job.out}: is not there on {socket.gethostname()}; --out must be a folder that all "
            "machines share"
        )
    try:
        _, seen = _look(job)
        entry = prepare_scan(
            job.source, job.series_uid, job.out, job.settings, job.pseudonym, seen.content
        )
    except OSError as error:  # a full disk, a server that is gone
        raise InputError(
            f"{job.out}: {error}; put it right and run again, finished scans are kept"
        ) from error
    return {"patient": job.patient, **entry}, seen
