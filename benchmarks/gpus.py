"""GPUs by their data sheets, the newest result that was measured on one, and what it lets expect of the others."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.recording import RESULTS, read_result
from train.presets import TrainingPreset
from train.schedule import Schedule


class Gpu(NamedTuple):
    flops: float  # FP32 operations a second, without matrix units
    bandwidth: float  # bytes a second of its memory


GPUS = {
    "H200": Gpu(67.0e12, 4.80e12),
    "H100": Gpu(67.0e12, 3.35e12),
    "L4": Gpu(30.3e12, 0.300e12),
    "T4": Gpu(8.1e12, 0.320e12),
}
MAKER = ("NVIDIA", "Tesla")
ASPECT = 3 / 4  # of a photo


def model_of(device: str) -> str:
    """ "H100" for "NVIDIA H100 80GB HBM3": the first word that is not the maker's."""
    words = [word for word in device.split() if word not in MAKER]
    return words[0] if words else "unknown"


def result_name(device: str) -> str:
    """Of the file in benchmarks/results with what training_gpu.py measured on this device."""
    return f"training-{model_of(device).lower()}"


def newest() -> tuple[str, dict[str, Any]]:
    """(model, result) of the newest of these files. Raises SystemExit where there is none."""
    found = [(model, read_result(f"training-{model.lower()}", RESULTS)) for model in GPUS]
    found = [(model, result) for model, result in found if result]
    if not found:
        raise SystemExit("error: no GPU was measured yet: python -m benchmarks training_gpu")
    return max(found, key=lambda pair: str(pair[1]["date"]))


def iteration_ms(speed: dict[str, Any], own: str, preset: TrainingPreset, device: str) -> float:
    """Computed milliseconds of an iteration on ``device``, the mean over the preset's schedule; ``speed``: of ``own``.

    blend (P / P0) s F0 / F + rest (N / N0) B0 / B: blending is limited by arithmetic and grows with the pixels P,
    everything else by memory and grows with the Gaussians N. P0, N0 and both times are those of ``speed``; s is the
    mean share of the pixels over the schedule of resolutions, F and B are FP32 operations and bytes a second.
    """
    blend = sum(us for kernel, us in speed["kernels_us"].items() if kernel.startswith("blend")) / 1e3
    rest = speed["all_kernels_us"] / 1e3 - blend
    pixels = preset.long_side**2 * ASPECT / (speed["image"][0] * speed["image"][1])
    by_pixels = blend * pixels * mean_pixels(preset.schedule) * GPUS[own].flops / GPUS[device].flops
    by_gaussians = rest * preset.max_gaussians / speed["gaussians"] * GPUS[own].bandwidth / GPUS[device].bandwidth
    return by_pixels + by_gaussians


def mean_pixels(schedule: Schedule) -> float:
    """Share of the full resolution's pixels that an iteration sees, mean over the training."""
    return sum(schedule.level((i + 0.5) / 1000) ** -2 for i in range(1000)) / 1000
