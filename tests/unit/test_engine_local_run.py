"""Whole local runs through the real template, state machine and functions, with stand-in stage programs."""

import email
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from email.policy import default
from pathlib import Path

import pytest

from spaceport import local_run
from spaceport.jobs.runner import ProcessRunner
from spaceport.local_cloud import Engine

ROOT = Path(__file__).resolve().parents[2]

RUN = """
import sys
from pathlib import Path
from spaceport import local_run
from spaceport.local_cloud import Engine
from spaceport.jobs.runner import ProcessRunner
stages, photos, out, iterations = sys.argv[1:]
runner = ProcessRunner(Path(stages))
local_run.run(Path(photos), Path(out), {"max_iterations": int(iterations)}, lambda event: None, runner=runner)
"""


SFM = """
import os, pathlib, time
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
photos = sorted(p for p in (root / "processing/input/photos").rglob("*") if p.is_file())
progress = root / "processing/progress/progress.json"
progress.write_text('{"stage": "sfm", "step": 1, "total": 2, "unit": "photos", "message": "", "eta_s": 1.0}')
mode = os.environ.get("SPACEPORT_OPTION_MATCHER")
while mode == "spatial" and not os.path.exists(os.environ["GO_ON"]):
    time.sleep(0.02)
if mode == "sequential":
    (root / "output/message").write_text("TOO_FEW_MATCHES: The photos do not overlap. Take more photos.")
    raise SystemExit(1)
out = root / "processing/output"
(out / "images").mkdir()
for photo in photos:
    (out / "images" / photo.name).write_bytes(photo.read_bytes())
(out / "scene.json").write_text('{"photos": %d}' % len(photos))
"""

TRAIN = """
import json, os, pathlib, signal, sys, time
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
options = json.loads((root / "input/config/hyperparameters.json").read_text())
assert json.loads((root / "input/data/sfm/scene.json").read_text())["photos"] > 0
checkpoint = root / "checkpoints/checkpoint.json"
first = json.loads(checkpoint.read_text())["step"] if checkpoint.is_file() else 0
total = int(options.get("max_iterations") or 1)
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))

def replace(path, value):
    temporary = path.with_name("." + path.name)
    temporary.write_text(json.dumps(value))
    temporary.replace(path)

for step in range(first, total):
    time.sleep(0.01 if total > 100 else 0)
    replace(checkpoint, {"step": step + 1})
    progress = {"stage": "train", "step": step + 1, "total": total, "unit": "iterations", "message": "", "eta_s": None}
    replace(root / "checkpoints/progress.json", progress)
    if stopping:
        sys.exit(143)
(root / "model/scene.ply").write_text(json.dumps({"first": first, "total": total}))
"""

COMPRESS = """
import os, pathlib
root = pathlib.Path(os.environ["SPACEPORT_ML_ROOT"])
out = root / "processing/output"
(out / "viewer").mkdir()
(out / "viewer/viewer.js").write_text("// viewer")
(out / "report.json").write_text('{"title": "stand-in"}')
(out / "scene.sog").write_bytes((root / "processing/input/train/scene.ply").read_bytes())
(out / "index.html").write_text("<html></html>")
"""


def write_stages(folder: Path) -> Path:
    """A folder that can be PYTHONPATH in place of containers/."""
    for name, source in (("sfm", SFM), ("train", TRAIN), ("compress", COMPRESS)):
        (folder / name).mkdir(parents=True)
        (folder / name / "__main__.py").write_text(source)
    return folder


def write_photos(folder: Path, count: int = 9, size_bytes: int = 2000) -> Path:
    """Files that begin as a JPEG does, some in a folder, beside a hidden one."""
    (folder / "more").mkdir(parents=True)
    for index in range(count):
        name = folder / ("more" if index % 3 == 0 else ".") / f"IMG {index:03d}.jpg"
        name.write_bytes(b"\xff\xd8\xff\xe0" + bytes([index % 256]) * size_bytes)
    (folder / ".DS_Store").write_text("hidden")
    return folder


@pytest.fixture
def stages(tmp_path):
    return write_stages(tmp_path / "stages")


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "My House")


