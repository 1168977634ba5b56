"""deploy/images/build.py with an engine that only answers: the base of a release, its labels, the commit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import sources
from deploy.images import build as builder
from deploy.images.build import base_digest, build, release_base, repository
from deploy.images.docker import Docker

DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
MIRROR = "localhost:5000/library/debian:bookworm-slim"


class Answering:
    """Notes the commands of the docker client; ``digests`` by image name is what it knows, None for a failed pull."""

    def __init__(self, digests: dict[str, list[str]] | None) -> None:
        self.digests = digests
        self.commands: list[list[str]] = []

    def docker(self, *arguments: str | Path, log: Path | None = None, **_more: object) -> subprocess.CompletedProcess:
        command = [str(argument) for argument in arguments]
        self.commands.append(command)
        if log:
            log.write_text("#5 DONE 0.1s\n#6 CACHED\n")
        if command[0] == "pull" and self.digests is None:
            return subprocess.CompletedProcess(command, 1, "", "no such host")
        if "{{json .RepoDigests}}" in command:
            found = (self.digests or {}).get(command[-1])
            return subprocess.CompletedProcess(command, 1 if found is None else 0, json.dumps(found), "")
        return subprocess.CompletedProcess(command, 0, "1000000", "")


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[dict[str, list[str]] | None], Answering]:
    monkeypatch.delenv("SPACEPORT_BASE_IMAGE", raising=False)
    monkeypatch.setattr(builder, "LOGS", tmp_path)
    return Answering


def test_a_release_has_the_digest_of_the_moment(answering: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pulled although it is there, by the repository that was named, for SageMaker's kind of machine."""
    engine = answering({"debian:bookworm-slim": [f"debian@{DIGEST}"], MIRROR: [f"debian@{OTHER}"]})
    assert release_base(engine) == f"debian@{DIGEST}"
    assert engine.commands[0] == ["pull", "--quiet", "--platform", "linux/amd64", "debian:bookworm-slim"]
    monkeypatch.setenv("SPACEPORT_BASE_IMAGE", MIRROR)
    assert release_base(engine) == f"localhost:5000/library/debian@{OTHER}"
    monkeypatch.setenv("SPACEPORT_BASE_IMAGE", f"debian@{OTHER}")
    assert release_base(engine) == f"debian@{OTHER}"


def test_no_release_without_a_digest(answering: Callable) -> None:
    """Neither with what an earlier build left here, nor with a base that was made here."""
    with pytest.raises(RuntimeError, match=r"debian:bookworm-slim cannot be pulled \(no such host\).*images-cloud"):
        release_base(answering(None))
    with pytest.raises(RuntimeError, match="names no digest"):
        release_base(answering({"debian:bookworm-slim": []}))


def test_digest_of_the_base(answering: Callable) -> None:
    engine = answering(
        {"debian:bookworm-slim": [f"{MIRROR.rpartition(':')[0]}@{OTHER}", f"debian@{DIGEST}"], "made": []}
    )
    assert base_digest(engine, "debian:bookworm-slim") == DIGEST, "its own repository comes first"
    assert base_digest(engine, "made") == ""
    assert base_digest(engine, "not-here-yet:1") == ""
    assert base_digest(engine, f"debian@{OTHER}") == OTHER


@pytest.mark.parametrize("image", ["a.b:5000/c/debian:1", "a.b:5000/c/debian", f"a.b:5000/c/debian@{DIGEST}"])
def test_repository(image: str) -> None:
    assert repository(image) == "a.b:5000/c/debian"
    assert repository("debian:1") == repository("debian") == "debian"


def test_what_a_build_is_told(answering: Callable) -> None:
    engine = answering({})
    built = build(engine, "sfm", "registry/sfm:1", f"debian@{DIGEST}", platform="linux/amd64")
    (command,) = [command for command in engine.commands if command[0] == "build"]
    text = " ".join(command)
    assert f"--build-arg BASE=debian@{DIGEST} " in text and f"--build-arg BASE_DIGEST={DIGEST} " in text
    assert "--platform linux/amd64" in text
    assert (built.steps, built.steps_cached) == (1, 1)
    build(engine, "sfm", "spaceport-sfm:latest", "made")
    assert "--platform" not in engine.commands[-2], "for local use the machine's own kind"


def test_no_attestations() -> None:
    """buildx adds them by default, and the image becomes an index."""
    assert Docker("docker", None).environment["BUILDX_NO_DEFAULT_ATTESTATIONS"] == "1"


def test_revision_tells_of_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    assert (sources.commit(), sources.revision()) == ("unknown", "unknown")
    build_folder = tmp_path / "containers"
    build_folder.mkdir()
    (build_folder / "stage.py").write_text("1")

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    clean = sources.revision()
    assert len(clean) == 40 and clean == sources.commit()
    (tmp_path / "notes.md").write_text("no part of the build")
    assert sources.revision() == clean
    (build_folder / "new.py").write_text("2")
    assert sources.revision() == f"{clean}-dirty"
    git("add", ".")
    git("commit", "-m", "second")
    (build_folder / "stage.py").write_text("3")
    assert sources.revision() == f"{sources.commit()}-dirty" != f"{clean}-dirty"
