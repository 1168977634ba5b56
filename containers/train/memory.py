"""What fits into a device's memory: how many Gaussians, how large the photos, and where they are kept.

Decided from numbers before the first step, and again with less when the device is full all the same. Bytes, with K SH
coefficients a Gaussian, P the pixels of the largest photo and S the pixels of all photos:

    model    = max_gaussians * (4 * (3 (11 + 3 K) + 58) + 12 K + 156)
    pictures = 60 P
    photos   = 3 S (1 + 1/4 + 1/16)

model: parameters and two moments (11 + 3 K floats each); 37 floats of our buffers and 21 of gsplat's; a copy of SH for
a checkpoint; six tile intersections of 26 bytes (key, id, their room in the sort, hits). pictures: the image, its
gradient and three slopes of SSIM, with three channels of floats each. photos: bytes at full, half and quarter size.

Of G > 1 GPUs each has a shard of the model, all photos, and what is sent, at most of all Gaussians:

    model = max_gaussians / G * (4 * (3 (11 + 3 K) + 58) + 12 K) + max_gaussians * (4 * 123 + 172)

123 floats: 24 of records and sums and 11 of projections of all views; 28 while what is seen is gathered and sent, and
13 of what comes; 29 of the camera's records, sums and projection; 9 of sums that go back, and 9 that come. 172 bytes:
six tile intersections, and two numbers that say what is sent.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from job import StageError
from splat.cameras import fitted_size

RESERVE = 256 << 20  # for modules, the allocator's rounding and what grows
RESERVED_SHARE = 0.05  # of the device, the same
HOST_SHARE = 0.6  # of the host's free memory that photos may take
FEWEST_GAUSSIANS, SMALLEST_LONG_SIDE = 10_000, 320
PHOTO_SHARE = 0.25  # photos that take less than this of what is needed stay where they are
# Of each of several GPUs: another process and the buffers of NCCL, both not there when it is planned.
RANK_RESERVE = 1 << 30

Size = tuple[int, int]  # width, height
T = TypeVar("T")


class OutOfDeviceMemory(Exception):
    """An engine found no room; its text is a clause that says for what."""


@dataclass(frozen=True)
class FreeMemory:
    device_bytes: int
    total_bytes: int  # of the device, free or not
    host_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """What a training is given, so that it fits."""

    max_gaussians: int
    long_side: int
    pinned_photos: bool = False  # in pinned memory of the host


def model_bytes(gaussians: int, sh_degree: int, gpus: int = 1) -> int:
    """Bytes of a model on each of ``gpus`` GPUs."""
    coefficients = (sh_degree + 1) ** 2
    shard = -(-gaussians // gpus) * (4 * (3 * (11 + 3 * coefficients) + 58) + 12 * coefficients)
    return shard + gaussians * (156 if gpus == 1 else 4 * 123 + 172)


def picture_bytes(sizes: list[Size], long_side: int) -> int:
    return 60 * max((width * height for width, height in (fitted_size(*size, long_side) for size in sizes)), default=0)


def photo_bytes(sizes: list[Size], long_side: int) -> int:
    pixels = sum(width * height for width, height in (fitted_size(*size, long_side) for size in sizes))
    return 3 * pixels + 3 * pixels // 4 + 3 * pixels // 16


def needed_bytes(plan: MemoryPlan, sizes: list[Size], sh_degree: int, gpus: int = 1) -> int:
    """Bytes on each device. A photo in the host's memory needs room for one copy on the device."""
    photos = photo_bytes(sizes, plan.long_side)
    kept = picture_bytes(sizes, plan.long_side) // 20 if plan.pinned_photos else photos
    return model_bytes(plan.max_gaussians, sh_degree, gpus) + picture_bytes(sizes, plan.long_side) + kept


def fitting(wanted: MemoryPlan, sizes: list[Size], sh_degree: int, free: FreeMemory, gpus: int = 1) -> MemoryPlan:
    """The plan that comes nearest to ``wanted`` and fits. ``sizes`` of the photos as they are.

    Raises StageError OUT_OF_GPU_MEMORY when even the smallest does not.
    """
    reserved = RESERVE + int(RESERVED_SHARE * free.total_bytes) + (RANK_RESERVE if gpus > 1 else 0)
    plan, reason = wanted, f"{free.device_bytes / 1e9:.1f} GB are free on the device"
    while needed_bytes(plan, sizes, sh_degree, gpus) > free.device_bytes - reserved:
        plan = smaller(plan, sizes, sh_degree, free.host_bytes, reason, gpus)
    return plan


def smaller(
    plan: MemoryPlan, sizes: list[Size], sh_degree: int, host_bytes: int, reason: str, gpus: int = 1
) -> MemoryPlan:
    """Photos to the host when they are much of it and fit there, else half of whatever takes more.

    Half the pixels is 0.7 times the long side. Raises StageError OUT_OF_GPU_MEMORY when nothing is left to halve.
    """
    photos, whole = photo_bytes(sizes, plan.long_side), needed_bytes(plan, sizes, sh_degree, gpus)
    in_host = 2 * photos if gpus == 1 else (2 * gpus + 1) * photos  # pinned and as they were loaded, in each process
    if not plan.pinned_photos and photos > PHOTO_SHARE * whole and in_host < HOST_SHARE * host_bytes:
        return replace(plan, pinned_photos=True)
    model = model_bytes(plan.max_gaussians, sh_degree, gpus)
    pictures = whole - model
    fewer, shorter = plan.max_gaussians // 2, int(min(plan.long_side, max(map(max, sizes), default=1)) * 0.5**0.5)
    can_be_fewer, can_be_shorter = fewer >= FEWEST_GAUSSIANS, shorter >= SMALLEST_LONG_SIDE
    if can_be_fewer and (model >= pictures or not can_be_shorter):
        return replace(plan, max_gaussians=fewer)
    if can_be_shorter:
        return replace(plan, long_side=shorter)
    raise StageError(
        "OUT_OF_GPU_MEMORY",
        f"The GPU's memory is not enough for {plan.max_gaussians} Gaussians and {len(sizes)} photos of "
        f"{plan.long_side} pixels: {reason}. Use fewer photos or a larger GPU.",
    )


def retried_when_full(
    attempt: Callable[[MemoryPlan], T], plan: MemoryPlan, then: Callable[[MemoryPlan, str], MemoryPlan]
) -> T:
    """``attempt`` with ``plan``, and again with what ``then`` makes of plan and reason each time the device is full."""
    while True:
        try:
            return attempt(plan)
        except OutOfDeviceMemory as error:
            reason = str(error)
        gc.collect()  # here the exception is gone, and with it the engine that its traceback held
        plan = then(plan, reason)


def most_opaque(logits: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Rows of the ``most`` Gaussians with the highest opacity, in their order."""
    if len(logits) <= most:
        return np.arange(len(logits))
    return np.sort(np.argsort(-logits, kind="stable")[:most])


def free_host_bytes() -> int:
    """Bytes that this process can still have, as Linux and its container's limit say; 0 when neither is known."""
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no such file, or "max": no limit
    return max(0, min(free, default=0))
