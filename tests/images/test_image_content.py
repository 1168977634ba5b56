"""What is in the images, and what is not: metadata, bill of materials, licences, no compiler, nothing to write to."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from base.stages import STAGE_NAMES
from deploy.images.build import base_digest
from deploy.images.docker import Docker
from images.licences import is_refused
from tests.images.player import ROOT, SDK, report_missing

REPORTS = ROOT / "build" / "images"
# Libraries in wheels whose licence binds, by wheel: docs/decisions/0006 says why they are there. Pillow names what it
# can use, and its wheel does not have it (test_pillow_has_no_libimagequant). Debian's own packages are another matter:
# every distribution has GPL programs in it, and they are unchanged.
KNOWN_TO_BIND = {("pycolmap", "suitesparse-cholmod"), ("pycolmap", "suitesparse-spqr"), ("pillow", "libimagequant")}


def inside(engine: Docker, image: str, program: str) -> subprocess.CompletedProcess[str]:
    """A shell line in the image, shut in as the stages are."""
    shut = ["--network", "none", "--read-only", "--tmpfs", "/tmp:exec", "--cap-drop", "ALL"]
    return engine.docker("run", "--rm", *shut, "--entrypoint", "sh", image, "-c", program, check=False)


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_metadata(stage: str, engine: Docker, base: str, images: Callable[[str], str]) -> None:
    (found,) = json.loads(engine.docker("image", "inspect", images(stage)).stdout)
    config = found["Config"]
    assert config["Entrypoint"] == ["python3", "-m", stage]
    assert not config.get("Cmd")
    assert not config.get("Volumes")
    assert config["User"] in ("", "root", "0")
    variables = dict(text.split("=", 1) for text in config["Env"])
    assert variables["PATH"].startswith("/opt/venv/bin:")
    assert variables["PYTHONPATH"] == "/opt/spaceport"
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == f"spaceport-{stage}"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["org.opencontainers.image.revision"])
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", labels["org.opencontainers.image.version"])
    assert labels["org.opencontainers.image.base.name"] == base
    assert labels["org.opencontainers.image.base.digest"] == base_digest(engine, base)


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_shut_in(stage: str, engine: Docker, images: Callable[[str], str]) -> None:
    """No code under /opt/ml, no compiler, no package installer, nowhere to write but /tmp, no network."""
    image = images(stage)
    probe = """
        for path in /opt/ml/* /opt/ml; do [ -e "$path" ] && echo "exists $path"; done
        for tool in gcc cc g++ clang nvcc pip pip3 node npm curl wget; do command -v $tool && echo "found $tool"; done
        for folder in / /opt /opt/spaceport /opt/venv /var /root /usr; do
            (: > "$folder/probe") 2>/dev/null && echo "writable $folder"
        done
        : > /tmp/probe || echo "not writable /tmp"
        python3 -c '
import socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=3)
except OSError as error:
    assert error.errno == 101, error
else:
    print("connected")
' 2>&1
        true
    """
    done = inside(engine, image, probe)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_code_is_the_repository(stage: str, engine: Docker, images: Callable[[str], str]) -> None:
    """The image has this stage's code, compiled, and no other stage's."""
    listing = inside(
        engine, images(stage), "cd /opt/spaceport && ls -d */ && find . -name '*.py' | sort"
    ).stdout.split()
    folders = {name.rstrip("/") for name in listing if name.endswith("/")}
    compiled_kernels = set() if stage == "sfm" else {"kernels"}
    assert folders == {"job", "splat", stage} | compiled_kernels
    expected = {
        f"./{p.relative_to(ROOT / 'containers')}"
        for name in folders - compiled_kernels
        for p in (ROOT / "containers" / name).rglob("*.py")
    }
    assert {name for name in listing if name.endswith(".py")} == {
        name for name in expected if "node_modules" not in name
    }
    compiled = inside(engine, images(stage), "find /opt/spaceport -name '*.pyc' | wc -l").stdout
    assert int(compiled) == len([name for name in listing if name.endswith(".py")])


def bill_of_materials(engine: Docker, image: str) -> dict[str, Any]:
    return json.loads(inside(engine, image, "cat /usr/share/spaceport/sbom.cdx.json").stdout)


def licences(component: dict[str, Any]) -> list[str]:
    """As they are written: a field of a wheel can hold a whole text."""
    found = []
    for entry in component.get("licenses", []):
        licence = entry.get("license", {})
        found.append(entry.get("expression") or licence.get("id") or licence.get("name") or "")
    return sorted({" ".join(text.split()) for text in found if text})


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/')[:120] or '?' for cell in cells)} |"


