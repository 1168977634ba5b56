"""Local runs that were killed, stopped or damaged, and go on."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from spaceport import local_run
from spaceport.jobs.runner import ProcessRunner
from spaceport.local_cloud import LocalCloud
from tests.unit.local_stages import mails, photos, stages, states, write_photos, write_stages

__all__ = ["photos", "stages"]
ROOT = Path(__file__).resolve().parents[2]

RUN = """
import sys
from pathlib import Path
from spaceport import local_run
from spaceport.local_cloud import LocalCloud
from spaceport.jobs.runner import ProcessRunner
stages, photos, out, iterations = sys.argv[1:]
runner = ProcessRunner(Path(stages))
local_run.run(Path(photos), Path(out), {"max_iterations": int(iterations)}, lambda event: None, runner=runner)
"""


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
    out, stop = tmp_path / "out", threading.Event()
    stopper = threading.Thread(target=lambda: (wait_for_step(out, 20), stop.set()))
    stopper.start()
    options, runner = {"max_iterations": 300}, ProcessRunner(stages)
    outcome = local_run.run(photos, out, options, lambda e: None, stop=stop, runner=runner)
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

    def stop_in_sfm(start):
        stop = threading.Event()
        outcome = start(lambda event: event["type"] == "progress" and stop.set(), stop=stop, runner=runner)
        assert outcome.status == "STOPPED"

    stop_in_sfm(partial(local_run.run, photos, out, {"matcher": "spatial"}))
    for _ in range(4):
        stop_in_sfm(partial(local_run.resume, out))
    go_on.touch()
    events = []
    outcome = local_run.resume(out, events.append, runner=runner)
    assert outcome.status == "SUCCEEDED", outcome
    journal = "".join(p.read_text() for p in (out / ".spaceport/executions").glob("*.jsonl"))
    assert "-sfm-0" in journal and "-sfm-1" not in journal
    assert "SfM" not in states(events, "state_entered"), "the state was entered once, in the first run"


def test_stop_before_the_execution_starts_then_resume(stages, photos, tmp_path, monkeypatch):
    """The event of job.json is in memory alone, and goes with the process."""
    out, stop = tmp_path / "out", threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(LocalCloud, "_deliver", lambda *arguments: stop.set())
        outcome = local_run.run(photos, out, {}, lambda event: None, stop=stop, runner=ProcessRunner(stages))
    assert outcome.status == "STOPPED"
    resume_to_the_end(out, stages)


@pytest.mark.parametrize(
    ("place", "left"),
    [("LocalCloud._deliver = die", []), ("FileJournal.append = lambda self, record: (self._open(), die())", [0])],
    ids=["before the event is delivered", "before the first record of the journal"],
)  # fmt: skip
def test_kill_9_before_the_execution_starts_then_resume(stages, photos, tmp_path, place, left):
    out = tmp_path / "out"
    imports = "import os\nfrom spaceport.local_cloud import LocalCloud\nfrom spaceport.asl.journal import FileJournal\n"
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
    stop = threading.Event()
    watch = threading.Timer(60, stop.set)
    watch.start()
    outcome = local_run.resume(out, lambda event: None, stop, runner=ProcessRunner(stages))
    watch.cancel()
    assert outcome.status == "SUCCEEDED", outcome
    assert len(list((out / ".spaceport/executions").iterdir())) == len(mails(out)) == 1


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
    stop = threading.Event()
    stopper = threading.Thread(target=lambda: (wait_for_step(folder / "out", 1), stop.set()))
    stopper.start()
    outcome = local_run.run(
        photos, folder / "out", {"max_iterations": 300}, lambda event: None, stop=stop, runner=ProcessRunner(stages)
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
