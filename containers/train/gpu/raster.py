"""One view forward and its gradient back, without autograd.

Projection and tile lists are gsplat's kernels; the rest is our own (gaussians.cu, raster.cu, loss.cu). A step is about
fifteen launches, and Python is ahead of the device all the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from splat.cameras import View
from train.engine import Setup
from train.gpu import gsplat_api, launches
from train.gpu.gsplat_api import Pinhole, Projected, ProjectionGradients
from train.gpu.launches import RECORD, TILE, Kernels, Lists, Macros
from train.gpu.nvrtc import load_kernels

SPARE = 1 << 16  # numbers; so the buffer for what is of another length each time has seldom another size


@dataclass(frozen=True, eq=False)
class Camera:
    """A view on the device."""

    width: int
    height: int
    pinhole: Pinhole
    center: Tensor  # [3] in the scene frame

    @classmethod
    def of(cls, view: View, device: torch.device) -> Camera:
        def upload(array: Any) -> Tensor:
            return torch.tensor(array, dtype=torch.float32, device=device)

        pinhole = Pinhole(upload(view.world_to_camera[None]), upload(view.K[None]), view.width, view.height)
        return cls(view.width, view.height, pinhole, upload(view.center))


@dataclass
class Parameters:
    """A model's parameters as views of the engine's buffers: the first N rows."""

    means: Tensor  # [N, 3]
    log_scales: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    logits: Tensor  # [N]
    sh: Tensor  # [3 K, stride], by component: the first N columns
    stride: int

    def __len__(self) -> int:
        return len(self.means)


class Buffers:
    """Tensors that are allocated once and grow when more is asked for. What was in them is lost then."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._whole: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}  # what ``get`` returned: a view costs as much of the host as a launch

    def get(self, name: str, *shape: int) -> Tensor:
        """float32 (or any four bytes), not initialised; the same memory for each call with this name."""
        last = self._last.get(name)
        if last is not None and last.shape == shape:
            return last
        count = torch.Size(shape).numel()
        if name not in self._whole or self._whole[name].numel() < count:
            self._whole.pop(name, None)
            self._last.pop(name, None)
            self._whole[name] = torch.empty(count, device=self._device)
        self._last[name] = self._whole[name][:count].view(shape)
        return self._last[name]


def background_macros(setup: Setup) -> Macros:
    """The colour for raster.cu. None for black, which adds nothing: a kernel on black is the very same code."""
    names = ("BACKGROUND_RED", "BACKGROUND_GREEN", "BACKGROUND_BLUE")
    return dict(zip(names, setup.background, strict=True)) if any(setup.background) else {}


