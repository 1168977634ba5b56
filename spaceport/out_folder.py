"""The folder OUT of a run: one process at a time works in it, it says what was asked for, and gets the results."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from spaceport.aws.storage import Storage
from spaceport.base.durable import sync_file, sync_folder, write_json

WORK = ".spaceport"  # in OUT: what the engine keeps between its processes


class LocalRunError(Exception):
    """The run could not be started or resumed, or the engine itself failed; the text says why and what to do."""


@dataclass
class RunPlan:
    """What a run was asked for and how far it has come: OUT/.spaceport/run.json."""

    photos: str  # absolute path of a folder or an archive
    scene: str
    options: dict[str, Any]  # those of job.json
    jobs_dir: str | None
    uploaded: bool = False
    finished: bool = False

    @classmethod
    def read(cls, work: Path) -> RunPlan:
        """Raises LocalRunError when it cannot be read."""
        file, names = work / "run.json", {field.name for field in fields(cls)}
        try:
            plan: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if missing := names - plan.keys():
                raise ValueError(f"{', '.join(sorted(missing))} missing")
        except (ValueError, AttributeError) as error:
            raise LocalRunError(
                f"{file} is damaged ({error}). Delete {work} and start again: spaceport run PHOTOS --out {work.parent}"
            ) from error
        return cls(**{name: plan[name] for name in names})

    def write(self, work: Path) -> None:
        write_json(work / "run.json", asdict(self))


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One process at a time works in ``out``; the lock goes with the process."""
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalRunError(
                f"Another spaceport process works in {out}. Wait for it, or choose another folder."
            ) from error
        yield


def clear_finished(out: Path) -> None:
    """Make room for a new run. Raises LocalRunError rather than throw an unfinished one away."""
    work = out / WORK
    published = work / "published.json"
    if not (work / "run.json").is_file():
        return
    if not RunPlan.read(work).finished:
        raise LocalRunError(
            f"{out} holds a run that is not finished. Go on with: spaceport resume {out}, or delete {work}."
        )
    for name in json.loads(published.read_text(encoding="utf-8")) if published.is_file() else []:
        _remove(out / name)
    for entry in work.iterdir():
        if entry.name != "lock":
            _remove(entry)


def publish(out: Path, storage: Storage, bucket: str, plan: RunPlan, job_id: str) -> None:
    """Copy results/<scene>/<job>/ beside the folder, then move each entry into place, the page last."""
    prefix = f"results/{plan.scene}/{job_id}/"
    staging = out / WORK / "results"
    shutil.rmtree(staging, ignore_errors=True)
    for key in storage.list(bucket, prefix):
        target = staging / key.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(storage.read(bucket, key))
        sync_file(target)
    names = sorted((entry.name for entry in staging.iterdir()), key=lambda name: (name == "index.html", name))
    prefix = f"uploads/{plan.scene}/"
    _spare_photos(out, Path(plan.photos), [key.removeprefix(prefix) for key in storage.list(bucket, prefix)], names)
    for folder in (staging, *(path for path in staging.rglob("*") if path.is_dir())):
        sync_folder(folder)
    write_json(out / WORK / "published.json", names)
    for name in names:
        _remove(out / name)
        (staging / name).rename(out / name)
    sync_folder(out)
    staging.rmdir()


def _spare_photos(out: Path, photos: Path, uploaded: list[str], names: list[str]) -> None:
    """Photos are only read. Raises LocalRunError when one of the results ``names`` would take the place of one."""
    for name in names:
        target = out / name
        inside = photos == out and any(photo == name or photo.startswith(f"{name}/") for photo in uploaded)
        if target.exists() and (inside or photos.is_relative_to(target)):
            raise LocalRunError(
                f"The result {name} would replace photos in {target}. Move them, then: spaceport resume {out}"
            )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
