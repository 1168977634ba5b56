"""The GPU variant of the training image, as far as it can be judged without a GPU.

No part of continuous integration: `make gpu-image` builds the image (3 GB of wheels, half an hour of compilation) and
runs these tests. What needs a GPU is in docs/images.md with its command.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from deploy.images.docker import Docker
from spaceport.jobs.docker import Limits
from tests.images.player import GIB, OPTIONS, Player
from tests.images.test_image_content import inside, report_contents

TAG = "gpu"
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")
SITE = "/opt/venv/lib/python3.11/site-packages"
LIMITS = Limits(memory_bytes=4 * GIB)


@pytest.fixture(scope="module")
def image(engine: Docker) -> str:
    name = f"spaceport-train:{TAG}"
    if engine.docker("image", "inspect", name, check=False).returncode:
        pytest.skip(f"there is no image {name}: make gpu-image")
    return name


def python(engine: Docker, image: str, program: str) -> subprocess.CompletedProcess[str]:
    """Python lines in the image, without network, compiler or anything to write to but /tmp."""
    return inside(engine, image, f"python3 -c '{program}'")


def test_extension_is_loaded_and_not_compiled(engine: Docker, image: str) -> None:
    program = """
import shutil, torch
from gsplat import csrc
from gsplat.cuda._backend import _C
assert _C is csrc
assert not [name for name in ("nvcc", "g++", "gcc", "cc") if shutil.which(name)]
print(csrc.__file__, torch.version.cuda)
"""
    done = python(engine, image, program)
    assert done.stdout.split() == [f"{SITE}/gsplat/csrc.so", "12.8"], done.stderr


def test_torch_has_machine_code_for_every_gpu(engine: Docker, image: str) -> None:
    """Machine code runs on the same major version of the hardware from its minor version on; PTX would need a newer
    driver. gsplat's own code is listed when it is compiled (build_gsplat.py).
    """
    flags = python(engine, image, "import torch; print(torch._C._cuda_getArchFlags())").stdout.split()
    have = {(int(flag[3:-1]), int(flag[-1])) for flag in flags if flag.startswith("sm_")}
    for name in ARCHITECTURES:
        major, minor = int(name[3:-1]), int(name[-1])
        assert any(has[0] == major and has[1] <= minor for has in have), f"{name}: torch has {flags}"


def test_every_library_is_found(engine: Docker, image: str) -> None:
    """ldd of gsplat's module, with torch's libraries where torch has loaded them from."""
    program = f"""
libs={SITE}/torch/lib:$(ls -d {SITE}/nvidia/*/lib | tr '\\n' ':')
LD_LIBRARY_PATH=$libs ldd {SITE}/gsplat/csrc.so
"""
    done = inside(engine, image, program)
    assert done.returncode == 0
    assert "libtorch_cuda.so" in done.stdout
    assert "not found" not in done.stdout


def test_selfcheck(engine: Docker, image: str) -> None:
    """The extension loads, and NVRTC compiles our kernels for every kind of GPU: without one, as in a build."""
    done = inside(engine, image, "python3 -m train --selfcheck")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "train: ready"), done.stderr


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (f"rm {SITE}/gsplat/csrc.so", "No module named 'gsplat.csrc'"),
        (f"rm {SITE}/nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "libnvrtc.so.12"),
        ("echo nonsense >> /opt/spaceport/train/gpu/raster.cu", "raster.cu cannot be compiled for sm_75"),
    ],
)
def test_selfcheck_fails(spoil: str, message: str, engine: Docker, image: str) -> None:
    """Without the compiled extension (gsplat would compile at run time), without NVRTC, with a broken kernel."""
    program = f"{spoil} && exec python3 -m train --selfcheck"
    done = engine.docker("run", "--rm", "--network", "none", "--entrypoint", "sh", image, "-c", program, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "ready" not in done.stdout


def test_job_fails_without_a_gpu(engine: Docker, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine.host:
        monkeypatch.setenv("DOCKER_HOST", engine.host)
    sfm = tmp_path / "sfm"
    sfm.mkdir()
    (sfm / "scene.json").write_text("{}")
    player = Player(tmp_path, "spaceport-{stage}:" + TAG, engine.client)
    try:
        player.put_result("sfm", sfm)
        ran = player.run("train", OPTIONS["train"], limits=LIMITS)
    finally:
        player.close()
    assert ran.exit_status == 1
    assert ran.message.startswith("NO_GPU: ")
    assert ran.outputs == []
    assert ran.verdict.code == "NO_GPU"


def test_bill_of_materials(engine: Docker, image: str) -> None:
    report_contents(engine, image, "train-gpu")
