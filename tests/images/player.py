"""Plays SageMaker around the images: the control plane's requests, the embedded SageMaker, containers as its jobs.

Nothing of the contract is written a second time here: the request comes from functions/stages/sagemaker_jobs.py with
the settings of template.yaml, the tree under /opt/ml and the environment from spaceport/jobs, the
verdict from functions/stages/verdicts.py.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest

from base import layout
from base.settings import Settings, read_settings
from base.stages import STAGE_NAMES, StageName, find_stage
from deploy.images.docker import Docker
from spaceport.aws.storage import Storage
from spaceport.base.clock import RealClock
from spaceport.jobs.docker import DockerRunner, Limits
from spaceport.jobs.runner import Exit, Handle, JobStart
from spaceport.jobs.sagemaker import SageMaker
from spaceport.stack.template import load_stack
from stages import sagemaker_jobs
from stages.verdicts import Verdict, judge

ROOT = Path(__file__).parents[2]
IMAGES = "spaceport-{stage}:test"
# The SageMaker SDK and the linter, see sdk-requirements.txt.
SDK = Path(os.environ.get("SPACEPORT_SAGEMAKER_SDK") or ROOT / "build" / "images" / "sdk")
BUCKET = "photos-and-results"
ACCOUNT, REGION = "123456789012", "us-east-1"
ULID = "01KD8E7J9Q3M5V8X2Z4B6C7D9F"
JOB = f"garden-{ULID}"
STOP_LIMIT_S = 60  # docs/contracts.md: after SIGTERM a stage has ended within this
END_TIMEOUT_S = 400
LOG_POLL_S = 0.05
GIB = 1 << 30
# Short, but nothing is left out.
OPTIONS: dict[StageName, dict[str, Any]] = {
    "sfm": {"preset": "draft", "max_image_long_side": 640},
    "train": {"preset": "draft", "max_iterations": 120, "max_gaussians": 3000, "max_image_long_side": 320},
    "compress": {"preset": "draft", "title": "A garden"},
}
PROMISED = {
    "sfm": ("sparse/cameras.bin", "sparse/images.bin", "sparse/points3D.bin", "scene.json", "photos.json"),
    "train": ("scene.ply", "metrics.json"),
    "compress": ("scene.sog", "scene.spz", "index.html", "settings.json", "report.json", "report.html", "poster.jpg"),
}


def report_missing(problem: str) -> NoReturn:
    """Fail in CI, skip loudly on a laptop: the images are never passed by not looking."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"the images cannot be tested: {problem}", pytrace=False)
    print(f"\n*** IMAGES NOT TESTED: {problem} ***", file=sys.stderr)
    pytest.skip(f"IMAGES NOT TESTED: {problem}")


def need_root() -> None:
    """The job's folders are given to root, as SageMaker does."""
    if os.geteuid() != 0:
        report_missing("only root can give folders to root, as SageMaker does: sudo -E make images-test")


def stage_settings() -> Settings:
    """The environment that template.yaml, with its defaults, gives the function start_job."""
    function = load_stack(ROOT / "template.yaml", region=REGION, account_id=ACCOUNT).function("StartJobFunction")
    return read_settings(function.environment)


