"""The failure that these images are built against: SageMaker mounts a volume over /opt/ml, and code there is gone."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from base.stages import STAGE_NAMES
from deploy.images.docker import Docker
from tests.images.figures import Figures
from tests.images.player import stage_request

THROW_AWAY = "spaceport-exit-127:test"
# The same program as the image of the stage; only the place differs.
DOCKERFILE = """
FROM {image}
RUN mkdir -p /opt/ml/code && cp -r /opt/spaceport/job /opt/ml/code/job && printf '%s\\n' '#!/usr/bin/env python3' \
 'import sys' 'sys.path.insert(0, "/opt/ml/code")' 'import job' 'print("ready")' > /opt/ml/code/run \
 && chmod 0755 /opt/ml/code/run
ENTRYPOINT ["/opt/ml/code/run"]
"""


@pytest.fixture
def throw_away(engine: Docker, images: Callable[[str], str], tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "Dockerfile"
    file.write_text(DOCKERFILE.format(image=images("compress")))
    engine.docker("build", "--tag", THROW_AWAY, tmp_path)
    yield THROW_AWAY
    engine.docker("image", "rm", "--force", THROW_AWAY)


def mounted(engine: Docker, volume: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    volume.mkdir(exist_ok=True)
    return engine.docker("run", "--rm", "--network", "none", "--volume", f"{volume}:/opt/ml", *arguments, check=False)


def test_code_under_opt_ml_ends_with_127(engine: Docker, throw_away: str, figures: Figures, tmp_path: Path) -> None:
    """Without the volume the image works, as it does on the desk of whoever built it."""
    unmounted = engine.docker("run", "--rm", "--network", "none", throw_away)
    assert unmounted.stdout.strip() == "ready"
    began = time.monotonic()
    ran = mounted(engine, tmp_path / "ml", throw_away)
    seconds = time.monotonic() - began
    found = re.search(r'exec: "/opt/ml/code/run": .*no such file or directory', ran.stderr)
    assert ran.returncode == 127 and found, ran.stderr
    figures.add("(throw-away)", "code in /opt/ml/code, /opt/ml mounted over", ran.returncode, found[0], seconds)


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_our_images_survive_the_same_mount(
    stage: str, engine: Docker, images: Callable[[str], str], figures: Figures, tmp_path: Path
) -> None:
    """With the entry point of the request."""
    request = stage_request(stage, {"preset": "draft"})  # type: ignore[arg-type]
    specification = request["AlgorithmSpecification" if stage == "train" else "AppSpecification"]
    program, *arguments = specification["ContainerEntrypoint"]
    image = images(stage)
    began = time.monotonic()
    ran = mounted(
        engine, tmp_path / "ml", "--entrypoint", program, "--tmpfs", "/tmp:exec", image, *arguments, "--selfcheck"
    )
    seconds = time.monotonic() - began
    figures.add(stage, "/opt/ml mounted over, --selfcheck", ran.returncode, ran.stdout, seconds)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.strip().endswith(f"{stage}: ready")


def test_a_missing_program_is_told_apart(engine: Docker, images: Callable[[str], str], tmp_path: Path) -> None:
    """127 is what a missing entry point looks like through the very command that the tests use."""
    assert mounted(engine, tmp_path / "ml", "--entrypoint", "python4", images("sfm"), "-m", "sfm").returncode == 127
