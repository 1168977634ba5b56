"""Training photos where a GPU can read them: in its own memory, or in pinned memory of the host."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from train.engine import LEVELS, Setup, TrainingPhoto
from train.gpu.raster import Camera


def keep_photos(setup: Setup, device: torch.device) -> DevicePhotos:
    """The photos of ``setup`` where it wants them. Raises MemoryError and torch's OutOfMemoryError."""
    return (PinnedPhotos if setup.pinned_photos else DevicePhotos)(setup.photos, device)


class DevicePhotos:
    """Every photo at every level on the device, as bytes."""

    def __init__(self, photos: Sequence[TrainingPhoto], device: torch.device) -> None:
        self._device = device
        self._current: Tensor | None = None
        self.cameras: dict[int, list[Camera]] = {level: [] for level in LEVELS}
        self._pixels: dict[int, list[Tensor]] = {level: [] for level in LEVELS}
        for photo in photos:
            for level in LEVELS:
                small = photo.shrunk(level)
                self.cameras[level].append(Camera.of(small.view, device))
                self._pixels[level].append(self._keep(torch.from_numpy(np.array(small.pixels))))

    def _keep(self, pixels: Tensor) -> Tensor:
        return pixels.to(self._device)

    def fetch(self, photo: int, level: int) -> None:
        """Begin to bring the bytes of a photo to the device."""
        self._current = self._pixels[level][photo]

    def get(self) -> Tensor:
        """[H, W, 3] bytes on the device: the photo that was fetched last."""
        if self._current is None:
            raise ValueError("no photo was fetched")
        return self._current


class PinnedPhotos(DevicePhotos):
    """Every photo at every level in pinned memory of the host. A photo is copied while its view is drawn."""

    def __init__(self, photos: Sequence[TrainingPhoto], device: torch.device) -> None:
        sizes = [[(photo.view.width // k or 1) * (photo.view.height // k or 1) for k in LEVELS] for photo in photos]
        self._host, self._used = torch.empty(3 * sum(map(sum, sizes)), dtype=torch.uint8), 0
        pin(self._host)
        weakref.finalize(self, unpin, self._host)
        super().__init__(photos, device)
        self._copying = torch.cuda.Stream(device)
        self._slot = torch.empty(3 * max(map(max, sizes), default=0), dtype=torch.uint8, device=device)

    def _keep(self, pixels: Tensor) -> Tensor:
        kept = self._host[self._used : self._used + pixels.numel()].view(pixels.shape)
        self._used += pixels.numel()
        return kept.copy_(pixels)

    def fetch(self, photo: int, level: int) -> None:
        pixels = self._pixels[level][photo]
        self._current = self._slot[: pixels.numel()].view(pixels.shape)
        self._copying.wait_stream(torch.cuda.current_stream())  # the step before may still read the slot
        with torch.cuda.stream(self._copying):
            self._current.copy_(pixels, non_blocking=True)

    def get(self) -> Tensor:
        torch.cuda.current_stream().wait_stream(self._copying)
        return super().get()


def pin(host: Tensor) -> None:
    """Let the device read ``host`` by itself. Raises MemoryError.

    torch's own pinned tensors take up to twice their size: the next power of two.
    """
    cudart = torch.cuda.cudart()
    if host.numel() and cudart.cudaHostRegister(host.data_ptr(), host.numel(), 0) != cudart.cudaError.success:
        raise MemoryError(f"{host.numel()} bytes of the host's memory cannot be pinned")


def unpin(host: Tensor) -> None:
    torch.cuda.synchronize()  # a copy may be under way
    if host.numel():
        torch.cuda.cudart().cudaHostUnregister(host.data_ptr())
