"""One view forward and its gradient back, without autograd, and the fused loss.

Projection, SH and tile lists are gsplat's kernels (1.5.3); blending is our own (raster.cu). A step is about twenty
launches, and Python is ahead of the device all the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from gsplat.cuda._backend import _C
from torch import Tensor

from splat.cameras import View
from splat.metrics import WINDOW, gaussian_window
from train import kernels_gpu as kernels
from train.nvrtc import compile_kernels

TILE, WARPS, PIXELS = 32, 2, 2  # side of a tile, warps of a thread block, pixels of a lane (see raster.cu)
RECORD = 12  # floats, as in raster.cu
NEAR, FAR = 0.01, 1e10  # near as in the CPU rasterizer
BLUR = 0.3  # pixels squared, added to the projected covariance
SSIM_WEIGHT = 0.2


@dataclass(frozen=True, eq=False)
class Camera:
    """A view on the device."""

    width: int
    height: int
    pose: Tensor  # [1, 4, 4] world to camera
    intrinsics: Tensor  # [1, 3, 3]
    center: Tensor  # [3] in the scene frame

    @classmethod
    def of(cls, view: View, device: torch.device) -> Camera:
        def upload(array: Any) -> Tensor:
            return torch.tensor(array, dtype=torch.float32, device=device)

        return cls(
            view.width, view.height, upload(view.world_to_camera[None]), upload(view.K[None]), upload(view.center)
        )


@dataclass
class Model:
    """Parameters as views of the engine's buffers: the first N rows."""

    means: Tensor  # [N, 3]
    log_scales: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    logits: Tensor  # [N]
    sh: Tensor  # [N, K, 3]
    # activations, filled by ``Rasterizer.forward``
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [1, N]
    directions: Tensor  # [1, N, 3]
    no_depth: Tensor  # [1, N] zeros: the loss does not depend on depth


@dataclass
class Gradients:
    """By means (through projection, and through the direction of sight), scales, quats, opacities and SH."""

    means: Tensor
    directions: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    sh: Tensor


