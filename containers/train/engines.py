"""Chooses the engine: the CPU, one GPU, or several."""

from __future__ import annotations

from train.engine import Engine, Setup
from train.gpu import device


def gpu_available() -> bool:
    """Whether there is a GPU that works. Does not import torch where gsplat is not installed."""
    return not device.fault(device.look())[0]


def open_engine(setup: Setup) -> Engine:
    """The engine that ``setup`` asks for. Imports torch only for GPUs, and numba's kernels only for the CPU."""
    if setup.gpus > 1:
        from train.gpus.engine import GpusEngine

        return GpusEngine(setup)
    if setup.gpus == 1:
        from train.gpu.engine import GpuEngine

        return GpuEngine(setup)
    from train.cpu.engine import CpuEngine

    return CpuEngine(setup)
