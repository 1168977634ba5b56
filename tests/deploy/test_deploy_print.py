"""A folder that `spaceport deploy --print` wrote is valid and builds like the repository."""

from __future__ import annotations

import pytest

from spaceport.stack.deploy_files import write_deploy_files
from tests.deploy.environments import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_printed_folder_validates_and_builds(sam, tmp_path):
    folder = tmp_path / "printed"
    write_deploy_files(folder)
    assert "is a valid SAM Template" in run([sam, "validate", "--lint"], cwd=folder).stdout
    done = run([sam, "build", "--no-cached"], cwd=folder)
    assert "Build Succeeded" in done.stdout + done.stderr
    built = folder / ".aws-sam/build"
    assert (built / "IngestFunction/ingest.py").is_file() and (built / "Dependencies/python").is_dir()
