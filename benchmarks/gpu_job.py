"""Everything that is still to be measured on a GPU, in one go: the steps in order of worth, each with a time limit.

    python -m benchmarks gpu_job plush=SFM_FOLDER caliterra=SFM_FOLDER --gsplat FOLDER [--csrc FILE] \\
        [--out FOLDER] [--seconds 570] [--only STEP …] [--list]

A step that fails or runs too long is reported, and the next one tried; a step that succeeded is not run again with the
same --out, nor are rows that are there, so a job that was cut off is simply started again. With --seconds nothing runs
longer than that, and nothing is started that would be lost then. Steps of a scene that was not named are left out.
Under OUT: ``job.json`` (what became of each step), the results, ``logs/``, and the models. ``results.tar.gz``, renewed
after each step, has all of it that is needed elsewhere: unpacked, ``python -m benchmarks training_gpu --adopt FOLDER``
takes it into benchmarks/results.

**What must be there.** No network is used. Python 3.12 with torch (CUDA 12 or 13), numpy, numba, pillow, scipy,
scikit-learn, torchmetrics, imageio, tqdm, pyyaml, packaging, pytest. Besides these wheels, 29 MB in all::

    for="--only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64"
    pip download $for -d WHEELS --no-deps gsplat==1.5.3 faiss-cpu jaxtyping wadler-lindig rich markdown-it-py mdurl \
        pygments pytest-timeout
    pip download $for -d WHEELS pydantic
    pip install --no-index --no-deps --target SITE WHEELS/*.whl && export PYTHONPATH=SITE

faiss finds neighbours when a training begins; pycolmap, moto and the rest of requirements/run.txt are not imported.
FOLDER is a checkout of gsplat v1.5.3; of it only examples/ is used. gsplat's extension: FILE is one that was compiled
for this torch and GPU (csrc.so, or csrc.so.xz; ``python containers/images/build_gsplat.py``); without it gsplat makes
one first (140 s with nvcc and 16 cores), and the step ``extension`` fails, which is about such a file.
With --fused-ssim FOLDER (sources of github.com/rahul-goel/fused-ssim; needs nvcc) the baseline has its own SSIM instead
of a stand-in, whose time is not counted. Where there is no git repository SPACEPORT_COMMIT names the code.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.baseline_gsplat import OUT
from benchmarks.recording import write_json

ROOT = Path(__file__).resolve().parents[1]

GOAL_ROWS = {
    "plush": ("plush", "plush compensated", "plush 100k", "plush 80k"),
    "caliterra": ("caliterra", "caliterra compensated"),
}
SIDES = {"plush": 1200, "caliterra": 1600}
LOG_TAIL = 12  # lines of a step that failed
LEAST_S = 45  # for a step that keeps row by row: to load and for one training
SMALL = 4 << 20  # bytes; larger files are not packed: the models


@dataclass(frozen=True)
class Step:
    """``expected_s``: what it took on an H100, or an estimate; ``limit_s``: it is ended after that.

    ``in_rows``: what it has measured by then is kept.
    """

    name: str
    words: tuple[str, ...]
    expected_s: int
    limit_s: int
    scene: str = ""
    needs_gsplat: bool = False
    in_rows: bool = False


def steps(folders: dict[str, Path], arguments: argparse.Namespace) -> list[Step]:
    """All steps for these scenes, the most valuable first."""
    python, out = sys.executable, str(arguments.out)
    benchmark = (python, "-m", "benchmarks")
    scenes = tuple(f"{name}={folder}" for name, folder in folders.items())
    ours = (*benchmark, "training_gpu", *scenes, "--out", out, "--resume")
    build = (python, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation")
    fused_ssim = (*build, "--target", str(site(arguments.out)), str(arguments.fused_ssim))

    def baseline(scene: str) -> tuple[str, ...]:
        words = ("--gsplat", str(arguments.gsplat), "--sfm", str(folders.get(scene, "")), "--name", scene, "--out", out)
        return *benchmark, "baseline_gsplat", *words, "--long-side", str(SIDES[scene])

    found = [
        Step("environment", (*benchmark, "gpu_job", "--environment"), 40, 300),
        Step("tests", (*benchmark, "gpu_job", "--tests"), 50, 240),
        Step("ours-plush", (*ours, "--only", *GOAL_ROWS["plush"]), 110, 300, "plush", in_rows=True),
        Step("speed", (*ours, "--only", "speed"), 30, 120, "plush"),
        Step("baseline-plush", baseline("plush"), 270, 560, "plush", needs_gsplat=True),
        Step("ours-caliterra", (*ours, "--only", *GOAL_ROWS["caliterra"]), 90, 300, "caliterra", in_rows=True),
        Step("baseline-caliterra", baseline("caliterra"), 450, 900, "caliterra", needs_gsplat=True),
        Step("sizes", (*ours, "--only", "sizes"), 60, 240),
        Step("presets", (*ours, "--only", "draft", "standard", "high"), 180, 400, "plush", in_rows=True),
        Step("ablation", (*ours, "--ablation"), 520, 1200, in_rows=True),
    ]
    if arguments.fused_ssim:
        found.insert(4, Step("fused-ssim", fused_ssim, 60, 180))
    return found


def site(out: Path) -> Path:
    """Where packages go that are built during the job."""
    return out / "site"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", help="NAME=FOLDER that SfM wrote")
    parser.add_argument("--gsplat", type=Path, help="checkout of gsplat v1.5.3")
    parser.add_argument("--csrc", type=Path, help="gsplat's compiled extension, csrc.so or csrc.so.xz")
    parser.add_argument("--fused-ssim", type=Path, help="sources of fused-ssim")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all of it")
    parser.add_argument("--only", nargs="+", help="steps")
    parser.add_argument("--list", action="store_true", help="print the steps and their expected seconds")
    for own in ("--environment", "--tests"):  # steps of the job itself
        parser.add_argument(own, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.environment:
        check_environment()
        return
    if arguments.tests:
        run_tests()
        return
    pairs = [text.split("=", maxsplit=1) for text in arguments.scenes]
    if any(len(pair) != 2 or pair[0] not in SIDES for pair in pairs):
        parser.error(f"name the scenes as NAME=FOLDER; the names are {', '.join(SIDES)}")
    arguments.out = arguments.out.absolute()
    todo = steps({name: Path(folder).absolute() for name, folder in pairs}, arguments)
    unknown = set(arguments.only or ()) - {step.name for step in todo}
    if unknown:
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    if arguments.list:
        for step in todo:
            print(f"{step.name:20}{step.expected_s:5} s expected, {step.limit_s:5} s at most")
        return
    if arguments.csrc:
        install_extension(arguments.csrc)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    job = GpuJob(arguments.out, arguments.seconds)
    job.run([step for step in todo if not arguments.only or step.name in arguments.only], arguments)
    sys.exit(job.failed)


class GpuJob:
    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self._ends = out, time.monotonic() + seconds
        self._file = out / "job.json"
        self.found: dict[str, Any] = json.loads(self._file.read_text()) if self._file.is_file() else {}
        self.failed = 0

    def run(self, todo: list[Step], arguments: argparse.Namespace) -> None:
        named = {text.split("=")[0] for text in arguments.scenes}
        for step in todo:
            reason = self.reason_to_skip(step, named, arguments.gsplat)
            if reason:
                print(f"== {step.name}: {reason}", flush=True)
                continue
            self.found[step.name] = self.one(step)
            write_json(self._file, self.found)
            pack(self.out)

    def reason_to_skip(self, step: Step, named: set[str], gsplat: Path | None) -> str:
        """Empty: it is to be run."""
        if self.found.get(step.name, {}).get("status") == 0:
            return "done before"
        if step.scene and step.scene not in named:
            return f"left out: the scene {step.scene} was not named"
        if step.needs_gsplat and gsplat is None:
            return "left out: no --gsplat FOLDER"
        needed = LEAST_S if step.in_rows else step.expected_s
        if time.monotonic() + needed > self._ends:
            return f"left out: {needed} s are needed, and fewer are left"
        return ""

    def one(self, step: Step) -> dict[str, Any]:
        """Run a step in a process group of its own, so that nothing of it is left when it, or the job, is ended."""
        log = self.out / "logs" / f"{step.name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        limit = min(step.limit_s, max(1.0, self._ends - started))
        path = [str(site(self.out)), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
        print(f"== {step.name}: about {step.expected_s} s", flush=True)
        with log.open("w") as file:
            process = subprocess.Popen(
                step.words, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, process_group=0
            )
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = -signal.SIGKILL
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        seconds = round(time.monotonic() - started, 1)
        lines = log.read_text(errors="replace").splitlines()
        if status:
            self.failed += 1
            print(f"FAILED with {status} after {seconds} s", *lines[-LOG_TAIL:], sep="\n", flush=True)
        else:
            print(f"done after {seconds} s", *lines[-LOG_TAIL:], sep="\n", flush=True)
        return {"status": status, "seconds": seconds, "log": str(log.relative_to(self.out))}


def install_extension(csrc: Path) -> None:
    """Put the compiled extension beside gsplat, unless there is one. Raises SystemExit where gsplat is missing."""
    gsplat = importlib.util.find_spec("gsplat")
    if gsplat is None or not gsplat.submodule_search_locations:
        sys.exit("error: gsplat is not installed")
    target = Path(next(iter(gsplat.submodule_search_locations))) / "csrc.so"
    if not target.is_file():
        data = csrc.read_bytes()
        target.write_bytes(lzma.decompress(data) if csrc.suffix == ".xz" else data)


def pack(out: Path) -> None:
    """``results.tar.gz`` of the results and logs, without models and the example's data."""
    files = [
        *out.glob("*.json"),
        *out.glob("logs/*.txt"),
        *out.glob("gsplat-*/report.json"),
        *out.glob("gsplat-*/log.txt"),
    ]
    with tarfile.open(out / "results.tar.gz", "w:gz") as archive:
        for file in sorted(files):
            if file.stat().st_size < SMALL:
                archive.add(file, file.relative_to(out))


def check_environment() -> None:
    """The device, the versions, the compiled extension, and a few steps of our own kernels. Raises SystemExit."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device")
    import gsplat
    from gsplat.cuda import _backend

    from train import stage
    from train.engines import gpu_available
    from train.gpu import device

    print(torch.cuda.get_device_name(0), torch.__version__, torch.version.cuda, gsplat.__version__)
    print("extension:", getattr(_backend._C, "__file__", "missing"))
    if not gpu_available():
        sys.exit(f"error: {device.fault(device.look())[0]}")
    started = time.monotonic()
    stage.selfcheck()
    print(f"kernels compiled and ten steps taken in {time.monotonic() - started:.1f} s")


def run_tests() -> None:
    """Those that need a GPU. Raises SystemExit: where there is none they would all be skipped, which is no success."""
    import pytest

    from train.engines import gpu_available

    if not gpu_available():
        sys.exit("error: no CUDA device, or no torch and gsplat")
    files = sorted(str(file) for file in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in file.read_text())
    sys.exit(pytest.main(["-m", "gpu", "-q", "-p", "no:cacheprovider", *files]))


if __name__ == "__main__":
    main()
