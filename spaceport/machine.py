"""What this machine can do: processor, memory, GPU, and the versions that matter to a result."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from spaceport.stack.root import CONTAINERS
from spaceport.stack.stages import STAGE_NAMES

PACKAGES = ("pycolmap", "numba", "numpy", "faiss-cpu", "pillow", "moto", "torch", "gsplat")
MEMORY_NEEDED_GIB = 4
DISK_NEEDED_GIB = 5


@dataclass(frozen=True)
class Finding:
    what: str
    value: str
    ok: bool = True
    advice: str = ""


def cpu_model() -> str:
    """The processor's name as the system reports it, e.g. for benchmark results."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use; fewer than the machine has inside a container with a limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def instruction_set() -> str:
    """The widest vector unit numba can use; it decides the speed of training on a CPU."""
    import llvmlite.binding

    features = llvmlite.binding.get_host_cpu_features()
    for feature, name in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("neon", "NEON")):
        if features.get(feature):
            return name
    return "no vector unit known"


def gpu() -> Finding:
    """Whether training would run on a GPU, and if not, why."""
    smi = shutil.which("nvidia-smi")
    name = ""
    if smi:
        query = [smi, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        name = answer.stdout.strip().splitlines()[0] if answer.returncode == 0 and answer.stdout.strip() else ""
    if not name:
        return Finding("GPU", "none: training runs on the CPU")
    missing = [package for package in ("torch", "gsplat") if importlib.util.find_spec(package) is None]
    if missing:
        advice = f"{' and '.join(missing)} missing: pip install 'spaceport[gpu]' lets training use it"
        return Finding("GPU", name, ok=False, advice=advice)
    import torch

    if not torch.cuda.is_available():
        return Finding(
            "GPU", name, ok=False, advice="torch sees no CUDA device; compare its CUDA version with the driver's"
        )
    return Finding("GPU", f"{name}, torch {torch.__version__}")


def kernels() -> Finding:
    """The folder that stages keep compiled kernels in, as they find it themselves."""
    program = "from splat.processor import cache_folder; print(cache_folder() or '')"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(CONTAINERS)}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    if answer.returncode != 0:
        advice = answer.stderr.strip().rpartition("\n")[2]
        return Finding("Compiled kernels", "no folder for them can be written", ok=False, advice=advice)
    return Finding("Compiled kernels", answer.stdout.strip() or f"beside their sources in {CONTAINERS}")


def versions() -> dict[str, str]:
    """Installed versions of the packages that shape a result; absent ones are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def survey(folder: Path) -> list[Finding]:
    """Everything `spaceport check` prints; ``folder`` is where results would go."""
    findings = [
        Finding("Python", platform.python_version()),
        Finding("Processor", f"{cpu_model()}, {cores()} cores, {instruction_set()}"),
    ]
    memory = memory_gib()
    if memory is not None:
        advice = "large photo sets will not fit; use a smaller preset" if memory < MEMORY_NEEDED_GIB else ""
        findings.append(Finding("Memory", f"{memory:.1f} GiB", memory >= MEMORY_NEEDED_GIB, advice))
    free = shutil.disk_usage(folder).free / 2**30
    findings.append(
        Finding(
            "Free disk",
            f"{free:.1f} GiB",
            free >= DISK_NEEDED_GIB,
            "" if free >= DISK_NEEDED_GIB else "free some space",
        )
    )
    findings += [gpu(), kernels()]
    findings += [Finding(package, version) for package, version in versions().items()]
    return findings


def compile_kernels() -> None:
    """Check that each stage program starts, and compile its kernels into the cache.

    Raises RuntimeError with the program's own words when one cannot start.
    """
    environment = {**os.environ, "PYTHONPATH": str(CONTAINERS)}
    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(lambda stage: _run_python(["-m", stage, "--selfcheck"], environment), STAGE_NAMES))


def _run_python(arguments: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if answer.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments[:2])} cannot start:\n{answer.stdout}{answer.stderr}")
