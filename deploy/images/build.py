"""Build the images of the stages from containers/Dockerfile.

    python -m deploy.images.build [--engine gpu] [--prefix spaceport] [--tag latest] [sfm train compress]

The base is $SPACEPORT_BASE_IMAGE, else debian:bookworm-slim that is here or comes from its registry, else, where no
registry is reached, the same release made with mmdebstrap from the package sources of this machine. What is pushed
to be deployed (deploy/push_images.py) has a base that its registry knows by a digest, and is for linux/amd64.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from deploy.images.docker import Docker, NoEngine, running_engine
from deploy.sources import ROOT, STAGE_NAMES, revision, version

CONTEXT = ROOT / "containers"
LOGS = ROOT / "build" / "images"
REGISTRY_BASE = "debian:bookworm-slim"
LOCAL_BASE = "spaceport/base:bookworm"
RELEASE_PLATFORM = "linux/amd64"  # SageMaker's machines; the pinned wheels are for it
# Arguments of the Dockerfile that are passed on when they are set here.
OPTIONAL_ARGUMENTS = ("CUDA_MIRROR", "CUDA_COMPILER", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS")
# As in the official slim image: no documentation but the licences.
CUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
KEPT = ("/usr/share/doc/*/copyright",)


@dataclass(frozen=True)
class Built:
    """One build. ``seconds`` is its wall time, ``steps_cached`` of ``steps`` came from the layer cache."""

    stage: str
    tag: str
    seconds: float
    size_bytes: int
    steps: int
    steps_cached: int


def base_image(engine: Docker) -> str:
    """Name of the base for local use; pulled or made when it is not there. Raises NoEngine when neither works."""
    named = os.environ.get("SPACEPORT_BASE_IMAGE")
    if named:
        return named
    for name in (REGISTRY_BASE, LOCAL_BASE):
        if engine.docker("image", "inspect", name, check=False).returncode == 0:
            return name
    pulled = engine.docker("pull", "--quiet", REGISTRY_BASE, check=False, timeout_s=300)
    if pulled.returncode == 0:
        return REGISTRY_BASE
    make_base(engine, pulled.stderr.strip())
    return LOCAL_BASE


def release_base(engine: Docker) -> str:
    """The base as name@sha256:…, which the registry has at this moment. Raises RuntimeError when it cannot be had."""
    named = os.environ.get("SPACEPORT_BASE_IMAGE") or REGISTRY_BASE
    pulled = engine.docker("pull", "--quiet", "--platform", RELEASE_PLATFORM, named, check=False, timeout_s=300)
    if pulled.returncode:
        raise RuntimeError(
            f"the base {named} cannot be pulled ({pulled.stderr.strip()}), and what is deployed needs a base with a "
            "digest: set SPACEPORT_BASE_IMAGE to one that your registry has, such as "
            "public.ecr.aws/docker/library/debian:bookworm-slim, or build in your account with `make images-cloud`"
        )
    digest = base_digest(engine, named)
    if not digest:
        raise RuntimeError(f"the engine names no digest of the base {named}: set SPACEPORT_BASE_IMAGE to name@sha256:…")
    return f"{repository(named)}@{digest}"


def repository(image: str) -> str:
    """The name of an image without its tag or digest."""
    name = image.partition("@")[0]
    folder, _, last = name.rpartition("/")  # a colon before it belongs to the registry's port
    return f"{folder}/{last.partition(':')[0]}" if folder else last.partition(":")[0]


def base_digest(engine: Docker, name: str) -> str:
    """The digest that the base's registry knows it by, sha256:…; empty for one that was made here."""
    if "@" in name:
        return name.partition("@")[2]
    inspected = engine.docker("image", "inspect", "--format", "{{json .RepoDigests}}", name, check=False)
    known = json.loads(inspected.stdout) if inspected.returncode == 0 else []
    known = sorted(known or [], key=lambda found: repository(found) != repository(name))  # its own registry first
    return str(known[0]).partition("@")[2] if known else ""


