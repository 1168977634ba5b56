"""How the end of the mapping program becomes a reason."""

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from job import Job, JobKind, StageError, StopRequested
from sfm import child


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.open("sfm", JobKind.PROCESSING, tmp_path)


def run(job: Job, monkeypatch: pytest.MonkeyPatch, program: str):
    """``run_mapping`` with ``program`` as the mapping program; ``request`` and ``result`` are defined in it."""
    real = subprocess.Popen

    def start(arguments, **keywords):
        lines = ["import json, sys", "request = json.load(open(sys.argv[1]))", "result = open(request['result'], 'w')"]
        return real([sys.executable, "-c", "\n".join([*lines, program]), arguments[-1]], **keywords)

    monkeypatch.setattr(child.subprocess, "Popen", start)
    return child.run_mapping(job, {"photos": []}, job.root)


def test_result_and_messages_are_passed_on(job, monkeypatch, capfd):
    program = """
print("a library says hello")
print(json.dumps({"progress": [3, 9, "photos", "Placing cameras"]}))
print(json.dumps({"log": {"event": "mapped", "registered": 9}}), flush=True)
json.dump({"points": 5}, result)"""
    assert run(job, monkeypatch, program) == {"points": 5}
    progress = json.loads((job.progress_folder / "progress.json").read_text())
    assert (progress["step"], progress["total"], progress["message"]) == (3, 9, "Placing cameras")
    out, err = capfd.readouterr()
    assert '"event": "mapped"' in out and "a library says hello" in err


def test_the_childs_own_reason_is_kept(job, monkeypatch):
    with pytest.raises(StageError, match="NO_MODEL: nothing fits"):
        run(job, monkeypatch, 'json.dump({"error": {"code": "NO_MODEL", "reason": "nothing fits"}}, result)')


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
    watched = {"total": 7, "unit": "photos", "message": "Finding features"}
    child.report_watched(job, {**watched, "database": str(tmp_path / "d.db"), "table": "keypoints"})
    assert json.loads((job.progress_folder / "progress.json").read_text())["step"] == 2
    child.report_watched(job, {**watched, "message": "Undistorting", "folder": str(tmp_path / "missing")})
    assert json.loads((job.progress_folder / "progress.json").read_text())["step"] == 0
