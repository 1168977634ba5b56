"""One step of the GPU's kernels on the CPU, with gsplat's projection and tile lists in float64."""

from pathlib import Path

import autograd.numpy as anp
import numpy as np
from autograd import make_vjp

from splat.metrics import gaussian_window
from tests.containers.test_splat_raster import (
    make_gaussians as make_any_gaussians,
)
from tests.containers.test_splat_raster import (
    reference_rotation,
)
from train.engine import Rates
from train.gpu import launches

GAUSSIANS = Path(launches.__file__).with_name("gaussians.cu")
WIDTH, HEIGHT = 64, 48
NO_RATES = Rates(0, 0, 0, 0, 0, 0, noise=0, opacity_reg=0, scale_reg=0)


def relative(value, wanted):
    return np.linalg.norm(value - wanted) / np.linalg.norm(wanted)


# ------------------------------------------------------------------ loss


def reference_loss(x, y):
    """0.8 L1 + 0.2 (1 - SSIM), or L1 where no window fits.

    Wang et al. 2004 from the definition: weighted means, variances and covariance.
    """
    l1 = anp.mean(anp.abs(x - y))
    rows, columns = x.shape[0] - 10, x.shape[1] - 10
    if min(rows, columns) < 1:
        return l1
    w = np.outer(gaussian_window(), gaussian_window())
    parts = [(w[i, j], slice(i, i + rows), slice(j, j + columns)) for i in range(11) for j in range(11)]
    mx, my = (sum(k * image[a, b] for k, a, b in parts) for image in (x, y))
    vx, vy = (sum(k * (image[a, b] - m) ** 2 for k, a, b in parts) for image, m in ((x, mx), (y, my)))
    vxy = sum(k * (x[a, b] - mx) * (y[a, b] - my) for k, a, b in parts)
    ssim = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return 0.8 * l1 + 0.2 * (1 - anp.mean(ssim))


# ------------------------------------------------------------------ one step, but for gsplat's projection and sort


def project(means, scales, quats, view):
    """(means2d [n, 2], conics [n, 3], depths [n]) in float64, as ``reference_render``."""
    R, t = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3]
    fx, fy, cx, cy = view.K[0, 0], view.K[1, 1], view.K[0, 2], view.K[1, 2]
    p = means @ R.T + t
    z = p[:, 2]
    u = anp.clip(p[:, 0] / z, (-cx - 0.15 * view.width) / fx, (1.15 * view.width - cx) / fx)
    v = anp.clip(p[:, 1] / z, (-cy - 0.15 * view.height) / fy, (1.15 * view.height - cy) / fy)
    zero = anp.zeros_like(z)
    J = anp.stack([anp.stack([fx / z, zero, -fx * u / z], 1), anp.stack([zero, fy / z, -fy * v / z], 1)], 1)
    B = anp.einsum("nij,jk,nkl->nil", J, R, reference_rotation(quats) * scales[:, None, :])
    cov = anp.einsum("nij,nkj->nik", B, B) + 0.3 * np.eye(2)
    det = cov[:, 0, 0] * cov[:, 1, 1] - cov[:, 0, 1] ** 2
    conics = anp.stack([cov[:, 1, 1] / det, -cov[:, 0, 1] / det, cov[:, 0, 0] / det], 1)
    return anp.stack([fx * p[:, 0] / z + cx, fy * p[:, 1] / z + cy], 1), conics, z


def radii_of(means2d, conics, depths, opacities, width, height):
    """[n, 2]: half the sides of the box of each ellipse, 0 where it is not seen."""
    a, b, c = conics.T
    extend = np.sqrt(2 * np.log(np.maximum(opacities * 255, 1)))[:, None]
    radii = np.ceil(extend * np.sqrt(np.stack([c, a], 1) / (a * c - b * b)[:, None]))
    radii[(depths <= 0.01) | (means2d - radii > [width, height]).any(1) | (means2d + radii < 0).any(1)] = 0
    return radii


