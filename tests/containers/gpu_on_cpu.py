"""The GPU engine without a GPU: its kernels run on the CPU, gsplat's are the tests' reference (``gsplat_on_cpu``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from train.engine import Engine, Setup, TrainingPhoto

GSPLAT = Path(__file__).with_name("gsplat_on_cpu")


def prepare(kernels: Path) -> None:
    """Let ``GpuEngine`` of this process run on the device "cpu". ``kernels``: a folder for them."""
    import torch

    from tests.containers.cuda_on_cpu import compile_for_cpu
    from train.gpu import raster

    torch.set_num_threads(1)
    torch.cuda.get_device_name = lambda _device: "CPU"
    raster.load_kernels = lambda source, constants, _device: compile_for_cpu({source: constants}, kernels)


def place(kernels: Path, rank: int) -> tuple[str, str]:
    """For ``gpus.engine.Start``."""
    del rank
    prepare(kernels)
    return "cpu", "gloo"


def full_on_1(kernels: Path, rank: int) -> tuple[str, str]:
    """As ``place``, but GPU 1 has no room for a step."""
    import torch

    from train.gpus.raster import ShardRasterizer

    def refuse(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("no room")

    if rank == 1:
        ShardRasterizer.forward = refuse  # type: ignore[method-assign, assignment]
    return place(kernels, rank)


def on_one_gpu(
    kernels: Path, photos: list[TrainingPhoto], state: dict[str, NDArray[Any]], use: Callable[[Engine], Any]
) -> Any:
    """What ``use`` returns for an engine of one GPU that goes on from ``state``. For a process of its own."""
    prepare(kernels)
    from train.gpu.engine import GpuEngine

    degree = int((len(state["value_sh"]) // 3) ** 0.5) - 1
    engine = GpuEngine(Setup(photos, len(state["value_means"]) + 11, degree, 7, gpus=1), device="cpu")
    engine.restore(state)
    return use(engine)
