"""gsplat's private functions (version 1.5.3), by name: they take up to 18 positional arguments, and only here.

One camera at a time, pinhole, without depths, covariances or compensations: what training needs of them. Arrays are
torch tensors on one device; n: Gaussians.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gsplat.cuda._backend import _C
from torch import Tensor

NEAR, FAR = 0.01, 1e10  # near as in the CPU rasterizer
BLUR = 0.3  # pixels squared, added to the projected covariance


class Pinhole(NamedTuple):
    """A camera as gsplat takes it."""

    pose: Tensor  # [1, 4, 4] world to camera
    intrinsics: Tensor  # [1, 3, 3]
    width: int
    height: int


class Projected(NamedTuple):
    """The Gaussians of a model as one camera sees them; those with a radius of 0 are not seen."""

    radii: Tensor  # [1, n, 2] int32, pixels
    means2d: Tensor  # [1, n, 2]
    depths: Tensor  # [1, n]
    conics: Tensor  # [1, n, 3]


class ProjectionGradients(NamedTuple):
    means: Tensor  # [n, 3]
    scales: Tensor  # [n, 3]
    quats: Tensor  # [n, 4]


def project(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, camera: Pinhole) -> Projected:
    """EWA splatting (Zwicker et al. 2001) of Gaussians, gsplat's ``fully_fused_projection``."""
    covariances, radius_clip, with_compensations = None, 0.0, False
    radii, means2d, depths, conics, _compensations = _C.projection_ewa_3dgs_fused_fwd(
        means,
        covariances,
        quats,
        scales,
        opacities,
        camera.pose,
        camera.intrinsics,
        camera.width,
        camera.height,
        BLUR,
        NEAR,
        FAR,
        radius_clip,
        with_compensations,
        _C.CameraModelType.PINHOLE,
    )
    return Projected(radii, means2d, depths, conics)


def project_backward(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    camera: Pinhole,
    projected: Projected,
    by_means2d: Tensor,  # [n, 2]
    by_depths: Tensor,  # [1, n]
    by_conics: Tensor,  # [n, 3]
) -> ProjectionGradients:
    """The gradients of ``project``, for those by what it returned."""
    covariances = compensations = by_compensations = None
    with_gradient_of_pose = False
    by_means, _by_covariances, by_quats, by_scales, _by_pose = _C.projection_ewa_3dgs_fused_bwd(
        means,
        covariances,
        quats,
        scales,
        camera.pose,
        camera.intrinsics,
        camera.width,
        camera.height,
        BLUR,
        _C.CameraModelType.PINHOLE,
        projected.radii,
        projected.conics,
        compensations,
        by_means2d[None],
        by_depths,
        by_conics[None],
        by_compensations,
        with_gradient_of_pose,
    )
    return ProjectionGradients(by_means, by_scales, by_quats)


def tile_lists(
    means2d: Tensor, radii: Tensor, depths: Tensor, tile: int, columns: int, rows: int
) -> tuple[Tensor, Tensor]:
    """(offsets [1, rows, columns] int32: where a tile's list begins; ids [pairs] int32, front to back)."""
    image_ids = gaussian_ids = None
    images, sort, segmented = 1, True, False
    _tiles_per_gaussian, keys, ids = _C.intersect_tile(
        means2d, radii, depths, image_ids, gaussian_ids, images, tile, columns, rows, sort, segmented
    )
    return _C.intersect_offset(keys, images, columns, rows), ids


def try_kernel() -> None:
    """Launch one kernel of gsplat and wait for it. Raises RuntimeError where its code is for another kind of GPU."""
    keys, images, columns, rows = torch.zeros(1, dtype=torch.int64, device="cuda"), 1, 1, 1
    (_C.intersect_offset(keys, images, columns, rows) + 1).sum().item()
