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
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from job import StageError
from job.documents import write_json_atomically
from splat.cameras import fitted_size
from train import checkpoint

RESERVE = 256 << 20  # for modules, the allocator's rounding and what grows
RESERVED_SHARE = 0.05  # of the device, the same
HOST_SHARE = 0.6  # of the host's free memory that photos may take
FEWEST_GAUSSIANS, SMALLEST_LONG_SIDE = 10_000, 320
PHOTO_SHARE = 0.25  # photos that take less than this of what is needed stay where they are
RANK_RESERVE = (
    1 << 30
)  # of each of several GPUs: another process and the rooms of NCCL, both not there when it is planned
FILE = "memory.json"
CHANGED = ("max_gaussians", "size", "gains")  # of a fingerprint, by a smaller plan

Size = tuple[int, int]  # width, height
T = TypeVar("T")


class OutOfDeviceMemory(Exception):
    """An engine found no room; its text is a clause that says for what."""


@dataclass(frozen=True)
class Room:
    """Bytes: free on the device, of the device, free on the host."""

    free: int
    total: int
    host: int


@dataclass(frozen=True)
class Plan:
    max_gaussians: int
    long_side: int
    pinned_photos: bool = False  # in pinned memory of the host


def model_bytes(gaussians: int, sh_degree: int, gpus: int = 1) -> int:
    """On each of ``gpus`` GPUs."""
    coefficients = (sh_degree + 1) ** 2
    shard = -(-gaussians // gpus) * (4 * (3 * (11 + 3 * coefficients) + 58) + 12 * coefficients)
    return shard + gaussians * (156 if gpus == 1 else 4 * 123 + 172)


def picture_bytes(sizes: list[Size], long_side: int) -> int:
    return 60 * max((width * height for width, height in (fitted_size(*size, long_side) for size in sizes)), default=0)


def photo_bytes(sizes: list[Size], long_side: int) -> int:
    pixels = sum(width * height for width, height in (fitted_size(*size, long_side) for size in sizes))
    return 3 * pixels + 3 * pixels // 4 + 3 * pixels // 16


def needed(plan: Plan, sizes: list[Size], sh_degree: int, gpus: int = 1) -> int:
    """Bytes on each device. A photo in the host's memory needs room for one copy on the device."""
    photos = photo_bytes(sizes, plan.long_side)
    kept = picture_bytes(sizes, plan.long_side) // 20 if plan.pinned_photos else photos
    return model_bytes(plan.max_gaussians, sh_degree, gpus) + picture_bytes(sizes, plan.long_side) + kept


def choose(wanted: Plan, sizes: list[Size], sh_degree: int, room: Room, gpus: int = 1) -> Plan:
    """The plan that comes nearest to ``wanted`` and fits. ``sizes`` of the photos as they are.

    Raises StageError OUT_OF_GPU_MEMORY when even the smallest does not.
    """
    budget = room.free - RESERVE - int(RESERVED_SHARE * room.total) - (RANK_RESERVE if gpus > 1 else 0)
    plan = wanted
    while needed(plan, sizes, sh_degree, gpus) > budget:
        plan = less(plan, sizes, sh_degree, room.host, f"{room.free / 1e9:.1f} GB are free on the device", gpus)
    return plan


def less(plan: Plan, sizes: list[Size], sh_degree: int, host: int, reason: str, gpus: int = 1) -> Plan:
    """Photos to the host when they are much of it and fit there, else half of whatever takes more.

    Half the pixels is 0.7 times the long side. Raises StageError OUT_OF_GPU_MEMORY when nothing is left to halve.
    """
    photos, whole = photo_bytes(sizes, plan.long_side), needed(plan, sizes, sh_degree, gpus)
    in_host = 2 * photos if gpus == 1 else (2 * gpus + 1) * photos  # pinned and as they were loaded, in each process
    if not plan.pinned_photos and photos > PHOTO_SHARE * whole and in_host < HOST_SHARE * host:
        return replace(plan, pinned_photos=True)
    model = model_bytes(plan.max_gaussians, sh_degree, gpus)
    pictures = whole - model
    fewer, smaller = plan.max_gaussians // 2, int(min(plan.long_side, max(map(max, sizes), default=1)) * 0.5**0.5)
    can_be_fewer, can_be_smaller = fewer >= FEWEST_GAUSSIANS, smaller >= SMALLEST_LONG_SIDE
    if can_be_fewer and (model >= pictures or not can_be_smaller):
        return replace(plan, max_gaussians=fewer)
    if can_be_smaller:
        return replace(plan, long_side=smaller)
    raise StageError(
        "OUT_OF_GPU_MEMORY",
        f"The GPU's memory is not enough for {plan.max_gaussians} Gaussians and {len(sizes)} photos of "
        f"{plan.long_side} pixels: {reason}. Use fewer photos or a larger GPU.",
    )


def with_less_when_full(attempt: Callable[[Plan], T], plan: Plan, then: Callable[[Plan, str], Plan]) -> T:
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


def carry_over(folder: Path, plan: Plan, fingerprint: dict[str, Any]) -> None:
    """Let the checkpoint in ``folder`` be resumed with a smaller ``plan``, now and after an interruption.

    ``fingerprint``: of the new training; nothing is done when it differs in more than what a plan changes.
    """
    write_json_atomically(folder / FILE, asdict(plan))
    saved = checkpoint.load(folder)
    if saved is None:
        return
    engine_state, trainer_state = saved
    if same(trainer_state["fingerprint"], fingerprint):
        trainer_state["fingerprint"] = fingerprint
        trainer_state.pop("version")
        checkpoint.save(folder, engine_state, trainer_state)


def same(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return before.keys() == now.keys() and all(now[key] == before[key] for key in now if key not in CHANGED)


def carried_over(folder: Path, wanted: Plan) -> Plan:
    """The plan of an interrupted training in ``folder`` if it is a smaller one, else ``wanted``."""
    try:
        before = Plan(**json.loads((folder / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return wanted
    is_less = before.max_gaussians <= wanted.max_gaussians and before.long_side <= wanted.long_side
    return before if is_less else wanted


def host_room() -> int:
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