def tile_lists(means2d, radii, depths, width, height):
    """(offsets [tiles], ids [pairs]): the tiles that each box touches, front to back."""
    low, high = means2d - radii, means2d + radii
    columns, rows = launches.tiles(width, height)
    order = np.argsort(depths, kind="stable")
    order = order[radii[order, 0] > 0]
    lists = []
    for tile in range(columns * rows):
        corner = np.array([tile % columns, tile // columns]) * launches.TILE
        lists.append(order[((high[order] >= corner) & (low[order] <= corner + launches.TILE)).all(1)])
    return np.cumsum([0] + [len(ids) for ids in lists[:-1]]), np.concatenate(lists)


def lists_of(arrays, offsets, ids, records, width, height):
    room = launches.blocks_of_pixels(width, height), launches.hits(len(ids), width, height)
    chunks, hits = (arrays.empty(count, kind=np.int32) for count in room)
    order = arrays.empty(len(offsets), kind=np.int32)
    offsets, ids = arrays.copy(offsets, np.int32), arrays.copy(ids, np.int32)
    return launches.Lists(offsets, ids, len(ids), records, width, height, order, hits, chunks)


def make_gaussians(n, degree, seed):
    gaussians = make_any_gaussians(n, degree, seed)
    gaussians.opacity_logits[:] = gaussians.opacity_logits.clip(max=launches.LOGIT_MAX)
    return gaussians


class Step:
    """A model in the engine's layout, and its launches in the engine's order."""

    def __init__(self, kernels, arrays, gaussians, view, degree, spare=37):
        self.kernels, self.arrays, self.view, self.degree = kernels, arrays, view, degree
        self.n = n = len(gaussians)
        self.stride = n + spare
        self.exact = [np.asarray(getattr(gaussians, name), np.float64) for name in ("means", "log_scales", "quats")]
        self.parameters = (*map(arrays.copy, self.exact), arrays.copy(gaussians.opacity_logits))
        self.sh = arrays.empty(3 * gaussians.sh.shape[1], self.stride)
        self.sh[:, :n] = gaussians.sh.reshape(n, -1).T
        self.center = arrays.copy(view.center)
        self.scales, self.opacities = arrays.empty(n, 3), arrays.empty(n)
        self.records, self.sums = arrays.empty(n, launches.RECORD), arrays.zeros(n, launches.RECORD)
        self.colors, self.geometry = (
            [arrays.zeros(rows, self.stride) for _ in range(2)] for rows in (len(self.sh), launches.GEOMETRY)
        )

    def named(self):
        """The parameters by the names that the kernels have for them."""
        return dict(zip(("means", "log_scales", "quats", "logits"), self.parameters, strict=True))

    def prepare(self):
        named = {name: values for name, values in self.named().items() if name in ("log_scales", "logits")}
        launches.prepare(self.kernels, self.n, **named, scales=self.scales, opacities=self.opacities)

    def forward(self):
        n, arrays, view = self.n, self.arrays, self.view
        self.prepare()
        means2d, conics, depths = project(self.exact[0], np.exp(self.exact[1]), self.exact[2], view)
        radii = radii_of(means2d, conics, depths, self.opacities, view.width, view.height)
        offsets, ids = tile_lists(means2d, radii, depths, view.width, view.height)
        self.seen = radii[:, 0] > 0
        conics[~self.seen] = np.nan
        self.conics = arrays.copy(conics)
        launches.per_gaussian(
            self.kernels["pack"],
            n,
            means=self.parameters[0],
            center=self.center,
            sh=self.sh,
            radii=arrays.copy(radii, np.int32),
            means2d=arrays.copy(means2d),
            conics=self.conics,
            opacities=self.opacities,
            stride=self.stride,
            degree=self.degree,
            records=self.records,
        )
        self.lists = lists_of(arrays, offsets, ids, self.records, view.width, view.height)
        self.image = arrays.empty(view.height, view.width, 3)
        launches.blend(self.kernels, self.lists, self.image)
        return self.image

    def backward(self, grad):
        """The gradients by means, scales and quats through the projection."""
        n, arrays = self.n, self.arrays
        launches.blend_backward(self.kernels, self.lists, self.image, grad, self.sums)
        by_means2d, by_conics = arrays.empty(n, 2), arrays.empty(n, 3)
        launches.per_gaussian(
            self.kernels["projected_gradients"],
            n,
            conics=self.conics,
            sums=self.sums,
            by_means2d=by_means2d,
            by_conics=by_conics,
        )
        assert np.isfinite(by_means2d).all() and not by_conics[~self.seen].any()
        view = self.view
        back = [
            make_vjp(lambda *p, k=k: project(*p, view)[k], argnum)(self.exact[0], np.exp(self.exact[1]), self.exact[2])[
                0
            ]
            for k in (0, 1)
            for argnum in (0, 1, 2)
        ]
        upstream = (by_means2d, by_conics)
        return [sum(back[3 * k + which](upstream[k].astype(np.float64)) for k in (0, 1)) for which in range(3)]

    def update(self, gradients, step, rates, seed=5):
        arrays, n = self.arrays, self.n
        by_directions = arrays.empty(n, 3)
        first, second = self.colors
        launches.update_colors(
            self.kernels,
            rates,
            step,
            n,
            means=self.parameters[0],
            center=self.center,
            records=self.records,
            sums=self.sums,
            sh=self.sh,
            first=first,
            second=second,
            by_directions=by_directions,
            stride=self.stride,
            degree=self.degree,
        )
        by_means, by_scales, by_quats = map(arrays.copy, gradients)
        first, second = self.geometry
        launches.update_geometry(
            self.kernels,
            rates,
            step,
            seed,
            n,
            **self.named(),
            first=first,
            second=second,
            scales=self.scales,
            opacities=self.opacities,
            by_means=by_means,
            by_directions=by_directions,
            by_scales=by_scales,
            by_quats=by_quats,
            sums=self.sums,
            stride=self.stride,
        )


def reference_parameters(gaussians):
    names = ("means", "log_scales", "quats", "opacity_logits", "sh")
    return [getattr(gaussians, name).astype(np.float64) for name in names]
