"""How long the GPU presets take on devices that nobody had at hand: computed, not measured.

    python benchmarks/preset_times.py

From the kernel times of benchmarks/results/training-h100.json (N0 Gaussians, P0 pixels): blending is limited by
arithmetic and grows with the pixels, everything else by memory and grows with the Gaussians.

    ms per iteration = blend * (P / P0) * s * F0 / F  +  rest * (N / N0) * B0 / B

P: pixels of a photo of 4:3 at the preset's size; N: its cap; F, B: FP32 operations and bytes per second (datasheets);
s: mean pixels over the schedule of resolutions. Loading, evaluation and a stop at a plateau are left out. Beside the
computed time of an iteration on the H100 stands the measured one, where training_gpu.py has measured the preset; until
then the only check is its quality run, which took 1.6 ms an iteration where the formula says 1.8.
Results: benchmarks/results/preset-times.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "containers")]

from benchmarks.recording import read_result, write_result  # noqa: E402
from train import presets  # noqa: E402
from train.presets import Preset  # noqa: E402
from train.schedule import Schedule  # noqa: E402

MEASURED_ON = "H100"
DEVICES = {"H100": (67.0, 3.35), "L4": (30.3, 0.300), "T4": (8.1, 0.320)}  # TFLOP/s of FP32, TB/s
ASPECT = 3 / 4


def main() -> None:
    figures = times(read_result("training-h100"))
    write_result("preset-times", figures, "python benchmarks/preset_times.py")


def times(result: dict[str, Any]) -> dict[str, Any]:
    """Of each preset on each device; ``result`` as in training-h100.json."""
    speed, rows = result["speed"], result.get("rows", {})
    figures: dict[str, Any] = {"basis": "computed"}
    for name, preset in presets.GPU.items():
        for device in DEVICES:
            ms = milliseconds(speed, preset, device)
            figures[f"{name}_{device.lower()}_ms_per_iteration"] = round(ms, 2)
            figures[f"{name}_{device.lower()}_s"] = round(ms * preset.max_iterations / 1e3)
        if name in rows:
            own = MEASURED_ON.lower()
            figures[f"{name}_{own}_measured_ms_per_iteration"] = rows[name]["ms_per_iteration"]
            figures[f"{name}_{own}_measured_s"] = rows[name]["seconds"]
            computed = figures[f"{name}_{own}_ms_per_iteration"]
            figures[f"{name}_{own}_computed_over_measured"] = round(computed / rows[name]["ms_per_iteration"], 2)
    return figures


def milliseconds(speed: dict[str, Any], preset: Preset, device: str) -> float:
    """Of an iteration, mean over the schedule; ``speed`` as in training-h100.json."""
    blend = sum(us for kernel, us in speed["kernels_us"].items() if kernel.startswith("blend")) / 1e3
    rest = speed["all_kernels_us"] / 1e3 - blend
    pixels = preset.long_side**2 * ASPECT / (speed["image"][0] * speed["image"][1])
    (flops, memory), (own_flops, own_memory) = DEVICES[device], DEVICES[MEASURED_ON]
    by_pixels = blend * pixels * mean_pixels(preset.schedule) * own_flops / flops
    return by_pixels + rest * preset.max_gaussians / speed["gaussians"] * own_memory / memory


def mean_pixels(schedule: Schedule) -> float:
    """Share of the pixels that an iteration sees, mean over the training."""
    return sum(schedule.level((i + 0.5) / 1000) ** -2 for i in range(1000)) / 1000


if __name__ == "__main__":
    main()
