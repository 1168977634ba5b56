"""The job that measures everything on a GPU: limits, failures, what is left out, and starting it again."""

import argparse
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu_job
from benchmarks.gpu_job import GpuJob, Step


def python(code):
    return (sys.executable, "-c", code)


def arguments(tmp_path, **options):
    given = {"scenes": ["plush=x"], "gsplat": None, "out": tmp_path, "fused_ssim": None}
    return argparse.Namespace(**(given | options))


def test_a_failure_is_reported_and_the_rest_goes_on(tmp_path, capfd):
    todo = [
        Step("fails", python("print('so it is'); raise SystemExit(3)"), 1, 60),
        Step("hangs", python("import time; print('begun', flush=True); time.sleep(600)"), 1, 1),
        Step("works", python("open('" + str(tmp_path / "result.json") + "', 'w').write('{}')"), 1, 60),
        Step("of another scene", python("raise SystemExit('never')"), 1, 60, scene="caliterra"),
        Step("without a checkout", python("raise SystemExit('never')"), 1, 60, needs_gsplat=True),
    ]
    job = GpuJob(tmp_path, 1000)
    job.run(todo, arguments(tmp_path))
    found = json.loads((tmp_path / "job.json").read_text())
    assert {name: step["status"] for name, step in found.items()} == {"fails": 3, "hangs": -9, "works": 0}
    assert job.failed == 2
    shown = capfd.readouterr().out
    assert "FAILED with 3" in shown and "so it is" in shown
    assert "the scene caliterra was not named" in shown and "no --gsplat FOLDER" in shown
    with tarfile.open(tmp_path / "results.tar.gz") as archive:
        assert {"result.json", "job.json", "logs/fails.txt", "logs/works.txt"} <= set(archive.getnames())


def test_a_step_ends_with_the_job(tmp_path, monkeypatch):
    """As when the job gets SIGTERM: its handler raises SystemExit while a step is awaited."""

    def stopped(process, limit=None):
        if limit is not None:
            pids.append(process.pid)
            raise SystemExit(143)
        return wait(process)

    pids, wait = [], subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", stopped)
    with pytest.raises(SystemExit):
        GpuJob(tmp_path, 1000).run([Step("long", python("import time; time.sleep(600)"), 1, 60)], arguments(tmp_path))
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_started_again_it_does_what_is_left(tmp_path):
    mark = tmp_path / "times.txt"
    count = f"open({str(mark)!r}, 'a').write('x')"
    GpuJob(tmp_path, 1000).run([Step("one", python(count), 1, 60)], arguments(tmp_path))
    GpuJob(tmp_path, 1000).run(
        [Step("one", python(count), 1, 60), Step("two", python(count), 1, 60)], arguments(tmp_path)
    )
    assert mark.read_text() == "xx"


def test_nothing_is_started_that_would_be_lost(tmp_path, capfd):
    rows = Step("rows", python("pass"), 900, 1200, in_rows=True)
    job = GpuJob(tmp_path, 100)
    job.run([Step("whole", python("pass"), 900, 1200), rows], arguments(tmp_path))
    assert list(job.found) == ["rows"]
    assert "whole: left out: 900 s are needed" in capfd.readouterr().out


def test_the_steps_name_files_and_rows_that_exist(tmp_path):
    from benchmarks.training_gpu import PLAN

    folders = {"plush": Path("/plush"), "caliterra": Path("/caliterra")}
    steps = gpu_job.steps(folders, arguments(tmp_path, gsplat=Path("/gsplat"), fused_ssim=Path("/fused")))
    for step in steps:
        for word in step.words:
            if word.endswith(".py"):
                assert Path(word).is_file()
        if "--only" in step.words:
            assert set(step.words[step.words.index("--only") + 1 :]) <= {*PLAN.rows, "speed", "sizes"}
    assert sum(step.expected_s for step in steps[:2]) <= 90  # a broken machine shows at once
    measured = {row for step in steps if "--only" in step.words for row in step.words}
    assert {*PLAN.rows, "speed", "sizes"} <= measured


@pytest.mark.parametrize("name", ["csrc.so", "csrc.so.xz"])
def test_the_extension_is_put_beside_gsplat_once(tmp_path, monkeypatch, name):
    import lzma

    package = tmp_path / "gsplat"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    given = tmp_path / name
    given.write_bytes(lzma.compress(b"code") if name.endswith("xz") else b"code")
    gpu_job.install_extension(given)
    assert (package / "csrc.so").read_bytes() == b"code"
    (package / "csrc.so").write_bytes(b"mine")
    gpu_job.install_extension(given)
    assert (package / "csrc.so").read_bytes() == b"mine"
