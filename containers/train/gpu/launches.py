"""Launches of our own kernels: how they are cut into blocks, and what follows from learning rates and sizes.

``kernels`` maps names to what ``nvrtc.load_kernels`` returns. A kernel's arguments are given by the names of its
parameters in the CUDA source, which says their shapes; so are those that a function here only passes on (``arrays``).
Arrays are torch tensors on the device, or numpy arrays where the kernels run on the CPU (in tests): nothing here knows.
n: Gaussians; stride: the length of a row in arrays that are by component.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splat.metrics import WINDOW
from splat.model import SH_C0, SH_C1, SH_C2, SH_C3
from train.engine import Rates

TILE, WARPS, PIXELS = 32, 2, 2  # side of a tile, warps of a thread block, pixels of a lane (see raster.cu)
BLOCKS = (TILE // 8) * (TILE // (4 * PIXELS))  # of pixels in a tile, one for each warp
THREADS = 128  # columns of a block in loss.cu
LOSS_BLOCKS = 600  # about as many as an H100 runs at a time
STRIPS = 16, 64  # rows of a block: at least, for few rows that two blocks need, and at most
PER_BLOCK = 128  # Gaussians
RECORD = 12  # floats that blending reads of a Gaussian, and that it sums up for its gradient
GEOMETRY = 11  # moments of a Gaussian's mean (3), scale (3), quaternion (4) and opacity
SSIM_WEIGHT = 0.2
LOGIT_MAX = 6.906755  # opacity 0.999, gsplat's limit of alpha: parameters stay below it
SH_BANDS = {"SH_C0": SH_C0, "SH_C1": SH_C1}
SH_BANDS |= {f"SH_C{band}{i}": c for band, values in ((2, SH_C2), (3, SH_C3)) for i, c in enumerate(values)}

Macros = Mapping[str, float]
Kernels = Mapping[str, Any]
# Each source and its macros.
SOURCES: dict[Path, Macros] = {
    Path(__file__).with_name("gaussians.cu"): {"RECORD": RECORD, "LOGIT_MAX": LOGIT_MAX, **SH_BANDS},
    Path(__file__).with_name("raster.cu"): {"RECORD": RECORD, "TILE": TILE, "WARPS": WARPS, "PIXELS": PIXELS},
    Path(__file__).with_name("loss.cu"): {"THREADS": THREADS},
}


def sources(views: int, rank: int) -> dict[Path, Macros]:
    """SOURCES for steps of this many photos, and for shard ``rank`` of as many (see gaussians.cu)."""
    more: Macros = {"VIEWS": views, "RANK": rank} if views > 1 else {}
    return {
        source: {**macros, **more} if source.name == "gaussians.cu" else macros for source, macros in SOURCES.items()
    }


def blocks(items: int, size: int) -> int:
    return -(-items // size)


def tiles(width: int, height: int) -> tuple[int, int]:
    """(columns, rows) of tiles."""
    return blocks(width, TILE), blocks(height, TILE)


def prepare(kernels: Kernels, n: int, **arrays: Any) -> None:
    """Activations: scales and opacities from the parameters."""
    kernels["prepare"](blocks(3 * n, PER_BLOCK), PER_BLOCK, n=n, **arrays)


def per_gaussian(kernel: Any, n: int, **arguments: Any) -> None:
    """Launch a kernel that has one thread for each of ``n`` Gaussians."""
    kernel(blocks(n, PER_BLOCK), PER_BLOCK, n=n, **arguments)


@dataclass(frozen=True, eq=False)
class Lists:
    """The Gaussians of each tile, and room for what drawing them leaves to the gradient."""

    offsets: Any  # [tiles] int32: where a tile's list begins
    ids: Any  # [pairs] int32: the Gaussians of each tile, front to back
    pairs: int
    records: Any  # [n, RECORD]
    width: int
    height: int
    order: Any  # [tiles] int32
    hits: Any  # ``hits(pairs, width, height)`` of 32 bits
    chunks: Any  # ``blocks_of_pixels(width, height)`` of int32

    def launch(self, kernel: Any, **arguments: Any) -> None:
        """Launch ``kernel`` on these lists, with one warp for each block of pixels."""
        columns, rows = tiles(self.width, self.height)
        warps = blocks(blocks_of_pixels(self.width, self.height), WARPS)
        kernel(warps, 32 * WARPS, **vars(self), columns=columns, tiles=columns * rows, **arguments)


def blocks_of_pixels(width: int, height: int) -> int:
    columns, rows = tiles(width, height)
    return columns * rows * BLOCKS


def hits(pairs: int, width: int, height: int) -> int:
    """How many words say which of a list's Gaussians touch which block of pixels, at most."""
    columns, rows = tiles(width, height)
    return (pairs // 32 + columns * rows) * BLOCKS


def blend(kernels: Kernels, lists: Lists, image: Any) -> None:
    """``image`` [H, W, 3] on the background; order, hits and chunks of ``lists`` are written."""
    columns, rows = tiles(lists.width, lists.height)
    kernels["order_tiles"](1, 512, offsets=lists.offsets, pairs=lists.pairs, tiles=columns * rows, order=lists.order)
    lists.launch(kernels["blend"], image=image)


def blend_backward(kernels: Kernels, lists: Lists, image: Any, grad: Any, sums: Any) -> None:
    """Adds to ``sums`` [n, RECORD] for dL/dimage ``grad`` [H, W, 3]; ``image`` and ``lists`` are those of ``blend``."""
    lists.launch(kernels["blend_backward"], image=image, grad=grad, sums=sums)


def loss_gradient(
    kernels: Kernels, width: int, height: int, *, image: Any, photo: Any, slopes: Any, grad: Any, total: Any
) -> None:
    """``grad`` [H, W, 3]: the gradient of 0.8 L1 + 0.2 (1 - SSIM) by ``image`` [H, W, 3].

    Adds the loss to ``total`` [1]. photo [H, W, 3] bytes; slopes: room for 9 H W floats. L1 alone when the image is
    smaller than a window.
    """
    line, windows = 3 * width, 3 * max(height - WINDOW + 1, 0) * max(width - WINDOW + 1, 0)
    l1, ssim = 1 / (line * height), 0.0
    common = {"image": image, "photo": photo, "slopes": slopes, "total": total, "height": height, "line": line}
    if windows:
        l1, ssim = (1 - SSIM_WEIGHT) * l1, SSIM_WEIGHT / windows
        inner, strip = loss_blocks(line - 3 * (WINDOW - 1), height - WINDOW + 1)
        kernels["similarity"](inner, THREADS, **common, ssim=ssim, strip=strip)
    whole, strip = loss_blocks(line, height)
    kernels["image_gradient"](whole, THREADS, **common, grad=grad, l1=l1, ssim=ssim, strip=strip)


def loss_blocks(columns: int, rows: int) -> tuple[tuple[int, int], int]:
    """(blocks across and down, rows of each)."""
    across = blocks(columns, THREADS)
    strip = min(max(blocks(rows * across, LOSS_BLOCKS), STRIPS[0]), STRIPS[1])
    return (across, blocks(rows, strip)), strip


def update_colors(kernels: Kernels, rates: Rates, step: int, n: int, **arrays: Any) -> None:
    """SH backward and Adam. step: photos so far, with those of this one."""
    correct1, correct2 = bias_corrections(step)
    per_gaussian(
        kernels["update_colors"],
        n,
        rate0=rates.sh0,
        rate_rest=rates.sh_rest,
        correct1=correct1,
        correct2=correct2,
        **arrays,
    )


def update_geometry(kernels: Kernels, rates: Rates, step: int, seed: int, n: int, **arrays: Any) -> None:
    """Adam on means, log scales, quats and logits; step as in ``update_colors``."""
    correct1, correct2 = bias_corrections(step)
    per_gaussian(
        kernels["update_geometry"],
        n,
        rate_means=rates.means,
        rate_scales=rates.scales,
        rate_quats=rates.quats,
        rate_opacities=rates.opacities,
        opacity_reg=rates.opacity_reg / n,
        scale_reg=rates.scale_reg / (3 * n),
        correct1=correct1,
        correct2=correct2,
        noise=rates.noise,
        seed=(seed * 0x9E3779B1 + step) % 2**31,
        **arrays,
    )


def bias_corrections(step: int) -> tuple[float, float]:
    """Bias corrections of Adam's two moments, which begin at zero."""
    return 1 / (1 - 0.9**step), 1 / (1 - 0.999**step)