def mails(out):
    return [email.message_from_bytes(f.read_bytes(), policy=default) for f in sorted((out / "outbox").glob("*.eml"))]


def states(events, kind="state_exited"):
    return [event["state"] for event in events if event["type"] == kind]


def test_photos_become_a_result(stages, photos, tmp_path):
    out, events = tmp_path / "out", []
    outcome = local_run.run(photos, out, {"email": "ada@example.org"}, events.append, runner=ProcessRunner(stages))
    assert (outcome.status, outcome.results) == ("SUCCEEDED", out)
    assert json.loads((out / "report.json").read_text()) == {"title": "stand-in"}
    assert (out / "viewer/viewer.js").is_file() and (out / "index.html").is_file()
    assert json.loads((out / "scene.ply").read_text()) == {"first": 0, "total": 1}
    (mail,) = mails(out)
    assert mail["To"] == "ada@example.org"
    # Settle is asked twice where the second in which job.json was stored is not over.
    assert list(dict.fromkeys(s for s in states(events) if s in outcome.seconds_by_state)) == [
        "Settle", "Validate", "SfM", "Train", "Compress", "Notify",
    ]  # fmt: skip
    assert {e["state"] for e in events if e["type"] == "progress"} >= {"SfM", "Train"}
    assert 0 < outcome.control_plane_s < outcome.seconds
    assert list((out / ".spaceport/jobs").iterdir()) == []  # the trees of ended jobs give their disk back
    again = local_run.resume(out, lambda event: None, runner=ProcessRunner(stages))
    assert again.status == "SUCCEEDED" and len(mails(out)) == 1


def test_photos_keep_folders_and_hidden_files_stay_out(stages, photos, tmp_path):
    before = {p: p.read_bytes() for p in photos.rglob("*") if p.is_file()}
    local_run.run(photos, tmp_path / "out", {}, lambda event: None, runner=ProcessRunner(stages))
    uploads = next((tmp_path / "out/.spaceport/objects").glob("*/uploads/my-house"))
    names = {p.relative_to(uploads).as_posix() for p in uploads.rglob("*") if p.is_file()}
    assert names == {p.relative_to(photos).as_posix() for p in before if p.name != ".DS_Store"} | {"job.json"}
    assert {p: p.read_bytes() for p in before} == before
    assert all(p.stat().st_nlink == 1 for p in before), "nothing a job does may reach the user's photos"


@pytest.mark.parametrize("where", ["the folder above", "the same folder", "a folder in it"])
def test_the_result_may_lie_above_beside_or_below_the_photos(stages, photos, tmp_path, where):
    out = {"the folder above": photos.parent, "the same folder": photos, "a folder in it": photos / "more/out"}[where]
    before = {p: p.read_bytes() for p in photos.rglob("*.jpg")}
    for _ in range(2):  # the second time, the first result and its mail are there
        outcome = local_run.run(photos, out, {}, lambda event: None, runner=ProcessRunner(stages))
        assert outcome.status == "SUCCEEDED", outcome
        (images,) = (out / ".spaceport/objects").glob("*/work/*/sfm/images")
        assert sorted(p.name for p in images.iterdir()) == sorted(p.name for p in before)
        uploads = (out / ".spaceport/objects").glob("*/uploads/my-house/**/*")
        assert sorted(p.name for p in uploads if p.is_file()) == sorted([*(p.name for p in before), "job.json"])
    assert {p: p.read_bytes() for p in before} == before


def test_a_result_never_replaces_photos(stages, photos, tmp_path):
    inside = tmp_path / "out/viewer"
    inside.parent.mkdir()
    photos.rename(inside)
    with pytest.raises(local_run.LocalRunError, match=r"result viewer would replace photos in .*out/viewer"):
        local_run.run(inside, tmp_path / "out", {}, lambda event: None, runner=ProcessRunner(stages))
    assert len(list(inside.rglob("*.jpg"))) == 9
    inside.rename(photos)
    outcome = local_run.resume(tmp_path / "out", lambda event: None, runner=ProcessRunner(stages))
    assert outcome.status == "SUCCEEDED" and (inside / "viewer.js").is_file()


