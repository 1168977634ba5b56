"""Training on a CUDA device: gsplat's projection and our own kernels, without autograd.

All photos lie on the device as bytes, at every resolution, or in pinned memory of the host where they don't fit
(train.memory); a step waits for the device once, inside gsplat (the number of tile intersections).
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import gsplat
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from splat.cameras import View
from splat.model import Gaussians
from train.engine import Arrays, Moves, Rates, Setup
from train.gpu.model import DeviceModel
from train.gpu.photos import keep_photos
from train.gpu.raster import Camera, GpuRasterizer
from train.memory import OutOfDeviceMemory

DEVICE = "cuda"
COLOR = 6  # where a colour's gradient begins in a row of the rasterizer's sums


class GpuEngine:
    """See ``train.engine.Engine``. Raises OutOfDeviceMemory here and in ``step``, ``render`` and ``restore``."""

    name = "gpu"
    views = 1

    def __init__(self, setup: Setup, device: str = DEVICE) -> None:
        self._on = torch.device(device)
        self.device = torch.cuda.get_device_name(self._on)
        torch.cuda.empty_cache()  # of an engine before this one, which found too little room
        with memory_for(self._on, f"{len(setup.photos)} photos and {setup.max_gaussians} Gaussians"):
            self._photos = keep_photos(setup, self._on)
            self.setup = replace(setup, photos=())  # the host needs them no more
            self._model = DeviceModel(self.setup, self._on)
            self._rasterizer = GpuRasterizer(self.setup, self._on)
            self._loss = LossMean(self._on)

    def _memory(self, camera: Camera | View) -> AbstractContextManager[None]:
        return memory_for(self._on, f"{self._model.count} Gaussians at {camera.width}x{camera.height} pixels")

    def load(self, gaussians: Gaussians) -> None:
        self._model.load(gaussians)

    @torch.no_grad()
    def step(self, photos: Sequence[int], level: int, sh_degree: int, rates: Rates) -> None:
        (photo,) = photos
        camera, raster = self._photos.cameras[level][photo], self._rasterizer
        with self._memory(camera):
            self._photos.fetch(photo, level)
            raster.forward(self._model.parameters, camera, sh_degree)
            gradients = raster.backward(raster.loss_gradient(self._photos.get(), self._loss.next()))
        self._model.optimise(raster, gradients, camera.center, 1, sh_degree, rates)

    @torch.no_grad()
    def error_per_gaussian(self, photo: int, level: int, sh_degree: int) -> NDArray[np.float32]:
        # With the error as dL/dimage, the gradient by a colour is the error weighted as the colour is.
        camera = self._photos.cameras[level][photo]
        with self._memory(camera):
            self._photos.fetch(photo, level)
            image = self._rasterizer.forward(self._model.parameters, camera, sh_degree)
            self._rasterizer.backward(error_image(image, self._photos.get()))
        return mean_color_sum(self._rasterizer.sums)

    def mean_loss(self) -> float:
        return self._loss.mean()

    def is_finite(self) -> bool:
        return self._model.is_finite()

    def count(self) -> int:
        return self._model.count

    def opacities(self) -> NDArray[np.float32]:
        return self._model.opacities()

    def log_scales(self) -> NDArray[np.float32]:
        return self._model.log_scales()

    def relocate(self, moves: Moves) -> None:
        self._model.relocate(moves)

    @torch.no_grad()
    def render(self, view: View, sh_degree: int) -> NDArray[np.float32]:
        with self._memory(view):
            image = self._rasterizer.forward(self._model.parameters, Camera.of(view, self._on), sh_degree)
            return image.cpu().numpy()

    def gaussians(self) -> Gaussians:
        return self._model.gaussians()

    def state(self) -> Arrays:
        return self._model.state()

    def restore(self, state: Arrays) -> None:
        self._model.restore(state)

    def versions(self) -> dict[str, str]:
        return versions()


class LossMean:
    """Mean of losses that are summed up on the device."""

    def __init__(self, device: torch.device) -> None:
        self._total, self._count = torch.zeros(1, device=device), 0

    def next(self) -> Tensor:
        """[1] what the next loss is added to."""
        self._count += 1
        return self._total

    def mean(self) -> float:
        """Since the last call; NaN when there was none. Waits for the device."""
        mean = float(self._total) / self._count if self._count else float("nan")
        self._total.zero_()
        self._count = 0
        return mean


@contextmanager
def memory_for(device: torch.device, what: str) -> Iterator[None]:
    """Give up with OutOfDeviceMemory, which says what there was no room for."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        name = torch.cuda.get_device_name(device)
        raise OutOfDeviceMemory(f"The memory of {name} is not enough for {what}") from error
    except MemoryError as error:
        raise OutOfDeviceMemory(str(error)) from error


def error_image(image: Tensor, photo: Tensor) -> Tensor:
    """[H, W, 3] |image - photo|, its mean over channels in each; ``photo`` as bytes."""
    return (image - photo / 255).abs().mean(dim=2, keepdim=True).expand(-1, -1, 3).contiguous()


def mean_color_sum(sums: Tensor) -> NDArray[np.float32]:
    """[N] mean over the channels of the sums [N, RECORD] of gradients by colour."""
    return sums[:, COLOR : COLOR + 3].mean(dim=1).cpu().numpy()


def versions() -> dict[str, str]:
    """Of what the GPU engines' numbers depend on."""
    return {
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "gsplat": gsplat.__version__,
        "python": platform.python_version(),
    }
