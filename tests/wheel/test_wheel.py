"""What `make wheel` made, installed where there is no checkout: it runs, shows its result and can be deployed from.

Third-party packages are those of the environment that runs the tests, so that nothing is fetched.
"""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from spaceport.stack.deploy_files import deploy_sources
from tests.watched_page import Watched, chromium

REPOSITORY = Path(__file__).parents[2]
SITE_PACKAGES = Path(pytest.__file__).parents[1]
SHORT = ("--preset", "draft", "--max-iterations", "50", "--max-image-long-side", "320")
NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
NOBODY_ID = 65534

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Installed:
    """An environment of its own with the wheel, and an empty folder to work in."""

    python: Path
    work: Path

    @property
    def command(self) -> str:
        return str(self.python.with_name("spaceport"))

    def spaceport(self, *arguments: str | Path, prefix: tuple[str, ...] = (), cwd: str = "", **variables: str) -> str:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.work), "COLUMNS": "300", **variables}
        answer = subprocess.run(
            [*prefix, self.command, *map(str, arguments)],
            cwd=cwd or self.work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = list((REPOSITORY / "dist").glob("spaceport-*.whl"))
    assert len(found) == 1, "`make test-wheel` makes the wheel, then runs this"
    return found[0]


def interpreter() -> Path:
    """One that every user can start: this one, or the system's of the same version."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (Path(sys.executable).resolve(), Path("/usr/bin") / version):
        if candidate.is_file() and readable_by_all(candidate):
            return candidate
    return Path(sys.executable).resolve()


def readable_by_all(path: Path) -> bool:
    return all(one.stat().st_mode & 0o001 for one in (path, *path.parents))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Iterator[Installed]:
    with tempfile.TemporaryDirectory(prefix="spaceport-wheel-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # pytest's own folders cannot be read by another user
        subprocess.run([interpreter(), "-m", "venv", "--without-pip", folder / "venv"], check=True)
        python = folder / "venv" / "bin" / "python"
        install = ["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", wheel]
        subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
        own = next((folder / "venv").glob("lib/python*/site-packages"))
        (own / "third_party.pth").write_text(f"{SITE_PACKAGES}\n")  # its own .pth files, the checkout's, are not read
        work = folder / "work"
        work.mkdir()
        yield Installed(python, work)


@pytest.fixture(scope="module")
def result(installed: Installed) -> Path:
    """The folder of a run, whose photos are the sample's."""
    installed.spaceport("sample", "photos")
    said = installed.spaceport("run", "photos", "--out", "out", *SHORT)
    assert "Done in" in said
    return installed.work / "out"


def test_wheel_names_its_dependencies_and_the_extra_of_the_gpu(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        file = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(file))
    required = metadata.get_all("Requires-Dist") or []
    lines = [line.partition("#")[0].strip() for line in (REPOSITORY / "requirements/run.in").read_text().splitlines()]
    wanted = {name.partition("[")[0].partition(">")[0] for name in lines if name}
    assert {name.partition("[")[0].partition("<")[0] for name in required if "extra ==" not in name} == wanted
    assert metadata.get_all("Provides-Extra") == ["gpu"]
    extra = sorted(name.partition(";")[0] for name in required if "extra ==" in name)
    assert [name.partition("=")[0].partition(">")[0] for name in extra] == ["gsplat", "torch"]


def test_wheel_carries_what_is_deployed_and_the_viewer_with_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        stack = {name.removeprefix("spaceport/_stack/") for name in archive.namelist() if "/_stack/" in name}
    viewer = {name for name in stack if "/node_modules/" in name}
    assert stack - viewer == {file.relative_to(REPOSITORY).as_posix() for file in deploy_sources()}
    package = "containers/compress/viewer/node_modules/@playcanvas/supersplat-viewer"
    assert {f"{package}/package.json", f"{package}/LICENSE"} <= viewer


def test_checkout_is_not_importable(installed: Installed) -> None:
    program = "import spaceport, sys; print(spaceport.__file__, *sys.path, sep='\\n')"
    answer = subprocess.run([installed.python, "-c", program], cwd="/", capture_output=True, text=True, check=True)
    file, *path = answer.stdout.splitlines()
    assert file.startswith(str(installed.python.parents[1]))
    assert str(REPOSITORY) not in path


def test_check_says_where_kernels_are_kept(installed: Installed) -> None:
    assert f"beside their sources in {installed.python.parents[1].resolve()}" in installed.spaceport("check")


def test_page_of_a_run_is_shown_in_a_browser(installed: Installed, result: Path) -> None:
    with chromium() as browser:
        server = subprocess.Popen(
            [installed.command, "view", result, "--no-browser"], cwd=installed.work, stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout
            watched = Watched(browser, server.stdout.readline().split()[0])
            watched.wait_for_first_frame()
            assert watched.page.locator("canvas").count() == 1
            assert not watched.complaints
        finally:
            server.terminate()
            server.wait(30)


def test_resume_of_a_finished_run_answers_with_its_result(installed: Installed, result: Path) -> None:
    before = (result / "scene.sog").read_bytes()
    assert "Done in" in installed.spaceport("resume", result)
    assert (result / "scene.sog").read_bytes() == before


def test_deploy_print_writes_what_the_checkout_would(installed: Installed, tmp_path: Path) -> None:
    installed.spaceport("deploy", "--print", tmp_path / "service")
    for file in deploy_sources():
        assert (tmp_path / "service" / file.relative_to(REPOSITORY)).read_bytes() == file.read_bytes()


def test_run_where_neither_the_installation_nor_home_can_be_written(installed: Installed) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can run a program as the user nobody")
    if unreadable := [path for path in (interpreter(), SITE_PACKAGES) if not readable_by_all(path)]:
        message = f"READ-ONLY INSTALLATION NOT TESTED: the user nobody cannot read {unreadable[0]}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    folder = installed.work / "nobody"
    kernels = folder / f"spaceport-{NOBODY_ID}"
    folder.mkdir()
    os.chown(folder, NOBODY_ID, NOBODY_ID)

    def as_nobody(*arguments: str | Path) -> str:
        return installed.spaceport(*arguments, prefix=NOBODY, cwd=str(folder), HOME="/nonexistent", TMPDIR=str(folder))

    assert str(kernels) in as_nobody("check")
    as_nobody("sample", "photos")
    as_nobody("run", "photos", "--out", "out", *SHORT)
    assert (folder / "out" / "index.html").is_file()
    assert [*kernels.rglob("*.nbc")]
