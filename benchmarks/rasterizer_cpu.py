"""Speed and exactness of the CPU rasterizer.

    python -m benchmarks rasterizer_cpu

Speed: processor time (all threads together) of one forward and backward pass of 20,000 Gaussians with SH degree 3 at
400x300, median of 15. Exactness: the largest error of image and gradients against the float64 reference of the tests,
over SH degrees 0 to 3 and two backgrounds. Results: benchmarks/results/rasterizer-cpu.json.
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version

import numpy as np

from benchmarks.recording import write_result
from splat.cameras import View
from splat.model import Gaussians
from splat.raster import Rasterizer, pack, zero_rows
from tests.containers.test_splat_raster import check, make_gaussians, make_view

REPEATS = 15


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    image_error, gradient_error = exactness()
    figures = {
        "ms_cpu_20k_400x300": round(cpu_ms(20_000, 400, 300), 2),
        "grad_rel_error_max": float(f"{gradient_error:.3g}"),
        "image_abs_error_max": float(f"{image_error:.3g}"),
    }
    write_result("rasterizer-cpu", figures, "python -m benchmarks rasterizer_cpu", llvmlite=version("llvmlite"))


def cpu_ms(count: int, width: int, height: int) -> float:
    """Median processor milliseconds of forward and backward: a box of Gaussians with radii of 0.5 to 4 pixels."""
    rng = np.random.default_rng(0)
    gaussians = Gaussians(
        means=(rng.uniform(-1, 1, (count, 3)) * [1.6, 1.2, 1]).astype(np.float32),
        log_scales=np.log(rng.uniform(0.005, 0.03, (count, 3))).astype(np.float32),
        quats=rng.normal(size=(count, 4)).astype(np.float32),
        opacity_logits=rng.uniform(-2, 3, count).astype(np.float32),
        sh=(0.2 * rng.normal(size=(count, 16, 3))).astype(np.float32),
    )
    pose = np.eye(4)
    pose[2, 3] = 3
    view = View(
        "box", width, height, np.array([[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]]), pose
    )
    rasterizer, rows = Rasterizer(), pack(gaussians)
    grads = zero_rows(*rows.shape)
    times = []
    for _ in range(REPEATS + 2):
        start = time.process_time()
        image = rasterizer.forward_packed(rows, count, 3, view, (0, 0, 0))
        rasterizer.backward_packed(np.ones_like(image), grads)
        times.append(time.process_time() - start)
    return 1000 * float(np.median(times[2:]))


def exactness() -> tuple[float, float]:
    """Largest absolute error of the image, largest relative L2 error of a gradient."""
    image_errors, gradient_errors = [], []
    for degree in range(4):
        for background in ((0.0, 0.0, 0.0), (0.9, 0.3, 0.6)):
            image, gradients, _ = check(make_gaussians(150, degree, degree), make_view(10 + degree), background)
            image_errors.append(float(image))
            gradient_errors.append(float(max(gradients.values())))
    return max(image_errors), max(gradient_errors)


if __name__ == "__main__":
    main()
