"""What the trainer needs of an engine: the CPU (numba) and the GPU (torch and gsplat) do the same things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splat.cameras import View
from splat.model import Gaussians

LEVELS = (4, 2, 1)  # photos are shrunk by these factors, coarse first


@dataclass(frozen=True)
class Photo:
    """A photo at the training resolution, with the camera of exactly this size."""

    view: View
    pixels: NDArray[np.uint8]  # [H, W, 3]
    gain: tuple[float, ...] = (1.0, 1.0, 1.0)  # per channel, against the scene's usual exposure

    def shrunk(self, level: int) -> Photo:
        """Both sides divided by ``level`` (area filter), with the camera that belongs to the true new size."""
        if level == 1:
            return self
        width, height = max(1, self.view.width // level), max(1, self.view.height // level)
        small = Image.fromarray(self.pixels).resize((width, height), Image.Resampling.BOX)
        return Photo(self.view.resized(width, height), np.asarray(small), self.gain)


@dataclass(frozen=True)
class Rates:
    """Learning rates of one step, absolute; ``means`` in scene units."""

    means: float
    scales: float
    quats: float
    opacities: float
    sh0: float
    sh_rest: float
    noise: float  # times Sigma (scene units squared) is a displacement; 0 = none
    opacity_pull: float  # weight of the mean opacity in the loss
    scale_pull: float  # weight of the mean scale, in scene units, in the loss

    def slower(self, factor: float) -> Rates:
        """Every step ``factor`` times as long; the loss stays the same."""
        steps = ("means", "scales", "quats", "opacities", "sh0", "sh_rest", "noise")
        return replace(self, **{name: factor * getattr(self, name) for name in steps})


class Engine(Protocol):
    """One model in training. Capacity is fixed: there are never more than ``capacity`` Gaussians.

    Where a device is full its methods raise ``memory.OutOfDeviceMemory``; the engine is of no use then.
    """

    name: str
    device: str
    capacity: int
    views: int  # photos of a step; above 1 its rates are those of a step on one photo all the same

    def load(self, gaussians: Gaussians) -> None:
        """Begin with these Gaussians, with the optimiser at rest."""

    def step(self, photos: Sequence[int], level: int, sh_degree: int, rates: Rates) -> None:
        """One optimiser step on the training photos of these numbers, ``views`` of them, shrunk by ``level``."""

    def blame(self, photo: int, level: int, sh_degree: int) -> NDArray[np.float32]:
        """[N] the error of a training photo, shrunk by ``level``, that is each Gaussian's: the sum over the pixels of
        |render - photo| (mean over channels) times the Gaussian's weight in the pixel."""

    def mean_loss(self) -> float:
        """Mean loss of the steps since the last call; NaN when there was none. May wait for the device."""

    def is_finite(self) -> bool:
        """True if no parameter is NaN or infinite; such a one hides its Gaussian and would go unnoticed."""

    def count(self) -> int: ...

    def opacities(self) -> NDArray[np.float32]:
        """[N] in 0..1."""

    def log_scales(self) -> NDArray[np.float32]:
        """[N, 3]."""

    def adopt(
        self,
        sources: NDArray[np.int64],
        targets: NDArray[np.int64],
        logits: NDArray[np.float32],
        log_scales: NDArray[np.float32],
        rest_sources: bool,
    ) -> None:
        """Make each target a copy of its source, both with this opacity and scale; targets may lie beyond the count.

        The optimiser's moments of the targets, and of the sources when ``rest_sources``, become zero.
        """

    def render(self, view: View, sh_degree: int) -> NDArray[np.float32]:
        """[H, W, 3] on black."""

    def gaussians(self) -> Gaussians: ...

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that ``restore`` needs to go on exactly here."""

    def restore(self, state: dict[str, NDArray[Any]]) -> None: ...

    def versions(self) -> dict[str, str]: ...


def gpu_available() -> bool:
    """Whether there is a GPU that works. Does not import torch where gsplat is not installed."""
    from train.gpu import device

    return not device.fault(device.look())[0]


def open_engine(
    photos: list[Photo],
    capacity: int,
    sh_degree: int,
    seed: int,
    gpu: bool,
    pinned_photos: bool = False,
    gpus: int = 1,
) -> Engine:
    """That of one or more GPUs when ``gpu`` (photos in the host's memory when ``pinned_photos``), else of the CPU."""
    if gpu and gpus > 1:
        from train.gpus.engine import GpusEngine

        return GpusEngine(photos, capacity, sh_degree, seed, gpus, pinned_photos)
    if gpu:
        from train.gpu.engine import GpuEngine

        return GpuEngine(photos, capacity, sh_degree, seed, pinned_photos)
    from train.cpu.engine import CpuEngine

    return CpuEngine(photos, capacity, sh_degree, seed)
