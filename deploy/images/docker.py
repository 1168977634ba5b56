"""A Docker engine to build and run the images with: the one that runs already, or one started for as long as needed.

python -m deploy.images.docker install    install Debian's engine and mmdebstrap (root), unless an engine runs already.
                                   Where that cannot be done: an error if CI=true, else a loud message alone
python -m deploy.images.docker run CMD    run CMD with DOCKER_HOST set, starting an engine for that time if none runs
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGES = ("docker.io", "iptables", "mmdebstrap")
INSTALL_COMMAND = f"apt-get install --no-install-recommends {' '.join(PACKAGES)}"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
SOCKET_PATH_LIMIT = 100  # a Unix socket's path has at most 107 bytes; containerd adds its own below exec/


class NoEngine(Exception):
    """No Docker engine can be had on this machine; the text says why and what to do."""


@dataclass(frozen=True)
class Docker:
    """A running engine. ``host`` is its DOCKER_HOST, None for the client's own default."""

    client: str
    host: str | None

    @cached_property
    def environment(self) -> dict[str, str]:
        """BuildKit, and no attestations: they make an image an index of manifests, which SageMaker may refuse."""
        ours = {"DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        return {**os.environ, **ours, **({"DOCKER_HOST": self.host} if self.host else {})}

    def docker(
        self, *arguments: str | Path, timeout_s: float = 600, check: bool = True, log: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the client; its output goes to the file ``log`` as it comes, or else into the result.

        Raises RuntimeError with the end of the output when ``check`` is set and it fails.
        """
        command = [self.client, *map(str, arguments)]
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(log.open("wb")) if log else None
            done = subprocess.run(
                command,
                env=self.environment,
                stdout=file or subprocess.PIPE,
                stderr=file or subprocess.PIPE,
                text=True,
                timeout=timeout_s,
                check=False,
                errors="replace",
            )
        if check and done.returncode:
            said = log.read_text(errors="replace") if log else done.stdout[-2000:] + done.stderr
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{said[-6000:]}")
        return done


def cache_folder() -> Path:
    """Where a started engine keeps images and layers between runs: $SPACEPORT_DOCKER_CACHE, outside the repository."""
    named = os.environ.get("SPACEPORT_DOCKER_CACHE")
    if named:
        return Path(named).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spaceport" / "docker"


def find_client() -> str:
    """The first docker client on PATH that can build with BuildKit. Raises NoEngine when there is none."""
    seen = []
    for folder in [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin"]:
        client = Path(folder) / "docker"
        if client.is_file() and os.access(client, os.X_OK) and str(client) not in seen:
            seen.append(str(client))
            if _can_build(str(client)):
                return str(client)
    problem = f"{', '.join(seen)} cannot build with BuildKit" if seen else "there is no docker client on PATH"
    raise NoEngine(f"{problem}. Install one: {INSTALL_COMMAND}")


def _can_build(client: str) -> bool:
    """BuildKit is in the client up to version 20.10, and in its buildx plug-in after that."""
    version = subprocess.run([client, "--version"], capture_output=True, text=True, check=False).stdout
    major = version.removeprefix("Docker version ").split(".")[0]
    if major.isdigit() and int(major) < 23:
        return True
    return subprocess.run([client, "buildx", "version"], capture_output=True, check=False).returncode == 0


def answers(engine: Docker) -> bool:
    """Whether an engine is there."""
    return engine.docker("version", "--format", "{{.Server.Version}}", check=False, timeout_s=20).returncode == 0


@contextlib.contextmanager
def running_engine() -> Iterator[Docker]:
    """An engine that answers; one that is started here is stopped again, unless SPACEPORT_KEEP_ENGINE=1.

    Raises NoEngine when none runs and none can be started.
    """
    client = find_client()
    if found := _answering(client):
        yield found
        return
    own_host = _own_host()
    daemon = _start(own_host)
    engine = Docker(client, own_host)
    try:
        _wait(engine, daemon)
        yield engine
    finally:
        if os.environ.get("SPACEPORT_KEEP_ENGINE") == "1":
            print(f"engine kept: export DOCKER_HOST={own_host}; stop it with: kill {daemon.pid}", file=sys.stderr)
        else:
            _stop(daemon)


def _own_host() -> str:
    return f"unix://{cache_folder() / 'docker.sock'}"


def _answering(client: str) -> Docker | None:
    """The engine that runs already, the machine's or one that was kept."""
    engines = (Docker(client, host) for host in (None, _own_host()))
    return next((engine for engine in engines if answers(engine)), None)


def _start(host: str) -> subprocess.Popen[bytes]:
    folder = cache_folder()
    program = shutil.which("dockerd") or shutil.which("dockerd", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise NoEngine(f"no Docker engine runs here, and dockerd is not installed. Install it: {INSTALL_COMMAND}")
    if os.geteuid() != 0:
        raise NoEngine("no Docker engine runs here, and only root can start one. Start Docker and try again.")
    if len(str(folder)) > SOCKET_PATH_LIMIT - len("/docker.sock"):
        raise NoEngine(f"{folder} is too long a path for a socket; set SPACEPORT_DOCKER_CACHE to a shorter one")
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "host": host,
        "data-root": folder / "data",
        "exec-root": folder / "exec",
        "pidfile": folder / "dockerd.pid",
    }
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "dockerd.log").open("wb") as log:
        # A session of its own: Ctrl-C ends the tests, which then stop the engine; it must not end first.
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)


def _wait(engine: Docker, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(engine):
        if daemon.poll() is not None or time.monotonic() > deadline:
            log = (cache_folder() / "dockerd.log").read_text(errors="replace")
            raise NoEngine(f"dockerd does not start; the end of {cache_folder() / 'dockerd.log'}:\n{log[-2000:]}")
        time.sleep(0.2)


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def install() -> None:
    """Install what is missing of PACKAGES with apt-get, unless an engine runs. Raises NoEngine when that fails."""
    if all(shutil.which(program) for program in ("dockerd", "mmdebstrap", "iptables")) or _is_running():
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NoEngine(f"no Docker engine runs here. Start one, or as root on Debian: {INSTALL_COMMAND}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        line = ["apt-get", *command]
        done = subprocess.run(line, env=environment, check=False, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise NoEngine(f"{' '.join(line)} ended with {done.returncode}: {done.stderr.strip()[-1500:]}")


def _is_running() -> bool:
    try:
        return _answering(find_client()) is not None
    except NoEngine:
        return False


def install_or_say_so() -> None:
    """Install; a failure is an error in CI, and elsewhere a message: the tests that need an engine are then skipped."""
    try:
        install()
    except NoEngine as problem:
        if os.environ.get("CI") == "true":
            raise
        print(f"\n*** NO ENGINE WAS INSTALLED: {problem} ***", file=sys.stderr)


def main() -> int:
    match sys.argv[1:]:
        case ["install"]:
            install_or_say_so()
            return 0
        case ["run", *command] if command:
            with running_engine() as engine:
                return subprocess.run(command, env=engine.environment, check=False).returncode
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NoEngine as problem:
        sys.exit(f"error: {problem}")
