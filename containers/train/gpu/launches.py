"""Launches of our own kernels: how they are cut into blocks, and which array is which argument.

Arrays are torch tensors on the device, or numpy arrays where the kernels run on the CPU (in tests): nothing here knows.
``kernels`` maps names to what ``nvrtc.load_kernels`` returns. n: Gaussians; stride: the length of a row in arrays that
are by component.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splat.metrics import WINDOW
from train.engine import Rates

TILE, WARPS, PIXELS = 32, 2, 2  # side of a tile, warps of a thread block, pixels of a lane (see raster.cu)
BLOCKS = (TILE // 8) * (TILE // (4 * PIXELS))  # of pixels in a tile, one for each warp
THREADS = 128  # columns of a block in loss.cu
LOSS_BLOCKS = 600  # about as many as an H100 runs at a time
STRIPS = 16, 64  # rows of a block: at least, for few rows that two blocks need, and at most
PER_BLOCK = 128  # Gaussians
RECORD = 12  # floats, as in raster.cu
GEOMETRY = 11  # moments of a Gaussian's mean (3), scale (3), quaternion (4) and opacity
SSIM_WEIGHT = 0.2
LOGIT_MAX = 6.906755  # opacity 0.999, gsplat's limit of alpha: parameters stay below it
# Each source and its macros.
SOURCES: dict[Path, dict[str, float]] = {
    Path(__file__).with_name("gaussians.cu"): {"LOGIT_MAX": LOGIT_MAX},
    Path(__file__).with_name("raster.cu"): {"TILE": TILE, "WARPS": WARPS, "PIXELS": PIXELS},
    Path(__file__).with_name("loss.cu"): {"THREADS": THREADS},
}


def sources(views: int, rank: int) -> dict[Path, dict[str, float]]:
    """SOURCES for steps of this many photos, and for shard ``rank`` of as many (see gaussians.cu)."""
    more: dict[str, float] = {"VIEWS": views, "RANK": rank} if views > 1 else {}
    return {source: macros | more if source.name == "gaussians.cu" else macros for source, macros in SOURCES.items()}


def blocks(items: int, size: int) -> int:
    return -(-items // size)


def tiles(width: int, height: int) -> tuple[int, int]:
    """(columns, rows) of tiles."""
    return blocks(width, TILE), blocks(height, TILE)


def prepare(kernels: Any, log_scales: Any, logits: Any, n: int, scales: Any, opacities: Any) -> None:
    """``scales`` [n, 3] and ``opacities`` [n] from the parameters."""
    kernels["prepare"](blocks(3 * n, PER_BLOCK), PER_BLOCK, log_scales, logits, n, scales, opacities)


def pack(
    kernels: Any,
    means: Any,
    center: Any,
    sh: Any,
    radii: Any,
    means2d: Any,
    conics: Any,
    opacities: Any,
    n: int,
    stride: int,
    degree: int,
    records: Any,
) -> None:
    """``records`` [n, 12] of the Gaussians with radii above 0, with their colour from the camera at ``center`` [3].

    sh [3 K, stride], radii [n, 2] int32, means2d [n, 2] pixels, conics [n, 3].
    """
    kernels["pack"](
        blocks(n, PER_BLOCK),
        PER_BLOCK,
        means,
        center,
        sh,
        radii,
        means2d,
        conics,
        opacities,
        n,
        stride,
        degree,
        records,
    )


@dataclass(frozen=True, eq=False)
class Lists:
    """The Gaussians of each tile, and room for what drawing them leaves to the gradient."""

    offsets: Any  # [tiles] int32: where a tile's list begins
    ids: Any  # [pairs] int32: the Gaussians of each tile, front to back
    pairs: int
    records: Any  # [n, 12]
    width: int
    height: int
    order: Any  # [tiles] int32
    hits: Any  # ``hits(pairs, width, height)`` of 32 bits
    chunks: Any  # ``blocks_of_pixels(width, height)`` of int32


def blocks_of_pixels(width: int, height: int) -> int:
    columns, rows = tiles(width, height)
    return columns * rows * BLOCKS


def hits(pairs: int, width: int, height: int) -> int:
    """How many words say which of a list's Gaussians touch which block of pixels, at most."""
    columns, rows = tiles(width, height)
    return (pairs // 32 + columns * rows) * BLOCKS


def blend(kernels: Any, lists: Lists, image: Any) -> None:
    """``image`` [H, W, 3] on black; order, hits and chunks of ``lists`` are written."""
    columns, rows = tiles(lists.width, lists.height)
    kernels["order_tiles"](1, 512, lists.offsets, lists.pairs, columns * rows, lists.order)
    kernels["blend"](*blend_shape(lists), *blend_arguments(lists), lists.hits, lists.chunks, image)


def blend_backward(kernels: Any, lists: Lists, image: Any, grad: Any, sums: Any) -> None:
    """Adds to ``sums`` [n, 12] for dL/dimage ``grad`` [H, W, 3]; ``image`` and ``lists`` are those of ``blend``."""
    arguments = (*blend_arguments(lists), lists.hits, lists.chunks, image, grad, sums)
    kernels["blend_backward"](*blend_shape(lists), *arguments)


def blend_shape(lists: Lists) -> tuple[int, int]:
    return blocks(blocks_of_pixels(lists.width, lists.height), WARPS), 32 * WARPS


def blend_arguments(lists: Lists) -> tuple[Any, ...]:
    columns, rows = tiles(lists.width, lists.height)
    arrays = (lists.order, lists.offsets, lists.ids, lists.pairs, lists.records)
    return (*arrays, lists.width, lists.height, columns, columns * rows)


def finish(kernels: Any, conics: Any, sums: Any, n: int, by_means2d: Any, by_conics: Any) -> None:
    """From ``sums`` to the gradients by projected mean [n, 2] and conic [n, 3]."""
    kernels["finish"](blocks(n, PER_BLOCK), PER_BLOCK, conics, sums, n, by_means2d, by_conics)


def loss(kernels: Any, image: Any, photo: Any, width: int, height: int, slopes: Any, grad: Any, total: Any) -> None:
    """``grad`` [H, W, 3]: the gradient of 0.8 L1 + 0.2 (1 - SSIM) by ``image`` [H, W, 3].

    Adds the loss to ``total`` [1]. photo [H, W, 3] bytes; slopes: room for 9 H W floats. L1 alone when the image is
    smaller than a window.
    """
    line, windows = 3 * width, 3 * max(height - WINDOW + 1, 0) * max(width - WINDOW + 1, 0)
    l1, ssim = 1 / (line * height), 0.0
    if windows:
        l1, ssim = (1 - SSIM_WEIGHT) * l1, SSIM_WEIGHT / windows
        inner, strip = loss_blocks(line - 3 * (WINDOW - 1), height - WINDOW + 1)
        kernels["similarity"](inner, THREADS, image, photo, slopes, total, ssim, height, line, strip)
    whole, strip = loss_blocks(line, height)
    kernels["image_gradient"](whole, THREADS, image, photo, slopes, grad, total, l1, ssim, height, line, strip)


def loss_blocks(columns: int, rows: int) -> tuple[tuple[int, int], int]:
    """(blocks across and down, rows of each)."""
    across = blocks(columns, THREADS)
    strip = min(max(blocks(rows * across, LOSS_BLOCKS), STRIPS[0]), STRIPS[1])
    return (across, blocks(rows, strip)), strip


def update_colors(
    kernels: Any,
    means: Any,
    center: Any,
    records: Any,
    sums: Any,
    sh: Any,
    moments: Any,
    by_directions: Any,
    n: int,
    stride: int,
    degree: int,
    step: int,
    rates: Rates,
) -> None:
    """SH backward and Adam. moments: first and second, [3 K, stride] each; step: photos so far, with those of this one.

    center [V, 3], records and sums [V, n, 12] with V views a step.
    """
    kernels["update_colors"](
        blocks(n, PER_BLOCK),
        PER_BLOCK,
        means,
        center,
        records,
        sums,
        sh,
        *moments,
        by_directions,
        n,
        stride,
        degree,
        rates.sh0,
        rates.sh_rest,
        *corrections(step),
    )


def update_geometry(
    kernels: Any,
    parameters: tuple[Any, Any, Any, Any],
    moments: Any,
    scales: Any,
    opacities: Any,
    gradients: tuple[Any, Any, Any, Any],
    sums: Any,
    n: int,
    stride: int,
    step: int,
    rates: Rates,
    seed: int,
) -> None:
    """Adam on means, log scales, quats and logits (``parameters``). moments: first and second, [11, stride] each.

    gradients: by means (through projection, then through the direction of sight), scales and quats; sums [V, n, 12] and
    step as in ``update_colors``.
    """
    kernels["update_geometry"](
        blocks(n, PER_BLOCK),
        PER_BLOCK,
        *parameters,
        *moments,
        scales,
        opacities,
        *gradients,
        sums,
        n,
        stride,
        rates.means,
        rates.scales,
        rates.quats,
        rates.opacities,
        rates.opacity_pull / n,
        rates.scale_pull / (3 * n),
        *corrections(step),
        rates.noise,
        (seed * 0x9E3779B1 + step) % 2**31,
    )


def corrections(step: int) -> tuple[float, float]:
    """Of Adam's moments, for their start at zero."""
    return 1 / (1 - 0.9**step), 1 / (1 - 0.999**step)