class GpuRasterizer:
    """One view at a time: ``backward`` belongs to the last ``forward``."""

    def __init__(self, setup: Setup, device: torch.device, sources: Mapping[Path, Macros] = launches.SOURCES) -> None:
        self.setup, self.device = setup, device
        background = background_macros(setup)
        self.kernels: Kernels = {
            name: kernel
            for source, macros in sources.items()
            for name, kernel in load_kernels(source, {**macros, **background}, device).items()
        }
        self.buffers = Buffers(device)
        capacity = setup.max_gaussians
        self._scales, self._by_conics = (torch.empty((capacity, 3), device=device) for _ in range(2))
        self._opacities, self._by_means2d = (torch.empty((capacity, k), device=device) for k in (1, 2))
        for name in ("records", "sums"):
            self.buffers.get(name, capacity, RECORD)
        self._no_depth = torch.zeros((1, capacity), device=device)  # the loss does not depend on depth

    def forward(self, model: Parameters, camera: Camera, sh_degree: int) -> Tensor:
        """[H, W, 3] on the background, overwritten by the next call."""
        self._camera = camera
        self.prepare(model)
        # Before the tile lists, where the host waits for the device: what does not need them is queued by then.
        self.records = self.buffers.get("records", len(model), RECORD)
        seen = self._projected = self.project(camera, sh_degree, self.records)
        return self.blend(camera, seen.means2d, seen.radii, seen.depths, self.records)

    def prepare(self, model: Parameters) -> None:
        """Activate the scales and opacities of a model, for the calls that follow."""
        n = len(model)
        self.model, self.scales, self.opacities = model, self._scales[:n], self._opacities.view(-1)[:n]
        launches.prepare(
            self.kernels,
            n,
            log_scales=model.log_scales,
            logits=model.logits,
            scales=self.scales,
            opacities=self.opacities,
        )

    def project(self, camera: Camera, sh_degree: int, records: Tensor) -> Projected:
        """Project the prepared model; ``records`` [N, RECORD] is written."""
        model, n = self.model, len(self.model)
        seen = gsplat_api.project(model.means, model.quats, self.scales, self.opacities, camera.pinhole)
        launches.per_gaussian(
            self.kernels["pack"],
            n,
            means=model.means,
            center=camera.center,
            sh=model.sh,
            radii=seen.radii,
            means2d=seen.means2d,
            conics=seen.conics,
            opacities=self.opacities,
            stride=model.stride,
            degree=sh_degree,
            records=records,
        )
        return seen

    def blend(self, camera: Camera, means2d: Tensor, radii: Tensor, depths: Tensor, records: Tensor) -> Tensor:
        """The image of ``records`` [N, RECORD], with the rest as in Projected."""
        self._image = self.buffers.get("image", camera.height, camera.width, 3)
        offsets, ids = gsplat_api.tile_lists(means2d, radii, depths, TILE, *launches.tiles(camera.width, camera.height))
        self._lists = self._with_buffers(offsets, ids, records, camera)
        launches.blend(self.kernels, self._lists, self._image)
        return self._image

    def _with_buffers(self, offsets: Tensor, ids: Tensor, records: Tensor, camera: Camera) -> Lists:
        get, pairs, size = self.buffers.get, len(ids), (camera.width, camera.height)
        order, chunks = get("order", offsets.numel()), get("chunks", launches.blocks_of_pixels(*size))
        hits = get("hits", -(-launches.hits(pairs, *size) // SPARE) * SPARE)
        return Lists(offsets, ids, pairs, records, *size, order, hits, chunks)

    def loss_gradient(self, photo: Tensor, total: Tensor) -> Tensor:
        """dL/dimage [H, W, 3] of the last image and ``photo`` [H, W, 3] bytes, overwritten by the next call.

        0.8 L1 + 0.2 (1 - SSIM), see ``splat.loss``; the loss is added to ``total`` [1].
        """
        height, width = self._image.shape[:2]
        if photo.shape != self._image.shape:
            raise ValueError(f"the image is {tuple(self._image.shape)} and the photo {tuple(photo.shape)}")
        slopes, grad = self.buffers.get("slopes", 9 * height * width), self.buffers.get("grad", height, width, 3)
        launches.loss_gradient(
            self.kernels, width, height, image=self._image, photo=photo, slopes=slopes, grad=grad, total=total
        )
        return grad

    def backward(self, grad_image: Tensor) -> ProjectionGradients:
        """The gradients by means (but for their part in the colours), scales and quats, for dL/dimage [H, W, 3].

        ``sums`` holds the rest for ``launches.update_colors`` and ``launches.update_geometry``.
        """
        self.sums = self.blend_backward(grad_image, len(self.model))
        return self.project_backward(self._camera, self._projected, self.sums)

    def blend_backward(self, grad_image: Tensor, n: int) -> Tensor:
        """[n, RECORD] sums for the Gaussians that were blended."""
        sums = self.buffers.get("sums", n, RECORD).zero_()
        launches.blend_backward(self.kernels, self._lists, self._image, grad_image, sums)
        return sums

    def project_backward(self, camera: Camera, seen: Projected, sums: Tensor) -> ProjectionGradients:
        """The gradients by means, scales and quats of what ``project`` returned."""
        model, n = self.model, len(self.model)
        by_means2d, by_conics = self._by_means2d[:n], self._by_conics[:n]
        launches.per_gaussian(
            self.kernels["projected_gradients"],
            n,
            conics=seen.conics,
            sums=sums,
            by_means2d=by_means2d,
            by_conics=by_conics,
        )
        return gsplat_api.project_backward(
            model.means, model.quats, self.scales, camera.pinhole, seen, by_means2d, self._no_depth[:, :n], by_conics
        )
