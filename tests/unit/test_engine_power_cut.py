"""What a power cut leaves: a disk on which only what was synced is there, and runs that go on from it."""

import json
import os
import threading
from pathlib import Path

import pytest

from spaceport import local_run
from spaceport.asl.journal import FileJournal
from spaceport.jobs.runner import ProcessRunner
from tests.unit.local_stages import mails, states, write_photos, write_stages

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc to see what is synced")


class Disk:
    """Remembers what fsync was called for: the bytes of files and the names in folders, by inode.

    The worst a file system may do: content of a file that was not synced is gone, and so is a name whose folder was
    not synced, even where both were written long ago.
    """

    def __init__(self, monkeypatch):
        self.content: dict[int, bytes] = {}
        self.names: dict[int, list[tuple[str, int, bool]]] = {}  # name, inode, whether it is a folder
        self.synced = 0
        self._lock = threading.Lock()
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.sync)

    def sync(self, descriptor):
        self._fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}")
        inode = os.fstat(descriptor).st_ino
        with self._lock:
            self.synced += 1
            if path.is_dir():
                self.names[inode] = [(e.name, e.inode(), e.is_dir(follow_symlinks=False)) for e in os.scandir(path)]
            else:
                self.content[inode] = path.read_bytes()

    def cut(self):
        """The state that a power cut would leave now."""
        with self._lock:
            return dict(self.content), dict(self.names)


def restore(state, inode, target):
    """Lay the folder with this inode out anew as ``target``, as it is in ``state``."""
    content, names = state
    target.mkdir(parents=True)
    for name, entry, is_folder in names.get(inode, []):
        if is_folder:
            restore(state, entry, target / name)
        else:
            (target / name).write_bytes(content.get(entry, b""))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run, and what a power cut would have left after each record of its journal."""
    folder = tmp_path_factory.mktemp("run")
    stages, photos = write_stages(folder / "stages"), write_photos(folder / "house")
    cuts = []
    with pytest.MonkeyPatch.context() as patched:
        disk = Disk(patched)
        append = FileJournal.append

        def append_and_cut(journal, record):
            append(journal, record)
            cuts.append((record, disk.cut()))

        patched.setattr(FileJournal, "append", append_and_cut)
        outcome = local_run.run(photos, folder / "out", {}, lambda event: None, runner=ProcessRunner(stages))
        assert outcome.status == "SUCCEEDED"
        cuts.append(({"type": "finished"}, disk.cut()))
    return folder, stages, cuts, disk.synced


def moment(cuts, kind, state):
    return next(cut for record, cut in cuts if record["type"] == kind and record.get("state", state) == state)


@pytest.mark.parametrize(
    ("kind", "state"),
    [("started", ""), ("exited", "Validate"), ("exited", "SfM"), ("exited", "Train"), ("exited", "Notify")],
)
def test_a_run_goes_on_after_a_power_cut(run, tmp_path, kind, state):
    folder, stages, cuts, _ = run
    out, events = tmp_path / "out", []
    restore(moment(cuts, kind, state), (folder / "out").stat().st_ino, out)
    outcome = local_run.resume(out, events.append, runner=ProcessRunner(stages))
    assert outcome.status == "SUCCEEDED", outcome
    order = ["Settle", "Validate", "SfM", "Train", "Compress", "Notify"]
    done = order[: order.index(state) + 1] if state else []
    assert not set(done) & set(states(events, "state_entered")), "the journal remembers what is done"
    assert json.loads((out / "scene.ply").read_text()) == {"first": 0, "total": 1}
    assert len(mails(out)) == 1
    photos = {path.name: path.read_bytes() for path in (folder / "house").rglob("*.jpg")}
    stored = (out / ".spaceport").glob("objects/*/uploads/house/**/*.jpg")
    assert {path.name: path.read_bytes() for path in stored} == photos


def test_a_result_that_is_reported_is_on_the_disk(run, tmp_path):
    folder, _, cuts, _ = run
    restore(cuts[-1][1], (folder / "out").stat().st_ino, tmp_path / "out")
    files = {p.relative_to(folder / "out"): p for p in (folder / "out").rglob("*") if p.is_file()}
    results = {name: path for name, path in files.items() if name.parts[0] != ".spaceport"}
    assert {Path("index.html"), Path("viewer/viewer.js")} <= set(results)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in results} == {
        name: path.read_bytes() for name, path in results.items()
    }
    assert json.loads((tmp_path / "out/.spaceport/run.json").read_text())["finished"] is True


def test_what_is_synced_grows_with_the_records_and_not_with_their_square(run):
    """Metadata of many objects is synced once: some calls of fsync for each record and each object, no more."""
    folder, _, cuts, synced = run
    objects = len((folder / "out/.spaceport/objects.jsonl").read_text().splitlines())
    assert synced < 10 * len(cuts) + 2 * objects
