"""The whole service with containers instead of child processes: `spaceport run PHOTOS --jobs docker`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from base.stages import STAGE_NAMES
from deploy.images.docker import Docker
from spaceport import local_run
from spaceport.jobs.docker import DockerError, DockerRunner
from tests.images.figures import Figures
from tests.images.player import IMAGES, OPTIONS


@pytest.fixture
def runner(engine: Docker, images: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> DockerRunner:
    for stage in STAGE_NAMES:
        images(stage)
    if engine.host:
        monkeypatch.setenv("DOCKER_HOST", engine.host)
    runner = DockerRunner(IMAGES, client=engine.client)
    runner.check()
    return runner


def test_photos_to_page(
    runner: DockerRunner, engine: Docker, photos: list[Path], figures: Figures, tmp_path: Path
) -> None:
    folder = tmp_path / "garden"
    folder.mkdir()
    for photo in photos:
        shutil.copyfile(photo, folder / photo.name)
    events: list[dict[str, Any]] = []
    options = {**OPTIONS["train"], "max_image_long_side": 640, "title": "A garden"}
    outcome = local_run.run(folder, tmp_path / "out", options, events.append, runner=runner)
    assert outcome.status == "SUCCEEDED", outcome.reason
    assert outcome.results is not None and (outcome.results / "index.html").is_file()
    report = json.loads((outcome.results / "report.json").read_text())
    assert report["photos"]["total"] == len(photos)
    assert report["training"]["gaussians"] > 100
    states = {event["state"] for event in events if event["type"] == "progress"}
    assert {"SfM", "Train", "Compress"} <= states
    assert engine.docker("ps", "--all", "--quiet", "--filter", "label=spaceport.jobs").stdout == ""
    figures.add("all three", "spaceport run --jobs docker", 0, f"page, {len(photos)} photos", outcome.seconds)


def test_failure_in_a_container_reaches_the_user(runner: DockerRunner, tmp_path: Path) -> None:
    """Pictures without anything in common."""
    import numpy as np
    from PIL import Image

    folder = tmp_path / "noise"
    folder.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"noise-{number}.jpg")
    outcome = local_run.run(folder, tmp_path / "out", {"preset": "draft"}, lambda event: None, runner=runner)
    assert outcome.status == "FAILED"
    assert outcome.error_code not in (None, "INTERNAL_ERROR", "IMAGE_BROKEN"), outcome.reason


def test_missing_image_is_told_before_the_run(runner: DockerRunner) -> None:
    with pytest.raises(DockerError, match=r"no-such-image-sfm:1.*make local-images"):
        DockerRunner("no-such-image-{stage}:1", client=runner.client).check()


def test_no_engine_is_told_before_the_run(runner: DockerRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    assert os.environ["DOCKER_HOST"]
    with pytest.raises(DockerError, match="No Docker engine answers"):
        runner.check()


def test_leftovers_are_removed(runner: DockerRunner, engine: Docker, tmp_path: Path) -> None:
    """An engine that was killed leaves containers; the next one on the same folder removes its own, and no other."""
    jobs = tmp_path / "jobs"
    for name, folder in (("leftover", jobs), ("stranger", tmp_path / "other")):
        label = f"spaceport.jobs={folder.resolve()}"
        command = ["run", "--detach", "--rm", "--name", f"spaceport-test-{name}", "--label", label]
        engine.docker(*command, "--entrypoint", "sleep", IMAGES.format(stage="sfm"), "600")
    try:
        assert runner.remove_leftovers(jobs) == 1
        names = engine.docker("ps", "--all", "--format", "{{.Names}}").stdout.split()
        assert "spaceport-test-leftover" not in names and "spaceport-test-stranger" in names
    finally:
        engine.docker("rm", "--force", "spaceport-test-stranger")