@pytest.mark.parametrize("packed", ["alone", "in the folder"])
def test_an_archive_is_used_like_its_photos(stages, photos, tmp_path, packed):
    files = sorted(path for path in photos.rglob("*") if path.is_file())
    archive = tmp_path / "My Zip.zip" if packed == "alone" else photos / "day 2" / "rest.ZIP"
    archive.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive, "w") as target:
        for file in files if packed == "alone" else files[5:]:
            target.write(file, file.relative_to(photos))
    if packed != "alone":
        for file in files[5:]:
            file.unlink()
    before = archive.read_bytes()
    out = tmp_path / "out"
    outcome = local_run.run(
        archive if packed == "alone" else photos, out, {}, lambda event: None, runner=ProcessRunner(stages)
    )
    assert outcome.status == "SUCCEEDED"
    assert outcome.job_id.startswith("my-zip-" if packed == "alone" else "my-house-")
    (images,) = (out / ".spaceport/objects").glob("*/work/*/sfm/images")
    assert sorted(path.name for path in images.iterdir()) == sorted(f.name for f in files if f.name != ".DS_Store")
    assert archive.read_bytes() == before


def test_what_is_neither_folder_nor_archive_is_named(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    for wrong in ("photo.jpg", "none.zip"):
        with pytest.raises(local_run.LocalRunError, match=f"There is no folder .*{wrong}"):
            local_run.run(tmp_path / wrong, tmp_path / "out", {}, lambda event: None)


def test_an_upload_that_takes_longer_than_the_quiet_period_is_one_job(stages, photos, tmp_path, monkeypatch):
    from spaceport.aws.storage import Storage

    put_file = Storage.put_file
    monkeypatch.setattr(
        Storage, "put_file", lambda *a, **k: (time.sleep(0.4 if "tell" in k else 0), put_file(*a, **k))[1]
    )
    outcome = local_run.run(photos, tmp_path / "out", {}, lambda event: None, runner=ProcessRunner(stages))
    assert outcome.status == "SUCCEEDED"
    assert len(list((tmp_path / "out/.spaceport/executions").iterdir())) == 1
    assert len(mails(tmp_path / "out")) == 1


def test_a_failing_stage_ends_failed_with_one_mail(stages, photos, tmp_path):
    out, events = tmp_path / "out", []
    outcome = local_run.run(photos, out, {"matcher": "sequential"}, events.append, runner=ProcessRunner(stages))
    assert (outcome.status, outcome.error_code) == ("FAILED", "TOO_FEW_MATCHES")
    assert "do not overlap" in outcome.reason
    (mail,) = mails(out)
    assert "do not overlap" in mail.get_body(("plain",)).get_content()
    assert {p.name for p in out.iterdir()} == {".spaceport", "outbox"}
    assert [e["failed"] for e in events if e["type"] == "state_exited" and e["state"] == "SfM"] == [True]
    assert "Train" not in states(events, "state_entered")


def test_a_program_that_cannot_start_fails_the_run(photos, tmp_path):
    (tmp_path / "nothing").mkdir()
    outcome = local_run.run(photos, tmp_path / "out", {}, lambda e: None, runner=ProcessRunner(tmp_path / "nothing"))
    assert outcome.status == "FAILED"
    assert outcome.error_code


def wait_for_step(out, step, process=None, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, process.stdout.read()
        for file in (out / ".spaceport/jobs").glob("*-train-*/ml/checkpoints/progress.json"):
            if json.loads(file.read_text())["step"] >= step:
                return file
        time.sleep(0.02)
    raise AssertionError("training did not get that far")


def test_kill_9_in_training_then_resume(stages, photos, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, stages, photos, out, "400"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    file = wait_for_step(out, 50, process)
    root = f"SPACEPORT_ML_ROOT={file.parent.parent}".encode()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while programs(root) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert programs(root) == [], "the program outlived its engine"

    events = []
    outcome = local_run.resume(out, events.append, runner=ProcessRunner(stages))
    assert outcome.status == "SUCCEEDED", outcome
    scene = json.loads((out / "scene.ply").read_text())
    assert scene["first"] >= 50 and scene["total"] == 400, "training did not go on from its checkpoint"
    assert not {"Settle", "Validate", "SfM"} & set(states(events, "state_entered"))
    assert states(events, "state_resumed") == ["Train"], "whoever watches is told where it goes on"
    assert len(mails(out)) == 1
    journal = "".join(p.read_text() for p in (out / ".spaceport/executions").glob("*.jsonl"))
    assert "-sfm-0" in journal and "-sfm-1" not in journal and "-train-1" not in journal


def programs(variable):
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc to see processes")
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable in file.read_bytes().split(b"\0"):
                found.append(file)
        except OSError:
            continue
    return found


def test_stop_saves_a_checkpoint_and_resume_goes_on(stages, photos, tmp_path):
    out = tmp_path / "out"
    stopper = threading.Thread(target=lambda: (wait_for_step(out, 20), local_run.stop()))
    stopper.start()
    outcome = local_run.run(photos, out, {"max_iterations": 300}, lambda e: None, runner=ProcessRunner(stages))
    stopper.join()
    assert outcome.status == "STOPPED"
    assert not (out / "index.html").exists() and mails(out) == []
    with pytest.raises(local_run.LocalRunError, match="spaceport resume"):
        local_run.run(photos, out, {}, lambda e: None)
    outcome = local_run.resume(out, lambda e: None, runner=ProcessRunner(stages))
    assert outcome.status == "SUCCEEDED"
    assert json.loads((out / "scene.ply").read_text())["first"] >= 20


def test_any_number_of_stops_in_a_processing_job_uses_up_no_retry(stages, photos, tmp_path, monkeypatch):
    """Five: one more than the state machine would try again, each time after a longer wait."""
    out, go_on = tmp_path / "out", tmp_path / "go-on"
    monkeypatch.setenv("GO_ON", str(go_on))
    runner = ProcessRunner(stages)

    def stop_in_sfm(event):
        if event["type"] == "progress":
            local_run.stop()

    assert local_run.run(photos, out, {"matcher": "spatial"}, stop_in_sfm, runner=runner).status == "STOPPED"
    for _ in range(4):
        assert local_run.resume(out, stop_in_sfm, runner=runner).status == "STOPPED"
    go_on.touch()
    events = []
    outcome = local_run.resume(out, events.append, runner=runner)
    assert outcome.status == "SUCCEEDED", outcome
    journal = "".join(p.read_text() for p in (out / ".spaceport/executions").glob("*.jsonl"))
    assert "-sfm-0" in journal and "-sfm-1" not in journal
    assert "SfM" not in states(events, "state_entered"), "the state was entered once, in the first run"


def test_stop_before_the_execution_starts_then_resume(stages, photos, tmp_path, monkeypatch):
    """The event of job.json is in memory alone, and goes with the process."""
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_deliver", lambda *arguments: local_run.stop())
        outcome = local_run.run(photos, out, {}, lambda event: None, runner=ProcessRunner(stages))
    assert outcome.status == "STOPPED"
    resume_to_the_end(out, stages)


@pytest.mark.parametrize(
    ("place", "left"),
    [("Engine._deliver = die", []), ("FileJournal.append = lambda self, record: (self._open(), die())", [0])],
    ids=["before the event is delivered", "before the first record of the journal"],
)  # fmt: skip
def test_kill_9_before_the_execution_starts_then_resume(stages, photos, tmp_path, place, left):
    out = tmp_path / "out"
    imports = "import os\nfrom spaceport.local_cloud import Engine\nfrom spaceport.asl.journal import FileJournal\n"
    program = f"{imports}die = lambda *a: os.kill(os.getpid(), 9)\n{place}\n{RUN}"
    command = [sys.executable, "-c", program, stages, photos, out, "100"]
    process = subprocess.run(command, cwd=ROOT, timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL
    assert [file.stat().st_size for file in (out / ".spaceport").glob("executions/*")] == left
    (photos / "IMG 001.jpg").unlink()  # what is uploaded is not read again
    resume_to_the_end(out, stages)
    assert len(list((out / ".spaceport").glob("objects/*/uploads/my-house/**/*.jpg"))) == 9


def resume_to_the_end(out, stages):
    """Resume, which must not wait for ever: a watch stops it after a minute, and then it is not SUCCEEDED."""
    watch = threading.Timer(60, local_run.stop)
    watch.start()
    outcome = local_run.resume(out, lambda event: None, runner=ProcessRunner(stages))
    watch.cancel()
    assert outcome.status == "SUCCEEDED", outcome
    assert len(list((out / ".spaceport/executions").iterdir())) == len(mails(out)) == 1


def test_jobs_can_work_on_another_file_system(stages, photos, tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or not os.access(other, os.W_OK):
        pytest.skip("no second file system here")
    jobs = other / f"spaceport-test-{os.getpid()}"
    outcome = local_run.run(photos, tmp_path / "out", {}, lambda e: None, jobs, runner=ProcessRunner(stages))
    assert outcome.status == "SUCCEEDED"
    assert list(jobs.iterdir()) == []
    jobs.rmdir()


@pytest.mark.parametrize(
    ("folder", "scene"),
    [("My House", "my-house"), ("Höhle #7", "h-hle-7"), ("___", "scene"), ("x" * 60, "x" * 40), ("-a-", "a")],
)
def test_scene_names(folder, scene):
    assert local_run.scene_name(Path(folder)) == scene


def test_nothing_to_start_with(tmp_path):
    with pytest.raises(local_run.LocalRunError, match="no folder"):
        local_run.run(tmp_path / "missing", tmp_path / "out", {}, lambda e: None)
    with pytest.raises(local_run.LocalRunError, match="no run"):
        local_run.resume(tmp_path / "out", lambda e: None)


DAMAGE = {
    "an object is gone": ("objects/*/uploads/my-house/job.json", None, "job.json is missing"),
    "the index of objects": ("objects.jsonl", b"{}\n", "objects.jsonl: line 1"),
    "the rows of the table": ("rows/*.json", b"[", "rows"),
    "the journal": ("executions/*.jsonl", b'{"type": "started"\n', "line 1 is not JSON"),
    "the journal's begin": ("executions/*.jsonl", b'{"type": "entered"}\n', "nothing to resume"),
    "the record of a job": ("sagemaker/*-sfm-0.json", b'{"name": "x"}', "sfm-0.json is no record of a SageMaker job"),
    "the plan": ("run.json", b'{"photos": "x"}', "run.json is damaged .finished, "),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in its training."""
    folder = tmp_path_factory.mktemp("stopped")
    stages, photos = write_stages(folder / "stages"), write_photos(folder / "My House")
    stopper = threading.Thread(target=lambda: (wait_for_step(folder / "out", 1), local_run.stop()))
    stopper.start()
    outcome = local_run.run(
        photos, folder / "out", {"max_iterations": 300}, lambda event: None, runner=ProcessRunner(stages)
    )
    stopper.join()
    assert outcome.status == "STOPPED"
    return folder / "out"


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_named_with_what_to_do(stopped, tmp_path, damage):
    pattern, content, words = DAMAGE[damage]
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    file = next((out / ".spaceport").glob(pattern))
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(local_run.LocalRunError, match=words) as caught:
        local_run.resume(out, lambda event: None)
    assert f"--out {out}" in str(caught.value) and str(out / ".spaceport") in str(caught.value)


def test_a_photo_that_cannot_be_read_is_named_and_the_run_can_go_on(stages, photos, tmp_path, monkeypatch):
    from spaceport.aws.storage import Storage

    def refuse(self, bucket, key, source, **options):
        raise PermissionError(13, "Permission denied", str(source))

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "put_file", refuse)
        with pytest.raises(local_run.LocalRunError, match=r"Permission denied: .*IMG 001.jpg.*spaceport resume"):
            local_run.run(photos, out, {}, lambda event: None, runner=ProcessRunner(stages))
    resume_to_the_end(out, stages)


@pytest.mark.parametrize("days", [4, 60])
def test_a_run_can_rest_longer_than_every_limit(stopped, stages, tmp_path, days):
    """A training may take three days, an execution 29: by the clock of a machine that is on."""
    out = tmp_path / "out"
    shutil.copytree(stopped, out)
    (journal,) = (out / ".spaceport").glob("executions/*.jsonl")
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    for record in records:
        record["at"] -= days * 86400
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))
    resume_to_the_end(out, stages)
    assert "-train-1" not in journal.read_text()
