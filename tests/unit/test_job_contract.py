"""The stage side of the SageMaker contract: exit status, reason text, options, progress."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
from pydantic import BaseModel, ConfigDict

from job import Job, JobKind, StageError, StopRequested, run_stage
from job.contract import REASON_LIMIT


@pytest.fixture
def ml_root(tmp_path, monkeypatch):
    monkeypatch.setenv("SPACEPORT_ML_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["stage"])
    previous = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, previous)


def run(kind, body, promised=()):
    program = ModuleType("a_stage")
    vars(program).update(run=body, OUTPUTS=promised, selfcheck=lambda: None)
    with patch.dict(sys.modules, a_stage=program):
        return run_stage("sfm", kind, "a_stage")


@pytest.mark.parametrize(
    ("kind", "file"), [(JobKind.PROCESSING, "output/message"), (JobKind.TRAINING, "output/failure")]
)
def test_a_stage_error_is_written_where_the_service_reads_it(ml_root, kind, file):
    def body(job):
        raise StageError("TOO_FEW_PHOTOS", "Only 2 photos. Add more.")

    assert run(kind, body) == 1
    assert (ml_root / file).read_text() == "TOO_FEW_PHOTOS: Only 2 photos. Add more."


def test_the_reason_is_cut_to_what_the_service_keeps(ml_root):
    def body(job):
        raise StageError("X_Y", "é" * 5000)

    run(JobKind.TRAINING, body)
    assert len((ml_root / "output/failure").read_text(encoding="utf-8")) == REASON_LIMIT


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "no space"), "DISK_FULL"),
        (MemoryError(), "OUT_OF_MEMORY"),
        (KeyError("x"), "INTERNAL_ERROR"),
    ],
)
def test_other_exceptions_get_a_stable_code(ml_root, error, code):
    def body(job):
        raise error

    assert run(JobKind.TRAINING, body) == 1
    assert (ml_root / "output/failure").read_text().startswith(f"{code}: ")


def test_a_wrong_option_is_named(ml_root, monkeypatch):
    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid")
        sh_degree: int

    def body(job):
        Options.model_validate(job.options)

    monkeypatch.setenv("SPACEPORT_OPTION_SH_DEGREE", "many")
    assert run(JobKind.PROCESSING, body) == 1
    text = (ml_root / "output/message").read_text()
    assert text.startswith("BAD_OPTION: ") and "'sh_degree'" in text and "'many'" in text


def test_success_needs_every_promised_output(ml_root):
    def body(job):
        (job.output / "a.txt").write_text("a")

    assert run(JobKind.PROCESSING, body, promised=["a.txt"]) == 0
    assert not (ml_root / "output/message").exists()
    assert run(JobKind.PROCESSING, body, promised=["a.txt", "b.txt"]) == 1
    assert (ml_root / "output/message").read_text().startswith("OUTPUT_MISSING: ")


def test_sigterm_sets_the_flag_and_leaves_no_reason(ml_root):
    def body(job):
        os.kill(os.getpid(), signal.SIGTERM)
        assert job.stop_requested
        job.check_stop()

    assert run(JobKind.TRAINING, body) == 143
    assert list((ml_root / "output").iterdir()) == []


def test_a_block_with_nothing_to_save_ends_at_once(ml_root):
    """A second SIGTERM must not raise while the first is dealt with, nor after the block."""
    reached = []

    def body(job):
        with job.stop_at_once():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append("after the signal")
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                reached.append("after the second")
        reached.append("after the block")

    assert run(JobKind.PROCESSING, body) == 143
    assert reached == ["after the second"]

    def late(job):
        with job.stop_at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    assert run(JobKind.PROCESSING, late) == 0


def test_a_stop_before_the_block_is_heard(ml_root):
    def body(job):
        job.request_stop()
        with job.stop_at_once():
            raise AssertionError("the block was entered")

    assert run(JobKind.PROCESSING, body) == 143


def test_check_stop_without_a_signal_goes_on():
    job = Job("sfm", JobKind.PROCESSING, root=None, options={})
    job.check_stop()
    job.stop_requested = True
    with pytest.raises(StopRequested):
        job.check_stop()


def test_options_of_both_kinds(ml_root, monkeypatch):
    monkeypatch.setenv("SPACEPORT_OPTION_MATCHER", "auto")
    assert Job.open("sfm", JobKind.PROCESSING).options["matcher"] == "auto"
    config = ml_root / "input/config"
    config.mkdir(parents=True)
    (config / "hyperparameters.json").write_text(json.dumps({"sh_degree": "1", "preset": "draft"}))
    assert Job.open("train", JobKind.TRAINING).options == {"sh_degree": "1", "preset": "draft"}


def test_progress_is_complete_and_throttled(ml_root):
    job = Job.open("train", JobKind.TRAINING)
    file = ml_root / "checkpoints/progress.json"
    job.progress(0, 10, "steps", "training")
    first = file.read_text()
    job.progress(1, 10, "steps", "training")
    assert file.read_text() == first  # within half a second
    job.progress(10, 10, "steps", "training")
    last = json.loads(file.read_text())
    assert last["step"] == last["total"] == 10
    assert set(last) == {"stage", "step", "total", "unit", "started_at", "eta_s", "message"}
    assert last["eta_s"] == 0


def test_a_missing_input_channel_is_named(ml_root):
    with pytest.raises(StageError, match=r"INPUT_MISSING.*'photos'"):
        Job.open("sfm", JobKind.PROCESSING).input("photos")


def test_sigterm_while_modules_load_ends_at_once(tmp_path):
    """Kernels may compile for half a minute before a stage begins; nothing is saved then, so nothing is waited for."""
    swallowing = "import time\ntry:\n    time.sleep(60)\nexcept BaseException:\n    time.sleep(60)\n"
    (tmp_path / "slow_stage.py").write_text(swallowing)
    start = "import sys; from job import JobKind, run_stage; sys.exit(run_stage('x', JobKind.TRAINING, 'slow_stage'))"
    containers = Path(__file__).parents[2] / "containers"
    environment = {**os.environ, "PYTHONPATH": f"{containers}:{tmp_path}", "SPACEPORT_ML_ROOT": str(tmp_path / "ml")}
    process = subprocess.Popen([sys.executable, "-c", start], env=environment, stdout=subprocess.PIPE, text=True)
    assert json.loads(process.stdout.readline())["event"] == "loading"
    process.terminate()
    assert process.wait(30) == 143
