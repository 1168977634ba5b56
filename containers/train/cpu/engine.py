"""Training on a CPU: the numba rasterizer, a fused loss and a fused optimiser. No torch."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np
from numpy.typing import NDArray

from splat.cameras import View
from splat.loss import PhotoLoss, to_planes
from splat.model import SH_C0, Gaussians
from splat.projection import LOGIT, MEAN, QUAT, SCALE, SH
from splat.raster import HIDDEN, Rasterizer, pack, unpack, zero_rows
from train.cpu.optimizer import BETA1, BETA2, adam, regularise
from train.engine import LEVELS, Arrays, Moves, Rates, Setup, TrainingPhoto


class CpuEngine:
    """See ``train.engine.Engine``."""

    name = "cpu"
    views = 1

    def __init__(self, setup: Setup) -> None:
        self.setup, self.device = setup, cpu_model()
        self._coefficients = (setup.sh_degree + 1) ** 2
        self._rasterizer = Rasterizer()
        self._loss = PhotoLoss(self._rasterizer.workers)
        self._levels = {level: [shrink(photo, level) for photo in setup.photos] for level in LEVELS}
        self._count = self._steps = self._loss_count = 0
        self._loss_sum = 0.0

    def load(self, gaussians: Gaussians) -> None:
        n, k = gaussians.sh.shape[:2]
        sh = np.zeros((n, self._coefficients, 3), np.float32)
        sh[:, :k] = gaussians.sh[:, : self._coefficients]
        full = Gaussians(gaussians.means, gaussians.log_scales, gaussians.quats, gaussians.opacity_logits, sh)
        self._rows = pack(full, self.setup.max_gaussians)
        self._count, self._steps = n, 0
        self._grads, self._first, self._second = (zero_rows(*self._rows.shape) for _ in range(3))

    def step(self, photos: Sequence[int], level: int, sh_degree: int, rates: Rates) -> None:
        (photo,) = photos
        view, target = self._levels[level][photo]
        image = self._forward(view, sh_degree)
        loss, grad_image = self._loss(image, target, view.width, view.height)
        self._loss_sum, self._loss_count = self._loss_sum + loss, self._loss_count + 1
        self._rasterizer.backward_packed(grad_image, self._grads)
        self._steps += 1
        self._optimise(sh_degree, rates)

    def _forward(self, view: View, sh_degree: int) -> NDArray[np.float32]:
        """Planes [4, H, W] (padded) of the model."""
        return self._rasterizer.forward_packed(self._rows, self._count, sh_degree, view, self.setup.background)

    def _optimise(self, sh_degree: int, rates: Rates) -> None:
        stride, groups = self._rows.shape[1], -(-self._count // 16)
        params, grads = self._rows.reshape(-1), self._grads.reshape(-1)
        workers = self._rasterizer.workers
        seed = np.uint64((self.setup.seed * 0x5851F42D4C957F2D + self._steps * 0x14057B7EF767814F) % 2**64)
        workers.run(
            regularise,
            self._count,
            stride,
            params,
            grads,
            rates.opacity_reg / self._count,
            rates.scale_reg / (3 * self._count),
            rates.noise,
            seed,
        )
        per_row = np.zeros(len(self._rows), np.float32)
        per_row[MEAN : MEAN + 3] = rates.means
        per_row[SCALE : SCALE + 3] = rates.scales
        per_row[QUAT : QUAT + 4] = rates.quats
        per_row[LOGIT] = rates.opacities
        per_row[SH : SH + 3] = rates.sh0
        per_row[SH + 3 : SH + 3 * (sh_degree + 1) ** 2] = rates.sh_rest
        correct1, correct2 = 1 / (1 - float(BETA1) ** self._steps), 1 / (1 - float(BETA2) ** self._steps)
        first, second = self._first.reshape(-1), self._second.reshape(-1)
        workers.run(adam, groups, stride, per_row, params, grads, first, second, correct1, correct2)

    def error_per_gaussian(self, photo: int, level: int, sh_degree: int) -> NDArray[np.float32]:
        # With the error as dL/dimage, the gradient by a colour is the error weighted as the colour is.
        view, target = self._levels[level][photo]
        image = self._forward(view, sh_degree)
        error = np.zeros_like(image)
        inside = np.s_[:3, : view.height, : view.width]
        error[inside] = np.abs(image[inside] - target[inside] / np.float32(255)).mean(axis=0)
        self._rasterizer.backward_packed(error, self._grads)
        return self._grads[SH : SH + 3, : self._count].mean(axis=0) / np.float32(SH_C0)

    def mean_loss(self) -> float:
        mean = self._loss_sum / self._loss_count if self._loss_count else float("nan")
        self._loss_sum, self._loss_count = 0.0, 0
        return mean

    def is_finite(self) -> bool:
        return bool(np.isfinite(self._rows[:, : self._count]).all())

    def count(self) -> int:
        return self._count

    def opacities(self) -> NDArray[np.float32]:
        return (1 / (1 + np.exp(-self._rows[LOGIT, : self._count]))).astype(np.float32)

    def log_scales(self) -> NDArray[np.float32]:
        return self._rows[SCALE : SCALE + 3, : self._count].T

    def relocate(self, moves: Moves) -> None:
        for row in self._rows:
            row[moves.targets] = row[moves.sources]
        touched = np.concatenate([moves.sources, moves.targets])
        self._rows[LOGIT, touched] = np.tile(moves.logits, 2)
        for axis in range(3):
            self._rows[SCALE + axis, touched] = np.tile(moves.log_scales[:, axis], 2)
        resetting = touched if moves.reset_sources else moves.targets
        for moments in (self._first, self._second):
            for row in moments:
                row[resetting] = 0
        self._count = max(self._count, moves.count)

    def render(self, view: View, sh_degree: int) -> NDArray[np.float32]:
        planes = self._forward(view, sh_degree)
        return np.ascontiguousarray(planes[:3, : view.height, : view.width].transpose(1, 2, 0))

    def gaussians(self) -> Gaussians:
        return unpack(self._rows, self._count)

    def state(self) -> Arrays:
        n = self._count
        return {
            "rows": self._rows[:, :n],
            "first": self._first[:, :n],
            "second": self._second[:, :n],
            "steps": np.array(self._steps),
        }

    def restore(self, state: Arrays) -> None:
        self._count, self._steps = state["rows"].shape[1], int(state["steps"])
        stride = -(-max(self.setup.max_gaussians, self._count) // 16) * 16
        rows = SH + 3 * self._coefficients
        self._rows, self._grads, self._first, self._second = (zero_rows(rows, stride) for _ in range(4))
        self._rows[QUAT], self._rows[LOGIT] = 1.0, HIDDEN
        self._rows[:, : self._count] = state["rows"]
        self._first[:, : self._count] = state["first"]
        self._second[:, : self._count] = state["second"]

    def versions(self) -> dict[str, str]:
        return {"numba": numba.__version__, "numpy": np.__version__, "python": platform.python_version()}


def shrink(photo: TrainingPhoto, level: int) -> tuple[View, NDArray[np.uint8]]:
    """The camera and the kernels' bytes of a photo at one level."""
    small = photo.shrunk(level)
    return small.view, to_planes(small.pixels)


def cpu_model() -> str:
    """The processor's name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()
