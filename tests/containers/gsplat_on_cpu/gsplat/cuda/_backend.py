"""The calls of gsplat 1.5.3 that ``train.gpu.gsplat_api`` makes, with their arguments in its order."""

import warnings
from types import SimpleNamespace

import numpy as np
import torch
from autograd import make_vjp


def seen_by(pose, intrinsics, width, height):
    return SimpleNamespace(
        world_to_camera=pose[0].double().numpy(), K=intrinsics[0].double().numpy(), width=width, height=height
    )


def reference():
    """Imported when it is asked for: many processes only start and end."""
    from tests.containers import kernel_step

    return kernel_step


def exact(*tensors):
    return [tensor.double().numpy() for tensor in tensors]


class _C:
    CameraModelType = SimpleNamespace(PINHOLE=0)

    @staticmethod
    def projection_ewa_3dgs_fused_fwd(
        means,
        _covars,
        quats,
        scales,
        opacities,
        pose,
        intrinsics,
        width,
        height,
        blur,
        near,
        _far,
        _clip,
        _comp,
        _model,
    ):
        assert blur == 0.3 and near == 0.01  # as in the reference
        means2d, conics, depths = reference().project(
            *exact(means, scales, quats), seen_by(pose, intrinsics, width, height)
        )
        radii = reference().radii_of(means2d, conics, depths, opacities.double().numpy(), width, height)
        unseen = radii[:, 0] == 0
        means2d[unseen], conics[unseen], depths[unseen] = np.nan, np.nan, np.nan  # gsplat leaves them as they are
        floats = [torch.from_numpy(array).float()[None] for array in (means2d, depths, conics)]
        return torch.from_numpy(radii.astype(np.int32))[None], *floats, None

    @staticmethod
    def intersect_tile(means2d, radii, depths, _images, _ids, _count, _size, columns, rows, _sort, _segmented):
        assert means2d.ndim == 3 and means2d.is_contiguous() and radii.is_contiguous() and depths.is_contiguous()
        side = _size
        lists = reference().tile_lists(*exact(means2d[0], radii[0], depths[0]), columns * side, rows * side)
        return None, torch.from_numpy(lists[0].astype(np.int32)), torch.from_numpy(lists[1].astype(np.int32))

    @staticmethod
    def intersect_offset(pairs, _count, columns, rows):
        return pairs.view(1, rows, columns)

    @staticmethod
    def projection_ewa_3dgs_fused_bwd(
        means,
        _covars,
        quats,
        scales,
        pose,
        intrinsics,
        width,
        height,
        blur,
        _model,
        radii,
        _conics,
        _comp,
        by_means2d,
        _by_depths,
        by_conics,
        _by_comp,
        _by_pose,
    ):
        assert blur == 0.3
        view, at, seen = (
            seen_by(pose, intrinsics, width, height),
            exact(means, scales, quats),
            radii[0, :, 0].numpy() > 0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # conics do not depend on everything
            gradients = [
                sum(
                    make_vjp(lambda *p, k=k: reference().project(*p, view)[k], which)(*at)[0](upstream.double().numpy())
                    for k, upstream in ((0, by_means2d[0]), (1, by_conics[0]))
                )
                for which in range(3)
            ]
        by_means, by_scales, by_quats = (
            torch.from_numpy(np.where(seen[:, None], gradient, 0)).float() for gradient in gradients
        )
        return by_means, None, by_quats, by_scales, None