class Rasterizer:
    """One view at a time: ``backward`` belongs to the last ``forward``."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinhole = _C.CameraModelType.PINHOLE
        constants = {"TILE": TILE, "WARPS": WARPS, "PIXELS": PIXELS}
        names = ["pack", "blend", "blend_backward", "finish"]
        self._kernels = compile_kernels(Path(__file__).with_name("raster.cu"), names, constants, device)

    def forward(self, model: Model, camera: Camera, sh_degree: int) -> Tensor:
        """[1, H, W, 3] on black."""
        self._model, self._camera, self._degree = model, camera, sh_degree
        n = len(model.means)
        kernels.prepare[(triton.cdiv(n, kernels.BLOCK),)](
            model.means,
            model.log_scales,
            model.logits,
            camera.center,
            model.scales,
            model.opacities,
            model.directions,
            n,
            B=kernels.BLOCK,
        )
        self._radii, self._means2d, depths, self._conics, _ = _C.projection_ewa_3dgs_fused_fwd(
            model.means,
            None,
            model.quats,
            model.scales,
            model.opacities[0],
            camera.pose,
            camera.intrinsics,
            camera.width,
            camera.height,
            BLUR,
            NEAR,
            FAR,
            0.0,
            False,
            self._pinhole,
        )
        self._colors = _C.spherical_harmonics_fwd(sh_degree, model.directions, model.sh[None], None)
        # Before the tile lists, where the host waits for the device: what does not need them is queued by then.
        self._records = torch.empty((n, RECORD), device=self._device)
        self._image = torch.empty((1, camera.height, camera.width, 3), device=self._device)
        self._kernels["pack"](
            triton.cdiv(n, 256), 256, self._means2d, self._conics, model.opacities, self._colors, n, self._records
        )
        columns, rows = -(-camera.width // TILE), -(-camera.height // TILE)
        _, pairs, ids = _C.intersect_tile(
            self._means2d, self._radii, depths, None, None, 1, TILE, columns, rows, True, False
        )
        offsets = _C.intersect_offset(pairs, 1, columns, rows)
        tiles = columns * rows
        self._lists = (offsets, ids, len(ids), self._records, camera.width, camera.height, columns, tiles)
        self._grid = triton.cdiv(tiles * (TILE // 8) * (TILE // (4 * PIXELS)), WARPS), 32 * WARPS
        self._kernels["blend"](*self._grid, *self._lists, self._image)
        return self._image

    def backward(self, grad_image: Tensor) -> Gradients:
        """The gradients for dL/dimage [1, H, W, 3]."""
        model, camera, n = self._model, self._camera, len(self._model.means)
        sums = torch.zeros((n, RECORD), device=self._device)
        self._kernels["blend_backward"](*self._grid, *self._lists, self._image, grad_image, sums)
        by_means2d, by_conics = torch.empty_like(self._means2d), torch.empty_like(self._conics)
        by_opacities, by_colors = torch.empty_like(model.opacities), torch.empty_like(self._colors)
        self._kernels["finish"](
            triton.cdiv(n, 256),
            256,
            self._conics,
            model.opacities,
            sums,
            self._colors,
            n,
            by_means2d,
            by_conics,
            by_opacities,
            by_colors,
        )
        by_sh, by_directions = _C.spherical_harmonics_bwd(
            model.sh.shape[1], self._degree, model.directions, model.sh[None], None, by_colors, self._degree > 0
        )
        by_means, _, by_quats, by_scales, _ = _C.projection_ewa_3dgs_fused_bwd(
            model.means,
            None,
            model.quats,
            model.scales,
            camera.pose,
            camera.intrinsics,
            camera.width,
            camera.height,
            BLUR,
            self._pinhole,
            self._radii,
            self._conics,
            None,
            by_means2d,
            model.no_depth,
            by_conics,
            None,
            False,
        )
        if self._degree == 0:
            by_directions = torch.zeros_like(model.directions)
        return Gradients(by_means, by_directions, by_scales, by_quats, by_opacities, by_sh)


class PhotoLoss:
    """0.8 L1 + 0.2 (1 - SSIM) and its gradient (see ``splat.loss``); room for images of up to ``pixels`` pixels."""

    def __init__(self, pixels: int, device: torch.device) -> None:
        self._window = torch.tensor(gaussian_window(), dtype=torch.float32, device=device)
        self._maps, self._slopes, self._spread = (torch.empty(k * 3 * pixels, device=device) for k in (5, 3, 3))
        self._grad = torch.empty(3 * pixels, device=device)

    def __call__(self, image: Tensor, photo: Tensor, total: Tensor) -> Tensor:
        """dL/dimage [1, H, W, 3], overwritten by the next call; the loss is added to ``total`` [1].

        ``image`` [1, H, W, 3] float32, ``photo`` [H, W, 3] bytes. Without SSIM when the image is smaller than a window.
        """
        height, width = photo.shape[:2]
        numbers, windows = 3 * height * width, 3 * (height - WINDOW + 1) * (width - WINDOW + 1)
        if min(height, width) < WINDOW:
            difference = image - photo / 255
            total += (1 - SSIM_WEIGHT) * difference.abs().mean()
            return (1 - SSIM_WEIGHT) / numbers * torch.sign(difference)
        line, block = 3 * width, kernels.BLOCK
        grid = (triton.cdiv(line, block), height)
        l1, ssim = (1 - SSIM_WEIGHT) / numbers, SSIM_WEIGHT / windows
        grad, window = self._grad[:numbers].view(1, height, width, 3), self._window
        kernels.blur_rows[grid](image, photo, window, self._maps, height, line, B=block)
        inner = (grid[0], height - WINDOW + 1)
        kernels.similarity[inner](self._maps, window, self._slopes, total, ssim, height, line, B=block)
        kernels.spread_columns[grid](self._slopes, window, self._spread, height, line, B=block)
        kernels.image_gradient[grid](image, photo, window, self._spread, grad, total, l1, ssim, height, line, B=block)
        total += SSIM_WEIGHT
        return grad
