"""Training on a CUDA device: gsplat's kernels and our own, without autograd.

All photos lie on the device as bytes, at every resolution; a step copies nothing to or from the device and waits for it
once, inside gsplat (the number of tile intersections).
"""

from __future__ import annotations

import platform
from typing import Any

import gsplat
import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from job import StageError
from splat.cameras import View
from splat.model import Gaussians
from train import kernels_gpu as kernels
from train.engine import LEVELS, Photo, Rates
from train.raster_gpu import Camera, Gradients, Model, PhotoLoss, Rasterizer

GEOMETRY = 11  # moments of a Gaussian's mean (3), scale (3), quaternion (4) and opacity


class GpuEngine:
    """See ``train.engine.Engine``. Parameters and moments lie in buffers for ``capacity`` Gaussians; the first N are
    in use.
    """

    name = "gpu"

    def __init__(self, photos: list[Photo], capacity: int, sh_degree: int, seed: int) -> None:
        self._on = torch.device("cuda")
        self.device = torch.cuda.get_device_name(self._on)
        self.capacity = capacity
        self._seed = seed
        self._count = self._steps = self._loss_count = 0
        try:
            self._allocate((sh_degree + 1) ** 2)
            self._photos = {level: [self._upload(photo.shrunk(level)) for photo in photos] for level in LEVELS}
            largest = max((photo.view.width * photo.view.height for photo in photos), default=1)
            self._photo_loss = PhotoLoss(largest, self._on)
        except torch.cuda.OutOfMemoryError as error:
            raise StageError(
                "OUT_OF_GPU_MEMORY",
                f"The memory of {self.device} is not enough for {len(photos)} photos and {capacity} Gaussians. "
                "Lower max_gaussians or max_image_long_side, or choose a larger GPU.",
            ) from error
        self._rasterizer = Rasterizer(self._on)

    def _allocate(self, coefficients: int) -> None:
        n = self.capacity
        shapes = {
            "means": (n, 3),
            "log_scales": (n, 3),
            "quats": (n, 4),
            "opacity_logits": (n,),
            "sh": (n, coefficients, 3),
        }
        self._values = {name: torch.zeros(shape, device=self._on) for name, shape in shapes.items()}
        # First and second moments: geometry by component, so that neighbours in memory are neighbours in the kernel.
        self._geometry = [torch.zeros((GEOMETRY, n), device=self._on) for _ in range(2)]
        self._colors = [torch.zeros((n, coefficients, 3), device=self._on) for _ in range(2)]
        self._scales, self._directions = (torch.zeros((n, 3), device=self._on) for _ in range(2))
        self._opacities, self._zeros = (torch.zeros(n, device=self._on) for _ in range(2))
        self._loss = torch.zeros(1, device=self._on)

    def _upload(self, photo: Photo) -> tuple[Camera, Tensor]:
        return Camera.of(photo.view, self._on), torch.from_numpy(np.array(photo.pixels)).to(self._on)

    def load(self, gaussians: Gaussians) -> None:
        n, k = gaussians.sh.shape[:2]
        k = min(k, self._values["sh"].shape[1])
        for name in ("means", "log_scales", "quats", "opacity_logits"):
            self._values[name][:n] = torch.from_numpy(getattr(gaussians, name)).to(self._on)
        self._values["sh"].zero_()
        self._values["sh"][:n, :k] = torch.from_numpy(gaussians.sh[:, :k].copy()).to(self._on)
        for moments in (*self._geometry, *self._colors):
            moments.zero_()
        self._steps = 0
        self._bind(n)

    def _bind(self, n: int) -> None:
        """Take the first ``n`` rows into use."""
        self._count, values = n, self._values
        self._model = Model(
            means=values["means"][:n],
            log_scales=values["log_scales"][:n],
            quats=values["quats"][:n],
            logits=values["opacity_logits"][:n],
            sh=values["sh"][:n],
            scales=self._scales[:n],
            opacities=self._opacities[None, :n],
            directions=self._directions[None, :n],
            no_depth=self._zeros[None, :n],
        )

    @torch.no_grad()
    def step(self, photo: int, level: int, sh_degree: int, rates: Rates) -> None:
        camera, pixels = self._photos[level][photo]
        try:
            image = self._rasterizer.forward(self._model, camera, sh_degree)
            grads = self._rasterizer.backward(self._photo_loss(image, pixels, self._loss))
        except torch.cuda.OutOfMemoryError as error:
            raise StageError(
                "OUT_OF_GPU_MEMORY",
                f"The memory of {self.device} is not enough for {self._count} Gaussians at "
                f"{camera.width}x{camera.height} pixels. "
                "Lower max_gaussians or max_image_long_side, or choose a larger GPU.",
            ) from error
        self._loss_count += 1
        self._steps += 1
        self._optimise(grads, sh_degree, rates)

    def _optimise(self, grads: Gradients, sh_degree: int, rates: Rates) -> None:
        model, n = self._model, self._count
        correct1, correct2 = 1 / (1 - 0.9**self._steps), 1 / (1 - 0.999**self._steps)
        kernels.update_geometry[(triton.cdiv(n, kernels.GAUSSIAN_BLOCK),)](
            model.means,
            model.log_scales,
            model.quats,
            model.logits,
            *self._geometry,
            model.scales,
            model.opacities,
            grads.means,
            grads.directions,
            grads.scales,
            grads.quats,
            grads.opacities,
            n,
            self.capacity,
            rates.means,
            rates.scales,
            rates.quats,
            rates.opacities,
            rates.opacity_pull / n,
            rates.scale_pull / (3 * n),
            correct1,
            correct2,
            rates.noise,
            (self._seed * 0x9E3779B1 + self._steps) % 2**31,
            NOISE=rates.noise > 0,
            B=kernels.GAUSSIAN_BLOCK,
        )
        size, per_row = model.sh.numel(), 3 * model.sh.shape[1]
        kernels.update_colors[(triton.cdiv(size, kernels.BLOCK),)](
            model.sh,
            *self._colors,
            grads.sh,
            size,
            per_row,
            3 * (sh_degree + 1) ** 2,
            rates.sh0,
            rates.sh_rest,
            correct1,
            correct2,
            B=kernels.BLOCK,
        )

    def mean_loss(self) -> float:
        mean = float(self._loss) / self._loss_count if self._loss_count else float("nan")
        self._loss.zero_()
        self._loss_count = 0
        return mean

    def is_finite(self) -> bool:
        checks = [torch.isfinite(buffer[: self._count]).all() for buffer in self._values.values()]
        return bool(torch.stack(checks).all())

    def count(self) -> int:
        return self._count

    def opacities(self) -> NDArray[np.float32]:
        return torch.sigmoid(self._values["opacity_logits"][: self._count]).cpu().numpy()

    def log_scales(self) -> NDArray[np.float32]:
        return self._values["log_scales"][: self._count].cpu().numpy()

    @torch.no_grad()
    def adopt(
        self,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
        logits: NDArray[np.float32],
        log_scales: NDArray[np.float32],
        rest_sources: bool,
    ) -> None:
        source, target = torch.from_numpy(sources).to(self._on), torch.from_numpy(targets).to(self._on)
        for buffer in self._values.values():
            buffer[target] = buffer[source]
        touched = torch.cat([source, target])
        self._values["opacity_logits"][touched] = torch.from_numpy(np.tile(logits, 2)).to(self._on)
        self._values["log_scales"][touched] = torch.from_numpy(np.tile(log_scales, (2, 1))).to(self._on)
        resting = touched if rest_sources else target
        for geometry, colors in zip(self._geometry, self._colors, strict=True):
            geometry[:, resting] = 0
            colors[resting] = 0
        count = max(self._count, int(targets.max(initial=-1)) + 1)
        if count != self._count:
            self._bind(count)

    @torch.no_grad()
    def render(self, view: View, sh_degree: int) -> NDArray[np.float32]:
        image = self._rasterizer.forward(self._model, Camera.of(view, self._on), sh_degree)
        return image[0].cpu().numpy()

    def gaussians(self) -> Gaussians:
        return Gaussians(**{name: buffer[: self._count].cpu().numpy() for name, buffer in self._values.items()})

    def state(self) -> dict[str, NDArray[Any]]:
        n = self._count
        saved: dict[str, NDArray[Any]] = {"steps": np.array(self._steps)}
        for name, buffer in self._values.items():
            saved[f"value_{name}"] = buffer[:n].cpu().numpy()
        for moment in range(2):
            saved[f"geometry_{moment}"] = self._geometry[moment][:, :n].cpu().numpy()
            saved[f"colors_{moment}"] = self._colors[moment][:n].cpu().numpy()
        return saved

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        n, self._steps = len(state["value_means"]), int(state["steps"])
        for name, buffer in self._values.items():
            buffer[:n] = torch.from_numpy(state[f"value_{name}"]).to(self._on)
        for moment in range(2):
            self._geometry[moment][:, :n] = torch.from_numpy(state[f"geometry_{moment}"]).to(self._on)
            self._colors[moment][:n] = torch.from_numpy(state[f"colors_{moment}"]).to(self._on)
        self._bind(n)

    def versions(self) -> dict[str, str]:
        return {
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
            "gsplat": gsplat.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
        }