def job_row(options: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """A row of the job table as start_job reads it."""
    return {
        "job_id": JOB,
        "scene": "garden",
        "bucket": BUCKET,
        "created_at": "2026-01-31T12:00:00Z",
        "options": options,
        "results": results,
        "estimated_usd": 1.25,
    }


def stage_request(stage: StageName, options: dict[str, Any], attempt: int = 0) -> dict[str, Any]:
    """What start_job sends to SageMaker for a stage whose earlier stages have succeeded."""
    done = {
        earlier: {
            "output_uri": layout.uri(BUCKET, layout.output_prefix(JOB, earlier, job_name(earlier, 0))),
            "cost_usd": 0.1,
        }
        for earlier in ("sfm", "train")
        if earlier != stage
    }
    return sagemaker_jobs.request(stage, job_row(options, done), job_name(stage, attempt), stage_settings())


def job_name(stage: StageName, attempt: int) -> str:
    return layout.job_name("spaceport", JOB, stage, attempt)


@dataclass
class Ran:
    """What was seen of one job, from the container and from SageMaker's side."""

    stage: str
    exit_status: int
    message: str  # the stage's own reason, /opt/ml/output/failure or message
    outputs: list[str]  # files in the output folder when the container had ended
    stored: list[str]  # the objects of its output in S3
    verdict: Verdict  # of check_status
    log: str
    seconds: float
    stop_seconds: float | None  # from the stop request to the end
    progress: list[dict[str, Any]]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log lines of one event."""
        records = [json.loads(line) for line in self.log.splitlines() if line.startswith('{"time"')]
        return [record for record in records if record["event"] == name]


class _Recorder(DockerRunner):
    """Makes the tree as SageMaker's is (root's, mode 0755) and notes what the container left in it."""

    def __init__(self, images: str, limits: Limits, client: str, entrypoint_of_image: bool) -> None:
        super().__init__(images, limits, client)
        self.entrypoint_of_image = entrypoint_of_image
        self.exit_status = -1
        self.message = ""
        self.outputs: list[str] = []

    def start(self, job: JobStart, on_exit: Callable[[Exit], None]) -> Handle:
        assert job.folder is not None
        root = job.folder / "ml"
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.chown(path, 0, 0)

        def record(result: Exit) -> None:
            self.exit_status = result.status
            is_training = "TrainingJobName" in job.request
            output = root / ("model" if is_training else "processing/output")
            reason = root / "output" / ("failure" if is_training else "message")
            self.outputs = sorted(str(p.relative_to(output)) for p in output.rglob("*") if p.is_file())
            self.message = reason.read_text(encoding="utf-8") if reason.is_file() else ""
            on_exit(result)

        return super().start(job, record)

    def run_arguments(self, job: JobStart, image: str) -> list[str]:
        arguments = super().run_arguments(job, image)
        if not self.entrypoint_of_image:
            return arguments
        # `docker run IMAGE train`, as SageMaker does for a request without ContainerEntrypoint
        at = arguments.index("--entrypoint")
        extra = ["train"] if "TrainingJobName" in job.request else []
        return [*arguments[:at], image, *extra]


@dataclass
class Player:
    """An S3 bucket and a SageMaker whose jobs are containers of the images ``images`` ("name-{stage}:tag")."""

    folder: Path
    images: str
    client: str
    storage: Storage = field(init=False)

    def __post_init__(self) -> None:
        self.storage = Storage(self.folder / "store", ACCOUNT, REGION)
        self.storage.create_bucket(BUCKET)

    @classmethod
    def open(cls, engine: Docker, images: Callable[[str], str], folder: Path) -> Player:
        """A player with an empty bucket, all three images built."""
        for stage in STAGE_NAMES:
            images(stage)
        if engine.host:
            os.environ["DOCKER_HOST"] = engine.host
        return cls(folder, IMAGES, engine.client)

    def close(self) -> None:
        self.storage.close()

    # What lies in S3 before a stage

    def put_photos(self, photos: list[Path]) -> None:
        """Uploads, and the manifest that Validate writes of them."""
        for path in photos:
            self.storage.put_file(BUCKET, f"uploads/garden/{path.name}", path)
        manifest = [{"prefix": f"s3://{BUCKET}/uploads/garden/"}, *(path.name for path in photos)]
        self.storage.put_bytes(BUCKET, layout.manifest_key(JOB), json.dumps(manifest).encode())

    def put_result(self, stage: StageName, folder: Path) -> None:
        """The output of an earlier stage."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = layout.output_prefix(JOB, stage, job_name(stage, 0)) + path.relative_to(folder).as_posix()
                self.storage.put_file(BUCKET, key, path)

    def get_result(self, stage: StageName, folder: Path, attempt: int = 0) -> Path:
        """The output of a stage, as files."""
        prefix = layout.output_prefix(JOB, stage, job_name(stage, attempt))
        for key in self.storage.list(BUCKET, prefix):
            self.storage.copy_to(BUCKET, key, folder / key.removeprefix(prefix))
        return folder

    def checkpoints(self) -> list[str]:
        prefix = layout.checkpoints_prefix(JOB)
        return [key.removeprefix(prefix) for key in self.storage.list(BUCKET, prefix)]

    # Running

    def run(
        self,
        stage: StageName,
        options: dict[str, Any] | None = None,
        *,
        attempt: int = 0,
        limits: Limits | None = None,
        stop_when: Callable[[dict[str, Any]], bool] | None = None,
        stop_at_event: str | None = None,
        jobs_dir: Path | None = None,
        change: Callable[[dict[str, Any]], None] = lambda request: None,
        entrypoint_of_image: bool = False,
    ) -> Ran:
        """Run one job to its end. ``stop_when(progress)``, or a line of the log with the event ``stop_at_event``, asks
        SageMaker to stop it; ``change`` spoils the request.
        """
        request = stage_request(stage, options or {"preset": "draft"}, attempt)
        change(request)
        kind = "Training" if find_stage(stage).is_training else "Processing"
        name = request[f"{kind}JobName"]
        limits = limits or Limits(memory_bytes=4 * GIB)
        runner = _Recorder(self.images, limits, self.client, entrypoint_of_image)
        ended = threading.Event()
        progress: list[dict[str, Any]] = []
        stopped_at: list[float] = []

        def on_event(_source: str, _kind: str, detail: dict[str, Any], _resources: list[str]) -> None:
            if detail[f"{kind}JobStatus"] in ("Completed", "Failed", "Stopped"):
                ended.set()

        def stop_at() -> None:
            if log.is_file() and f'"event": "{stop_at_event}"' in log.read_text(errors="replace"):
                stop()
            elif not ended.is_set():
                clock.call_later(LOG_POLL_S, stop_at)

        def stop() -> None:
            stopped_at.append(time.monotonic())
            sagemaker.call(f"Stop{kind}Job", {f"{kind}JobName": name})

        def on_progress(_name: str, news: dict[str, Any]) -> None:
            progress.append(news)
            if stop_when and not stopped_at and stop_when(news):
                stop()

        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{name}.log"
        log.unlink(missing_ok=True)
        started = time.monotonic()
        with RealClock() as clock:
            sagemaker = SageMaker(
                clock,
                self.storage,
                runner,
                on_event,
                jobs_dir=jobs_dir or self.folder / "jobs",
                logs=logs,
                on_progress=on_progress,
            )
            sagemaker.call(f"Create{kind}Job", request)
            if stop_at_event:
                stop_at()
            if not ended.wait(END_TIMEOUT_S):
                raise TimeoutError(f"{name} has not ended after {END_TIMEOUT_S} s; its log:\n{log.read_text()[-3000:]}")
            finished = time.monotonic()
            description = sagemaker.call(f"Describe{kind}Job", {f"{kind}JobName": name})
        prefix = layout.output_prefix(JOB, stage, name)
        return Ran(
            stage=stage,
            exit_status=runner.exit_status,
            message=runner.message,
            outputs=runner.outputs,
            stored=[key.removeprefix(prefix) for key in self.storage.list(BUCKET, prefix)],
            verdict=judge(_with_datetimes(description)),
            log=log.read_text(errors="replace") if log.is_file() else "",
            seconds=finished - started,
            stop_seconds=finished - stopped_at[0] if stopped_at else None,
            progress=progress,
        )


def _with_datetimes(description: dict[str, Any]) -> dict[str, Any]:
    """Times as boto3 gives them."""
    return {
        key: datetime.fromtimestamp(value).astimezone() if key.endswith("Time") else value
        for key, value in description.items()
    }
