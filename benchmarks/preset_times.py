"""How long the GPU presets take on devices that nobody had at hand: computed, not measured.

    python -m benchmarks preset_times

From the kernel times of the newest GPU result (benchmarks/gpus.py; N0 Gaussians, P0 pixels): blending is limited by
arithmetic and grows with the pixels, everything else by memory and grows with the Gaussians.

    ms per iteration = blend * (P / P0) * s * F0 / F  +  rest * (N / N0) * B0 / B

P: pixels of a photo of 4:3 at the preset's size; N: its cap; F, B: FP32 operations and bytes per second (datasheets);
s: mean pixels over the schedule of resolutions. Loading, evaluation and a stop at a plateau are left out. Beside the
computed time of an iteration on the GPU that was measured stands the measured one, for presets that training_gpu.py has
measured.
Results: benchmarks/results/preset-times.json.
"""

from __future__ import annotations

from typing import Any

from benchmarks.gpus import GPUS, newest
from benchmarks.recording import write_result
from train import presets
from train.presets import Preset
from train.schedule import Schedule

ASPECT = 3 / 4


def main() -> None:
    figures = times(*newest())
    write_result("preset-times", figures, "python -m benchmarks preset_times")


def times(own: str, result: dict[str, Any]) -> dict[str, Any]:
    """Of each preset on each GPU; ``result`` is that of training_gpu.py on the GPU ``own``."""
    speed, rows = result["speed"], result.get("rows", {})
    figures: dict[str, Any] = {"basis": "computed", "measured_on": own}
    for name, preset in presets.GPU.items():
        for device in GPUS:
            ms = milliseconds(speed, own, preset, device)
            figures[f"{name}_{device.lower()}_ms_per_iteration"] = round(ms, 2)
            figures[f"{name}_{device.lower()}_s"] = round(ms * preset.max_iterations / 1e3)
        if name in rows:
            key = f"{name}_{own.lower()}"
            figures[f"{key}_measured_ms_per_iteration"] = rows[name]["ms_per_iteration"]
            figures[f"{key}_measured_s"] = rows[name]["seconds"]
            computed = figures[f"{key}_ms_per_iteration"]
            figures[f"{key}_computed_over_measured"] = round(computed / rows[name]["ms_per_iteration"], 2)
    return figures


def milliseconds(speed: dict[str, Any], own: str, preset: Preset, device: str) -> float:
    """Of an iteration on the GPU ``device``, mean over the schedule; ``speed`` was measured on ``own``."""
    blend = sum(us for kernel, us in speed["kernels_us"].items() if kernel.startswith("blend")) / 1e3
    rest = speed["all_kernels_us"] / 1e3 - blend
    pixels = preset.long_side**2 * ASPECT / (speed["image"][0] * speed["image"][1])
    by_pixels = blend * pixels * mean_pixels(preset.schedule) * GPUS[own].flops / GPUS[device].flops
    by_gaussians = rest * preset.max_gaussians / speed["gaussians"] * GPUS[own].bandwidth / GPUS[device].bandwidth
    return by_pixels + by_gaussians


def mean_pixels(schedule: Schedule) -> float:
    """Share of the pixels that an iteration sees, mean over the training."""
    return sum(schedule.level((i + 0.5) / 1000) ** -2 for i in range(1000)) / 1000


if __name__ == "__main__":
    main()