def licence_table(components: list[dict[str, Any]]) -> str:
    """Packages, then the libraries inside wheels, as Markdown."""
    lines = [row("kind", "package", "version", "licence"), row(*["---"] * 4)]
    lines += [row(c["purl"].split("/")[0][4:], c["name"], c["version"], ", ".join(licences(c))) for c in components]
    lines += ["", "Libraries known to be inside wheels; what was linked statically may be missing.", ""]
    lines += [row("wheel", "library", "version", "licence", "known from"), row(*["---"] * 5)]
    for wheel in components:
        for part in wheel.get("components", []):
            optional = " (optional)" if part.get("scope") == "optional" else ""
            evidence = part["properties"][0]["value"]
            known = ", ".join(licences(part))
            lines.append(row(wheel["name"], part["name"] + optional, part.get("version", ""), known, evidence))
    return "\n".join(lines) + "\n"


def report_contents(engine: Docker, image: str, name: str, with_npm: bool = False) -> None:
    """Keep the bill of materials and a table of licences in build/images/, as ``name``.

    Fails unless it names what pip and dpkg find in the image, and every wheel has a licence that lets us ship it.
    """
    document = bill_of_materials(engine, image)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    by_type = {
        kind: [c for c in document["components"] if c.get("purl", "").startswith(f"pkg:{kind}/")]
        for kind in ("pypi", "deb", "npm")
    }
    installed = inside(
        engine,
        image,
        "python3 -c 'import importlib.metadata as m; print(*{d.name+\"=\"+d.version for d in m.distributions()})'",
    ).stdout.split()
    assert sorted(f"{c['name']}={c['version']}" for c in by_type["pypi"]) == sorted(installed)
    debian = inside(engine, image, "dpkg-query -W -f='${Package}=${Version}\\n'").stdout.split()
    assert sorted(f"{c['name']}={c['version']}" for c in by_type["deb"]) == sorted(debian)
    assert bool(by_type["npm"]) == with_npm

    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f"{name}.cdx.json").write_text(json.dumps(document, indent=1))
    (REPORTS / f"{name}.licences.md").write_text(licence_table([c for kind in by_type.values() for c in kind]))

    unknown = [c["name"] for c in by_type["pypi"] + by_type["npm"] if licences(c) in ([], ["unknown"])]
    assert not unknown, f"no licence is named by {unknown}"
    refused = {c["name"]: licences(c) for c in by_type["pypi"] + by_type["npm"] if any(map(is_refused, licences(c)))}
    assert not refused
    inside_wheels = {
        (wheel["name"], part["name"]): licences(part)
        for wheel in by_type["pypi"]
        for part in wheel.get("components", [])
        if any(map(is_refused, licences(part)))
    }
    assert set(inside_wheels) <= KNOWN_TO_BIND, inside_wheels
    if name == "sfm":
        assert ("pycolmap", "suitesparse-spqr") in inside_wheels, "is it gone? Then decision 0006 can say so"


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_bill_of_materials(stage: str, engine: Docker, images: Callable[[str], str]) -> None:
    report_contents(engine, images(stage), stage, with_npm=stage == "compress")


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_pillow_has_no_libimagequant(stage: str, engine: Docker, images: Callable[[str], str]) -> None:
    """Its bill of materials names this library, under the GPL, as one that can be used."""
    program = 'from PIL import features; print(features.check_feature("libimagequant"))'
    assert inside(engine, images(stage), f"python3 -c '{program}'").stdout.strip() == "False"


UPDATES = """# Debian packages of the images with a newer version

Of {installed} packages, as apt knows it on {date} from the sources of the base:

{sources}

Nothing is said of Python and npm packages, nor of flaws that Debian has not mended: `make vulnerabilities` does.

{found}
"""


def test_updates_of_debian_are_reported(engine: Docker, base: str, images: Callable[[str], str]) -> None:
    """Kept as build/images/debian-updates.md. The Debian packages are the same in the three images.

    An update that came out today is no fault of the images; one that stays means that the base is old.
    """
    program = "apt-get update -qq 1>&2 && apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' && "
    program += "echo --- && apt list --upgradable 2>/dev/null && echo --- && dpkg-query -W | wc -l"
    done = engine.docker("run", "--rm", "--entrypoint", "sh", images("sfm"), "-c", program, check=False)
    if done.returncode:
        report_missing(f"apt cannot ask for updates in the image: {done.stderr[-500:]}")
    sources, listed, installed = (part.strip() for part in done.stdout.split("---\n"))
    assert sources and int(installed) > 50, done.stdout
    newer = [line for line in listed.splitlines() if "upgradable from" in line]
    text = UPDATES.format(
        installed=installed,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        sources="\n".join(f"* {line}" for line in sorted(set(sources.splitlines()))),
        found="\n".join(f"* {line}" for line in newer) or "None.",
    )
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / "debian-updates.md").write_text(text)


def test_hadolint_is_clean() -> None:
    tool = shutil.which("hadolint", path=f"{SDK / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if tool is None:
        report_missing(f"hadolint is not installed in {SDK}")
    containers = ROOT / "containers"
    command = [str(tool), "--config", str(containers / ".hadolint.yaml"), str(containers / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