def make_base(engine: Docker, why: str) -> None:
    """Make LOCAL_BASE from this machine's own package sources."""
    program = shutil.which("mmdebstrap")
    if program is None:
        raise NoEngine(
            f"{REGISTRY_BASE} cannot be pulled ({why}) and mmdebstrap, which would make it, is not installed"
        )
    options = [f"--dpkgopt=path-exclude={path}" for path in CUT] + [f"--dpkgopt=path-include={path}" for path in KEPT]
    with tempfile.TemporaryDirectory() as folder:
        tar = Path(folder) / "base.tar"
        command = [program, "--quiet", "--variant=minbase", *options, "bookworm", str(tar), *apt_sources()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoEngine(f"{REGISTRY_BASE} cannot be pulled ({why}) and mmdebstrap fails: {done.stderr[-1500:]}")
        engine.docker("import", "-c", 'CMD ["bash"]', tar, LOCAL_BASE)


def apt_sources() -> list[str]:
    """The files that name this machine's Debian mirror; empty lets mmdebstrap use its default."""
    found = [Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")]
    return [str(path) for path in found if path.is_file() and path.stat().st_size > 0][:1]


def build(
    engine: Docker,
    stage: str,
    tag: str,
    base: str,
    variant: str = "cpu",
    no_cache: bool = False,
    platform: str | None = None,
) -> Built:
    """Build one image, for this machine's ``platform`` unless another is named.

    Raises RuntimeError with the end of the build's output when it fails.
    """
    arguments = {"BASE": base, "ENGINE": variant, "VERSION": version(), "REVISION": revision()}
    arguments["BASE_DIGEST"] = base_digest(engine, base)
    arguments |= {name: os.environ[name] for name in OPTIONAL_ARGUMENTS if os.environ.get(name)}
    command = ["build", "--progress", "plain", "--target", stage, "--tag", tag]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    for secret, file in secrets().items():
        command += ["--secret", f"id={secret},src={file}"]
    if no_cache:
        command.append("--no-cache")
    if platform:
        command += ["--platform", platform]
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{stage}-{variant}.log"
    started = time.monotonic()
    engine.docker(*command, CONTEXT, timeout_s=4 * 3600 if variant == "gpu" else 1800, log=log)
    seconds = time.monotonic() - started
    output = log.read_text(encoding="utf-8", errors="replace")
    size = int(engine.docker("image", "inspect", "--format", "{{.Size}}", tag).stdout)
    return Built(stage, tag, seconds, size, output.count(" DONE "), output.count(" CACHED"))


def secrets() -> dict[str, Path]:
    """Certificates and registry settings of this machine for pip and npm; they do not end up in a layer."""
    candidates = {
        "ca": [os.environ.get("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt"],
        "pipconf": [os.environ.get("PIP_CONFIG_FILE"), "/etc/pip.conf"],
        "npmrc": [os.environ.get("NPM_CONFIG_USERCONFIG"), str(Path.home() / ".npmrc")],
    }
    found = {}
    for name, paths in candidates.items():
        existing = next((Path(path) for path in paths if path and Path(path).is_file()), None)
        if existing:
            found[name] = existing
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", default=STAGE_NAMES, help=f"{', '.join(STAGE_NAMES)}; all by default")
    parser.add_argument("--engine", choices=("cpu", "gpu"), default="cpu", help="variant of the training image")
    parser.add_argument("--prefix", default="spaceport")
    parser.add_argument("--tag", default="latest")
    parser.add_argument("--no-cache", action="store_true")
    arguments = parser.parse_args()
    unknown = set(arguments.stages) - set(STAGE_NAMES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    with running_engine() as engine:
        base = base_image(engine)
        for stage in arguments.stages:
            tag = f"{arguments.prefix}-{stage}:{arguments.tag}"
            built = build(engine, stage, tag, base, arguments.engine, arguments.no_cache)
            print(f"{built.tag}: {built.size_bytes / 1e6:.0f} MB, {built.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (NoEngine, RuntimeError) as problem:
        sys.exit(f"error: {problem}")
