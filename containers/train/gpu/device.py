"""Whether there is a GPU that training can use, and if not, what was found instead and what to do."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from job import StageError
from train.gpu import launches
from train.gpu.nvrtc import compile_cubin, open_nvrtc
from train.memory import FreeMemory, free_host_bytes

REQUIRED = "SPACEPORT_REQUIRE_GPU"  # "1" in the GPU image: no training on the CPU there
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")  # as gsplat is compiled for: T4, A100, A10G, L4, H100
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True)
class Found:
    """What was seen, in this order; the first of it that is wrong ends the search."""

    missing: str = ""  # a package that is not installed
    driver: int = 0  # the CUDA release that the driver is for, 12080 = 12.8; 0 without a driver
    needed: int = 0  # the same, of torch
    status: int = 0  # of the driver's start
    devices: int = 0
    name: str = ""
    failure: str = ""  # of the first kernels


@dataclass(frozen=True)
class Choice:
    gpu: bool
    reason: str


def choose() -> Choice:
    """Which engine trains, and why. Raises StageError NO_GPU when a GPU is required and there is none to use."""
    return choose_from(look(), os.environ.get(REQUIRED) == "1")


def choose_from(found: Found, required: bool) -> Choice:
    what, advice = fault(found)
    if not what:
        return Choice(True, f"{found.name} is there")
    if required:
        raise StageError("NO_GPU", f"This image trains on a GPU, and {what}. {advice}")
    return Choice(False, what)


def fault(found: Found) -> tuple[str, str]:
    """(what is wrong, what to do); both empty when nothing is."""
    driver, needed = release(found.driver), release(found.needed)
    started = found.status in (0, NO_DEVICE)
    faults = [
        (found.missing, f"{found.missing} is not installed", "Install spaceport[gpu]."),
        (
            not found.driver,
            "no NVIDIA driver is there (libcuda.so.1)",
            "Choose an instance type with an NVIDIA GPU, or give the container one (docker run --gpus all).",
        ),
        (
            found.driver // 1000 < found.needed // 1000,
            f"the driver is too old: it is for CUDA {driver}, and torch needs {needed}",
            "Install a newer driver, or choose an instance type that has one.",
        ),
        (
            not started,
            f"the NVIDIA driver does not start (error {found.status})",
            "Restart the machine or choose another.",
        ),
        (
            not found.devices,
            "the NVIDIA driver sees no GPU",
            "Choose an instance type with one, or let the container see it (docker run --gpus all).",
        ),
        (
            "no kernel image" in found.failure,
            f"{found.name} is not of a kind that this image has code for ({', '.join(ARCHITECTURES)})",
            "Choose an instance type with a T4, A10G, A100, L4, L40S or H100.",
        ),
        (
            found.failure,
            f"{found.name} does not work: {found.failure}",
            "Start again; if it happens twice, choose another machine.",
        ),
    ]
    return next(((what, advice) for wrong, what, advice in faults if wrong), ("", ""))


def release(number: int) -> str:
    """12080 is 12.8."""
    return f"{number // 1000}.{number % 1000 // 10}"


def look() -> Found:
    """Does not import torch where gsplat is not installed."""
    for package in ("gsplat", "torch"):
        if importlib.util.find_spec(package) is None:
            return Found(missing=package)
    import torch

    major, minor = map(int, str(torch.version.cuda or "0.0").split(".")[:2])
    found = replace(ask_driver(ctypes.CDLL), needed=1000 * major + 10 * minor)
    return found if fault(found)[0] else try_device(found, torch)


def ask_driver(load: Callable[[str], Any]) -> Found:
    """Release, status and number of devices. ``load`` opens a library or raises OSError."""
    try:
        cuda = load("libcuda.so.1")
    except OSError:
        return Found()
    version, devices = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    status = cuda.cuInit(0)
    if not status:
        status = cuda.cuDeviceGetCount(ctypes.byref(devices))
    return Found(driver=version.value, status=status, devices=devices.value)


def try_device(found: Found, torch: Any) -> Found:
    """Launch a kernel of torch and one of gsplat: code for another kind of GPU only fails when it is launched."""
    if not torch.cuda.is_available():
        return replace(found, name="The GPU", failure="torch cannot use it")
    name = torch.cuda.get_device_name(0)
    try:
        from train.gpu import gsplat_api

        gsplat_api.try_kernel()
    except (RuntimeError, AttributeError, ImportError) as error:
        return replace(found, name=name, failure=str(error).strip().split("\n", maxsplit=1)[0])
    return replace(found, name=name)


def count(most: int | None) -> int:
    """GPUs to train on: all that CUDA_VISIBLE_DEVICES shows, but not more than ``most``."""
    import torch

    seen: int = torch.cuda.device_count()
    return max(1, min(seen, most or seen))


def free_memory(gpus: int = 1) -> FreeMemory:
    """Free and total bytes of the fullest of the first ``gpus`` GPUs, and free bytes of the host."""
    import torch

    free, total = map(min, zip(*(torch.cuda.mem_get_info(gpu) for gpu in range(gpus)), strict=True))
    return FreeMemory(free, total, free_host_bytes())


def check_installation() -> None:
    """Without a GPU, for the GPU image: gsplat's extension loads, and our kernels compile for every kind of GPU."""
    if os.environ.get(REQUIRED) != "1":
        return
    import torch

    importlib.import_module("gsplat.csrc")
    nvrtc = open_nvrtc(str(torch.version.cuda))
    for source, constants in launches.SOURCES.items():
        for architecture in ARCHITECTURES:
            compile_cubin(nvrtc, source, constants, architecture)
