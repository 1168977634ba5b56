"""Runs stage programs in the container images, shut in as SageMaker shuts them in: `spaceport run --jobs docker`.

One container per job, with all of /opt/ml mounted from its folder, no network, a read-only root file system and no
capabilities. The images are those of `make local-images`; $SPACEPORT_DOCKER_IMAGES names others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spaceport.jobs.runner import Exit, Handle, JobStart
from spaceport.stack.stages import STAGE_NAMES

CLIENT_TIMEOUT_S = 60
SIGNAL_RETRY_S = 0.1
DEFAULT_IMAGES = "spaceport-{stage}:latest"
LABEL = "spaceport.jobs"  # the folder whose jobs a container belongs to


class DockerError(Exception):
    """The containers cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class Limits:
    """Resource limits of one container. None leaves Docker's default."""

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int = 4096
    tmp_bytes: int | None = None


class DockerRunner:
    """A ``job_runner.Runner``; ``images`` is a pattern such as "spaceport-{stage}:latest"."""

    def __init__(self, images: str | None = None, limits: Limits | None = None, client: str | None = None) -> None:
        self.images = images or os.environ.get("SPACEPORT_DOCKER_IMAGES", DEFAULT_IMAGES)
        self.limits = limits or Limits()
        found = client or shutil.which("docker")
        if found is None:
            raise DockerError("There is no docker client on PATH. Install Docker, or leave out `--jobs docker`.")
        self.client = found
        self._clean: set[Path] = set()

    def check(self, stages: tuple[str, ...] = STAGE_NAMES) -> None:
        """Raises DockerError when no engine answers or an image is missing, so that a run fails before it starts."""
        version = self._docker("version", "--format", "{{.Server.Version}}")
        if version.returncode:
            raise DockerError(
                f"No Docker engine answers: {version.stderr.strip()[-300:]}. Start one, or set DOCKER_HOST."
            )
        names = [self.images.format(stage=stage) for stage in stages]
        missing = [name for name in names if self._docker("image", "inspect", name).returncode]
        if missing:
            raise DockerError(f"There is no image {', '.join(missing)} here. `make local-images` builds them.")

    def start(self, job: JobStart, on_exit: Callable[[Exit], None]) -> Handle:
        """Start the container and return. Raises OSError when the client cannot be started."""
        if job.folder is None:
            raise ValueError(f"{job.name}: a container needs a folder; give the engine a work_dir")
        self._clean_once(job.folder.parent)
        with _log(job.log) as log:
            process = subprocess.Popen(
                [self.client, *self.run_arguments(job, self.image(job))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        handle = _ContainerHandle(self.client, job.name, process)
        threading.Thread(
            target=self._wait, args=(process, job.name, on_exit), name=f"wait-{job.name}", daemon=True
        ).start()
        return handle

    def remove_leftovers(self, jobs_dir: Path) -> int:
        """Kill the containers that an engine which was itself killed left working in ``jobs_dir``; returns how many."""
        label = f"label={LABEL}={jobs_dir.resolve()}"
        found = self._docker("ps", "--all", "--quiet", "--filter", label).stdout.split()
        for container in found:
            remove(self.client, container)
        return len(found)

    def _clean_once(self, jobs_dir: Path) -> None:
        """Before the first job in a folder: an engine has it alone, so containers that work there are of a dead one."""
        if jobs_dir not in self._clean:
            self.remove_leftovers(jobs_dir)
            self._clean.add(jobs_dir)

    def image(self, job: JobStart) -> str:
        """The local image for a job: its entry point is ``python3 -m STAGE``."""
        return self.images.format(stage=job.command[job.command.index("-m") + 1])

    def run_arguments(self, job: JobStart, image: str) -> list[str]:
        """Arguments of the docker client; the command is the job's own, not the image's."""
        assert job.folder is not None
        limits = self.limits
        tmp = f"/tmp:rw,exec,mode=1777{f',size={limits.tmp_bytes}' if limits.tmp_bytes else ''}"
        arguments = ["run", "--rm", "--name", job.name, "--network", "none", "--read-only", "--tmpfs", tmp]
        arguments += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", str(limits.pids)]
        if limits.memory_bytes:  # no swap: a job that needs more ends with 137, as on SageMaker
            arguments += ["--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes)]
        if limits.cpus:
            arguments += ["--cpus", str(limits.cpus)]
        arguments += ["--volume", f"{(job.folder / 'ml').resolve()}:/opt/ml"]
        arguments += ["--label", f"{LABEL}={job.folder.parent.resolve()}"]
        if os.geteuid() != 0:  # so that the results are the user's own; SageMaker's containers are root's
            arguments += ["--user", f"{os.geteuid()}:{os.getegid()}"]
        for name, value in job.environment.items():
            arguments += ["--env", f"{name}={value}"]
        return [*arguments, "--entrypoint", job.command[0], image, *job.command[1:]]

    def _wait(self, process: subprocess.Popen[bytes], name: str, on_exit: Callable[[Exit], None]) -> None:
        status = process.wait()
        # 125 is the client's own: the engine refused to run the container, and no program has started.
        message = f"IMAGE_BROKEN: the container {name} could not be started" if status in (125, 126, 127) else ""
        on_exit(Exit(status if status >= 0 else 128 - status, message))

    def _docker(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.client, *arguments], capture_output=True, text=True, check=False, timeout=CLIENT_TIMEOUT_S
        )


class _ContainerHandle:
    """A container that runs. The client's calls take a moment, so each has a thread of its own."""

    def __init__(self, client: str, name: str, process: subprocess.Popen[bytes]) -> None:
        self._client = client
        self._name = name
        self._process = process

    def stop(self) -> None:
        self._signal("TERM")

    def kill(self) -> None:
        self._signal("KILL")

    def _signal(self, signal_name: str) -> None:
        command = [self._client, "kill", "--signal", signal_name, self._name]

        def send() -> None:
            # Fails while the container is being made, and when it has ended, which is what was wanted.
            while self._process.poll() is None:
                done = subprocess.run(command, capture_output=True, check=False, timeout=CLIENT_TIMEOUT_S)
                if done.returncode == 0:
                    return
                time.sleep(SIGNAL_RETRY_S)

        threading.Thread(target=send, name=f"{signal_name}-{self._name}", daemon=True).start()


def remove(client: str, name: str) -> None:
    """Kill and remove a container if there is one of this name."""
    subprocess.run([client, "rm", "--force", name], capture_output=True, check=False, timeout=CLIENT_TIMEOUT_S)


@contextlib.contextmanager
def _log(path: Path | None) -> Iterator[int]:
    """A file descriptor to append to, or /dev/null."""
    descriptor = os.open(path or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
