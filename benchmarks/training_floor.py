"""The bytes that a step of GPU training must move and the time they take: python -m benchmarks training_floor

Prints the computed tables of docs/training-measured.md (--write puts them in): the bytes of a step, the memory that is
planned, and how long the presets take. Bytes are floats that each kernel reads and writes once, at the bandwidth of the
data sheets. "Before" are the kernels that
benchmarks/results/training-h100.json was measured with, "now" those of training-h200.json.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpus import GPUS, iteration_ms, newest
from benchmarks.marks import filled
from train import memory, presets
from train.memory import FreeMemory, MemoryPlan

ROOT = Path(__file__).resolve().parents[1]

PAGE = ROOT / "docs" / "training-measured.md"
BANDWIDTH = {name: GPUS[name].bandwidth for name in ("H200", "H100", "T4", "L4")}
GAUSSIANS, PIXELS, SH = 300_000, 1200 * 900, 48  # SH numbers of a Gaussian, degree 3
PAIRS_EACH = 3  # tile intersections of a Gaussian; assumed
# Reading and writing keys (8 bytes) and ids (4) once, in six passes of a radix sort over 43 bits, and by its readers.
PAIR_BYTES = 12 + (8 + 6 * 24) + 12
MEMORY = {
    "T4, 16 GB": (15, 16),
    "L4 or A10G, 24 GB": (22, 32),
    "H100, 80 GB": (79, 200),
}  # GiB on the device, of the host
PHOTOS = [(4000, 3000)] * 300
WANTED = (MemoryPlan(300_000, 1600), MemoryPlan(1_000_000, 1600), MemoryPlan(5_000_000, 4000))


@dataclass(frozen=True)
class Traffic:
    """Floats (4 bytes) that a part of a step moves, of each Gaussian or pixel. ``None``: it is not there any more."""

    name: str
    before: float | None
    after: float | None
    of: int  # how many Gaussians or pixels


TRAFFIC = (
    Traffic("activations", 14, 8, GAUSSIANS),
    Traffic("projection (gsplat)", 19, 19, GAUSSIANS),
    Traffic("colours (gsplat, before)", 3 + SH + 3, None, GAUSSIANS),
    Traffic("records, with the colours now", 21, 23 + SH, GAUSSIANS),
    Traffic("tile lists (gsplat), assumed", PAIRS_EACH * PAIR_BYTES / 4, PAIRS_EACH * PAIR_BYTES / 4, GAUSSIANS),
    Traffic("blend, forward and backward", 12 + 12 + 12 + 9, 12 + 12 + 12 + 9, GAUSSIANS),
    Traffic("blend, image and its gradient", 3 + 3 + 3, 3 + 3 + 3, PIXELS),
    # Bytes of the photo are 0.75 of a float for three channels.
    Traffic("loss: blurred maps (before)", 3.75 + 15 + 15, None, PIXELS),
    Traffic("loss: SSIM and its slopes", 9, 3.75 + 9, PIXELS),
    Traffic("loss: adjoint along columns (before)", 9 + 9, None, PIXELS),
    Traffic("loss: gradient", 9 + 3.75 + 3, 9 + 3.75 + 3, PIXELS),
    Traffic("gradients by the projected", 28, 20, GAUSSIANS),
    Traffic("SH backward (gsplat, before)", 3 + 3 + SH + 2 * (SH + 3), None, GAUSSIANS),
    Traffic("projection backward (gsplat)", 41, 41, GAUSSIANS),
    Traffic("Adam on SH, with SH backward now", 7 * SH, 3 + 12 + 12 + 6 * SH + 3, GAUSSIANS),
    Traffic("Adam on the rest", 84, 91, GAUSSIANS),
)

# Kernels of a step by a part of their names, and the work they do.
KERNELS = {
    "activations": (("prepare",), ("activations",)),
    "projection (gsplat)": (("projection_ewa_3dgs_fused_fwd",), ("projection (gsplat)",)),
    "records": (("pack",), ("records, with the colours now",)),
    "tile lists (gsplat)": (
        ("intersect", "radix_sort", "RadixSort", "DeviceScan"),
        ("tile lists (gsplat), assumed",),
    ),
    "blend, forward and backward": (("blend",), ("blend, forward and backward", "blend, image and its gradient")),
    "SSIM and its slopes": (("similarity",), ("loss: SSIM and its slopes",)),
    "gradient of the loss": (("image_gradient",), ("loss: gradient",)),
    # "finish" in results of old
    "gradients by the projected": (("projected_gradients", "finish"), ("gradients by the projected",)),
    "projection backward (gsplat)": (("projection_ewa_3dgs_fused_bwd",), ("projection backward (gsplat)",)),
    "SH: backward and Adam": (("update_colors",), ("Adam on SH, with SH backward now",)),
    "the rest: Adam": (("update_geometry",), ("Adam on the rest",)),
}


def against_floor(kernels_us: dict[str, float], gpu: str) -> dict[str, dict[str, float]]:
    """Measured microseconds a step of each part beside those of its bytes; ``kernels_us`` by name, of all kernels.

    For a step of GAUSSIANS with SH numbers at PIXELS. What no part names is "other": it has no floor.
    """
    found, rest = {}, dict(kernels_us)
    floats = {work.name: (work.after or 0) * work.of for work in TRAFFIC}
    for part, (names, works) in KERNELS.items():
        own = [kernel for kernel in rest if any(name in kernel for name in names)]
        floor = sum(4 * floats[work] for work in works) / BANDWIDTH[gpu] * 1e6
        found[part] = {"us": round(sum(rest.pop(kernel) for kernel in own), 1), "floor_us": round(floor, 1)}
    found["other"] = {"us": round(sum(rest.values()), 1), "floor_us": 0.0}
    return found


def floor_table() -> str:
    """Megabytes and milliseconds of each part, before and now."""
    rows = ["| part of a step | MB before | MB now | " + " | ".join(f"{gpu}, ms now" for gpu in BANDWIDTH) + " |"]
    rows.append("|---|---|---|" + "---|" * len(BANDWIDTH))
    for work in TRAFFIC:
        cells = [megabytes(work.before, work.of), megabytes(work.after, work.of)]
        cells += [milliseconds(4 * (work.after or 0) * work.of, gpu) if work.after else "" for gpu in BANDWIDTH]
        rows.append(f"| {work.name} | " + " | ".join(cells) + " |")
    before, after = totals()
    for name, total in (("sum before", before), ("**sum now**", after)):
        cells = [f"{before / 1e6:,.0f}" if total == before else "", f"{after / 1e6:,.0f}" if total == after else ""]
        rows.append(f"| {name} | " + " | ".join(cells + [milliseconds(total, gpu) for gpu in BANDWIDTH]) + " |")
    return "\n".join(rows)


def totals() -> tuple[float, float]:
    """Bytes of a step, before and now."""
    before = sum(4 * (work.before or 0) * work.of for work in TRAFFIC)
    return before, sum(4 * (work.after or 0) * work.of for work in TRAFFIC)


def floor_us(gpu: str) -> float:
    """Microseconds that the bytes of a step take on this GPU."""
    return round(totals()[1] / BANDWIDTH[gpu] * 1e6, 1)


def megabytes(floats: float | None, of: int) -> str:
    return "" if floats is None else f"{4 * floats * of / 1e6:,.0f}"


def milliseconds(size: float, gpu: str) -> str:
    return f"{1e3 * size / BANDWIDTH[gpu]:.2f}"


def memory_table() -> str:
    """What is planned on each GPU for 300 photos of 12 megapixels."""
    rows = ["| wanted: Gaussians, long side | needed | " + " | ".join(MEMORY) + " |"]
    rows.append("|---|---|" + "---|" * len(MEMORY))
    for wanted in WANTED:
        cells = [
            f"{wanted.max_gaussians:,}, {wanted.long_side} px",
            f"{memory.needed_bytes(wanted, PHOTOS, 3) / 1e9:.1f} GB",
        ]
        for device, host in MEMORY.values():
            # What is free after CUDA has started: 0.5 GiB are its own.
            free = FreeMemory((2 * device - 1) << 29, device << 30, host << 30)
            plan = memory.fitting(wanted, PHOTOS, 3, free)
            kept = "photos in the host's memory" if plan.pinned_photos else "photos on the GPU"
            same = (
                "as wanted" if (plan.max_gaussians, plan.long_side) == (wanted.max_gaussians, wanted.long_side) else ""
            )
            cells.append(f"{same or f'{plan.max_gaussians:,}, {plan.long_side} px'}; {kept}")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def presets_table() -> str:
    """Seconds of the training loop by preset and GPU, without the stop rule."""
    measured_on, result = newest()
    rows = ["| s | " + " | ".join(GPUS) + " |", "|---|" + "---|" * len(GPUS)]
    for name, preset in presets.GPU.items():
        each_ms = [iteration_ms(result["speed"], measured_on, preset, device) for device in GPUS]
        rows.append(f"| {name} | " + " | ".join(f"{ms * preset.max_iterations / 1e3:.0f}" for ms in each_ms) + " |")
    return "\n".join(rows)


def tables() -> dict[str, str]:
    """By the marks of the page."""
    return {"floor": floor_table(), "memory": memory_table(), "presets": presets_table()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/training-measured.md")
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text(), tables()))
        return
    before, after = totals()
    print(*tables().values(), sep="\n\n")
    print(f"\nper step {before / 1e6:,.0f} MB before, {after / 1e6:,.0f} MB now")


if __name__ == "__main__":
    main()
