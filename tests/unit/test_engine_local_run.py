"""Whole local runs through the real template, state machine and functions, with stand-in stage programs."""

import json
import os
import time
import zipfile
from pathlib import Path

import pytest

from spaceport import local_run
from spaceport.jobs.runner import ProcessRunner
from tests.unit.local_stages import mails, photos, stages, states

__all__ = ["photos", "stages"]


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
