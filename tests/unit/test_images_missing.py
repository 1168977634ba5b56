"""The image tests are never passed by not looking, and their page has the cases of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.images import docker
from deploy.images.docker import NoEngine
from tests.images import player
from tests.images.figures import BEGIN, END, Figures


def test_what_is_missing_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="the images cannot be tested: no engine"):
        player.report_missing("no engine")


def test_what_is_missing_is_skipped_loudly_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="IMAGES NOT TESTED: no engine"):
        player.report_missing("no engine")
    assert "*** IMAGES NOT TESTED: no engine ***" in capsys.readouterr().err


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    player.need_root()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(pytest.fail.Exception, match="sudo -E make images-test"):
        player.need_root()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine on which nothing is installed; the folder of its programs."""
    monkeypatch.setattr(docker, "_is_running", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return tmp_path


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_nothing_is_installed_where_an_engine_runs(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmdebstrap is not needed then: a base comes from a registry, or the tests say what they lack."""
    put(bare, "apt-get", "exit 100")
    monkeypatch.setattr(docker, "_is_running", lambda: True)
    docker.install()


@pytest.mark.parametrize("user", [0, 1000])
def test_an_engine_that_cannot_be_installed(
    user: int, bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without root, or with an apt-get that fails: an error in CI, a message on a laptop."""
    put(bare, "apt-get", "echo 'E: no such mirror' >&2; exit 100")
    monkeypatch.setattr("os.geteuid", lambda: user)
    reason = (
        "apt-get update -qq ended with 100: E: no such mirror" if user == 0 else "as root on Debian: apt-get install"
    )
    monkeypatch.setenv("CI", "true")
    with pytest.raises(NoEngine, match=reason):
        docker.install_or_say_so()
    monkeypatch.delenv("CI")
    docker.install_or_say_so()
    said = capsys.readouterr().err
    assert "*** NO ENGINE WAS INSTALLED: " in said and reason in said


def test_what_is_missing_is_installed(bare: Path) -> None:
    put(bare, "apt-get", f'echo "$@" >> {bare}/asked')
    docker.install()
    asked = (bare / "asked").read_text().splitlines()
    assert asked == ["update -qq", f"install -y -qq --no-install-recommends {' '.join(docker.PACKAGES)}"]


def page(root: Path, *cases: str) -> Path:
    file = root / "docs" / "images.md"
    file.parent.mkdir(exist_ok=True)
    rows = "\n".join(f"| sfm | {case} | 0 | fine | 1.0 s |" for case in cases)
    file.write_text(f"Before.\n{BEGIN}\n| image | build |\n| sfm | 3.0 s |\n{rows}\n{END}\nAfter.\n")
    return file


def test_the_page_has_the_cases_of_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPACEPORT_WRITE_DOCS", raising=False)
    figures = Figures()
    figures.add("sfm", "good input", 0, "fine", 1.0)
    figures.add("sfm", "bad input", 1, "BAD | worse", 1.0)
    page(tmp_path, "good input", "bad input")
    assert figures.write(tmp_path, whole=True) == ""
    page(tmp_path, "good input")
    assert "lacks ('sfm', 'bad input')" in figures.write(tmp_path, whole=False)
    page(tmp_path, "good input", "bad input", "old input")
    assert figures.write(tmp_path, whole=False) == "", "a part of the tests shows a part of the cases"
    assert "has ('sfm', 'old input') too much" in figures.write(tmp_path, whole=True)


def test_the_page_is_written_by_whole_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACEPORT_WRITE_DOCS", "1")
    figures = Figures()
    figures.add("sfm", "good input", 0, "fine", 1.0)
    file = page(tmp_path, "old input")
    before = file.read_text()
    assert "was not written" in figures.write(tmp_path, whole=False)
    assert file.read_text() == before
    assert figures.write(tmp_path, whole=True) == ""
    text = file.read_text()
    assert "good input" in text and "old input" not in text
    assert text.startswith("Before.\n") and text.endswith("\nAfter.\n")
