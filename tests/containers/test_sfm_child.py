"""How the end of the mapping program becomes a reason."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from job import Job, JobKind, StageError, StopRequested
from job.documents import Origin
from sfm import child
from sfm.messages import Watch
from sfm.options import Matcher
from sfm.request import MapAnswer, MapRequest, MapResult, Rejection


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.open("sfm", JobKind.PROCESSING, tmp_path)


def run(job: Job, monkeypatch: pytest.MonkeyPatch, program: str):
    """``run_mapping`` with ``program`` as the mapping program; ``request`` and ``answer`` are defined in it."""
    real = subprocess.Popen

    def start(arguments, **keywords):
        lines = ["import json, sys", "request = json.load(open(sys.argv[1]))", "answer = open(request['answer'], 'w')"]
        return real([sys.executable, "-c", "\n".join([*lines, program]), arguments[-1]], **keywords)

    monkeypatch.setattr(child.subprocess, "Popen", start)
    request = MapRequest(
        photos=[],
        prepared=job.root,
        work=job.root,
        output=job.output,
        answer=job.root / "answer.json",
        matcher=Matcher.EXHAUSTIVE,
        long_side_px=640,
    )
    return child.run_mapping(job, request)


def test_result_and_messages_are_passed_on(job, monkeypatch, capfd):
    result = MapResult(
        images={"00000.jpg": "images/a.jpg"},
        unregistered={"00001.jpg": Rejection(code="NO_OVERLAP", reason="shows nothing that any other photo shows")},
        georeferenced=True,
        origin=Origin(lat_deg=47.0, lon_deg=8.5, alt_m=400.0),
        gps_residual_m=0.25,
        gravity="gps",
        points=5,
        reprojection_error_px=0.5,
        center=[0.0, 0.0, 0.0],
        radius=1.0,
        matcher=Matcher.SPATIAL,
        settings="fast",
        versions={"pycolmap": "4"},
    )
    program = f"""
from sfm.messages import log, show_progress
print("a library says hello")
show_progress(3, 9, "photos", "Placing cameras")
log("mapped", registered=9)
answer.write({MapAnswer(result=result).model_dump_json()!r})"""
    assert run(job, monkeypatch, program) == result
    progress = json.loads((job.progress_folder / "progress.json").read_text())
    assert (progress["step"], progress["total"], progress["message"]) == (3, 9, "Placing cameras")
    out, err = capfd.readouterr()
    assert '"event": "mapped", "registered": 9' in out and "a library says hello" in err


def test_the_childs_own_reason_is_kept(job, monkeypatch):
    with pytest.raises(StageError, match="NO_MODEL: nothing fits"):
        run(job, monkeypatch, 'json.dump({"error": {"code": "NO_MODEL", "reason": "nothing fits"}}, answer)')


@pytest.mark.parametrize(
    ("program", "code", "word"),
    [
        ("import os; os.abort()", "SFM_CRASHED", "SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "OUT_OF_MEMORY", "memory"),
        ("raise SystemExit(3)", "SFM_CRASHED", "status 3"),
    ],
)
def test_a_crash_becomes_a_reason(job, monkeypatch, program, code, word):
    with pytest.raises(StageError, match=f"{code}: .*{word}"):
        run(job, monkeypatch, program)


def test_a_stop_ends_a_child_that_ignores_sigterm(job, monkeypatch):
    monkeypatch.setattr(child, "GRACE_S", 0.5)
    started = []
    stop = child.stop
    monkeypatch.setattr(child, "stop", lambda process: (started.append(process), stop(process)))
    job.stop_requested = True
    with pytest.raises(StopRequested):
        run(job, monkeypatch, "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)")
    assert started[0].returncode is not None and started[0].returncode < 0


def test_rows_and_files_are_counted(job, tmp_path):
    with sqlite3.connect(tmp_path / "d.db") as connection:
        connection.execute("CREATE TABLE keypoints (id)")
        connection.executemany("INSERT INTO keypoints VALUES (?)", [(1,), (2,)])
    connection.close()
    rows = Watch(total=7, unit="photos", message="Finding", database=tmp_path / "d.db", table="keypoints")
    child.report_watched(job, rows)
    assert json.loads((job.progress_folder / "progress.json").read_text())["step"] == 2
    child.report_watched(job, Watch(total=7, unit="photos", message="Undistorting", folder=tmp_path / "missing"))
    assert json.loads((job.progress_folder / "progress.json").read_text())["step"] == 0


def test_pycolmap_stays_in_the_child() -> None:
    """Importing it replaces the handler of SIGTERM."""
    program = "import sys, sfm.stage; raise SystemExit('pycolmap' in sys.modules)"
    folder = str(Path(child.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": folder}, check=False).returncode == 0


def test_counting_ends_with_the_message_of_its_end(job, monkeypatch):
    program = """
from pathlib import Path
from sfm.messages import Watch, count
with count(Watch(total=4, unit="photos", message="Undistorting", folder=Path(sys.argv[1]).parent)):
    pass
json.dump({"error": {"code": "X", "reason": "y"}}, answer)"""
    with pytest.raises(StageError):
        run(job, monkeypatch, program)
    assert json.loads((job.progress_folder / "progress.json").read_text())["step"] == 4
