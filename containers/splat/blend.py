"""Blend the Gaussians of each tile front to back, and carry the image's gradient back to them.

One block of 4x4 pixels is one vector, a tile is 4x4 blocks, and only the blocks that an ellipse touches are computed.
alpha = exp(-8 s) by a polynomial of degree 5 (relative error 8e-8) and three squarings. Thresholds are gsplat's:
alpha at least 1/255 and at most 0.999, transmittance at least 1e-4.

A pixel whose transmittance would fall below 1e-4 is finished; its transmittance is then kept with a minus sign, so
that every later test fails by itself. Few pixels finish at a time, so this is a branch of its own. Backward walks
front to back again with the remainder (everything that lies behind the current Gaussian), so forward saves nothing
but the image and which blocks each (Gaussian, tile) pair touches, and each pair writes its own slot: no atomics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from splat.projection import RECORD
from splat.simd import (
    lane_abs,
    lane_column,
    lane_max,
    lane_min,
    lane_row,
    lanes,
    load,
    lowest_bit,
    mask_bits,
    prefetch,
    quads,
    select,
    store,
    sums_of_nine,
    take_next,
)

ALPHA_MAX = np.float32(0.999)
T_MIN = np.float32(1e-4)
LIMIT = np.float32(np.log(255.0) / 8)
BLOCK_LIMIT = np.float32(np.log(255.0) / 8 + 1e-4)  # blocks are chosen a little too generously; pixels are tested again
# exp(-x) on 0..0.694, weighted least squares for the relative error
P0, P1, P2, P3, P4, P5 = (
    np.float32(v) for v in (0.99999993, -0.99999302, 0.49988769, -0.16599458, 0.03980742, -0.00586762)
)
OPAQUE = np.float32(-np.log(0.999) / 8)  # a Gaussian that is nowhere cut to alpha 0.999 has at least this number e
QUARTER, HALF, ONE, ZERO = np.float32(0.25), np.float32(0.5), np.float32(1), np.float32(0)
TWO, THREE, FOUR = np.float32(2), np.float32(3), np.float32(4)
# Where the table of a tile's blocks lies in a thread's work space: sixteen numbers each.
VALUE, SLOPE_X, SLOPE_Y = 1792, 1808, 1824
WORK = 1840  # floats of work space
AHEAD = 8  # entries of a tile's list: so far ahead are records fetched
# Moments of the places of a tile's blocks (x, y, xx, xy, yy in pixels), seen from each of the sixteen blocks.
_away = 4.0 * (np.arange(4) - np.arange(4)[:, None])  # [from, to]
_x, _y = np.broadcast_arrays(_away[None, :, None, :], _away[:, None, :, None])
MOMENTS = np.stack([_x, _y, _x * _x, _x * _y, _y * _y]).astype(np.float32).ravel()
quad0, quad1, quad2, quad3 = quads

inline = njit(forceinline=True, nogil=True)


@inline
def block_corners(records: Any, base: Any, x: Any, y: Any) -> Any:
    """Offsets from the Gaussian's centre to the first pixel centre of each block of the tile at (x, y)."""
    return lane_column() * FOUR + (HALF + x - records[base]), lane_row() * FOUR + (HALF + y - records[base + 1])


@inline
def touched_blocks(records: Any, base: Any, left: Any, top: Any) -> Any:
    """Bits of the blocks in which some pixel centre may reach alpha 1/255.

    The least value of the quadratic form in a box that does not hold its centre lies on one of the sides that face it.
    """
    a, b, c, e = records[base + 2], records[base + 3], records[base + 4], records[base + 5]
    right, bottom = left + THREE, top + THREE
    dx, dy = lane_max(lane_min(right, ZERO), left), lane_max(lane_min(bottom, ZERO), top)
    dy1 = lane_max(lane_min(dx * records[base + 12], bottom), top)
    dx2 = lane_max(lane_min(dy * records[base + 9], right), left)
    side = (dx * a + dy1 * b) * dx + (dy1 * c) * dy1
    other = (dx2 * a + dy * b) * dx2 + (dy * c) * dy
    return mask_bits(lane_min(side, other) <= lanes(BLOCK_LIMIT - e))


@inline
def tabulate(records: Any, base: Any, left: Any, top: Any, work: Any) -> Any:
    """Leave for each block, in ``work``, the quadratic form at its first pixel and its slopes there.

    Returns the form within a block, which is the same in all.
    """
    a, b, c, e = records[base + 2], records[base + 3], records[base + 4], records[base + 5]
    bent, u, v = top * c, lane_column(), lane_row()
    mixed = left * a + top * b
    store(work, VALUE, mixed * left + (bent * top + e))
    store(work, SLOPE_X, left * a + mixed)
    store(work, SLOPE_Y, left * b + bent * TWO)
    return (u * a + v * b) * u + (v * c) * v


@inline
def form_in_block(work: Any, block: Any, curve: Any) -> Any:
    """The quadratic form at the pixels of a block, from what ``tabulate`` left."""
    slope_x, slope_y = work[np.uint64(SLOPE_X) + block], work[np.uint64(SLOPE_Y) + block]
    return curve + lane_column() * slope_x + lane_row() * slope_y + work[np.uint64(VALUE) + block]


@inline
def alpha_of(s: Any) -> Any:
    """exp(-8 s)."""
    p = ((((P5 * s + P4) * s + P3) * s + P2) * s + P1) * s + P0
    p = p * p
    p = p * p
    return p * p


@inline
def start_transmittance(work: Any, columns: Any, rows: Any) -> Any:
    """1 inside the image, -1 (finished) outside; returns the bits of the blocks with a pixel inside."""
    live = np.uint64(0)
    for block in range(16):
        x, y = np.float32(columns - block % 4 * 4), np.float32(rows - block // 4 * 4)
        inside = (lane_column() + HALF <= lanes(x)) & (lane_row() + HALF <= lanes(y))
        store(work, block * 16, select(inside, lanes(ONE), lanes(-ONE)))
        if mask_bits(inside) != 0:
            live |= np.uint64(1) << np.uint64(block)
    return live


@inline
def rows_to_blocks(source: Any, at: Any, line: Any, work: Any, to: Any) -> None:
    """Copy a 16x16 tile of an image plane into 16 blocks."""
    for k in range(4):
        i = at + 4 * k * line
        a, b, c, d = load(source, i), load(source, i + line), load(source, i + 2 * line), load(source, i + 3 * line)
        store(work, to + 64 * k, quad0(a, b, c, d))
        store(work, to + 64 * k + 16, quad1(a, b, c, d))
        store(work, to + 64 * k + 32, quad2(a, b, c, d))
        store(work, to + 64 * k + 48, quad3(a, b, c, d))


@inline
def blocks_to_rows(work: Any, start: Any, target: Any, at: Any, line: Any) -> None:
    """Copy 16 blocks into a 16x16 tile of an image plane."""
    for k in range(4):
        i, j = at + 4 * k * line, start + 64 * k
        a, b, c, d = load(work, j), load(work, j + 16), load(work, j + 32), load(work, j + 48)
        store(target, i, quad0(a, b, c, d))
        store(target, i + line, quad1(a, b, c, d))
        store(target, i + 2 * line, quad2(a, b, c, d))
        store(target, i + 3 * line, quad3(a, b, c, d))


@njit(
    "void(int64[::1],int64[::1],int64[::1],int32[::1],uint16[::1],float32[::1],int64,int64,float32[::1],float32[::1],float32[::1])",
    nogil=True,
    cache=True,
)
def blend(
    counter: Any,
    tile_order: Any,
    tile_start: Any,
    list_gaussian: Any,
    list_blocks: Any,
    records: Any,
    width: int,
    height: int,
    background: Any,
    work: Any,
    image: Any,
) -> None:
    """Fill ``image`` [4, rows * 16, columns * 16]: red, green, blue with background, and transmittance.

    Fills ``list_blocks`` too, the bits of the blocks that each pair touches. ``work``: WORK floats of this thread.
    """
    columns = (width + 15) // 16
    line = columns * 16
    plane = (height + 15) // 16 * 16 * line
    while True:
        turn = take_next(counter)
        if turn >= len(tile_order):
            break
        tile = tile_order[turn]
        x, y = tile % columns * 16, tile // columns * 16
        live = start_transmittance(work, width - x, height - y)
        for i in range(256, 1024, 16):
            store(work, i, lanes(ZERO))
        fx, fy = np.float32(x), np.float32(y)
        end = tile_start[tile + 1]
        for entry in range(tile_start[tile], end):
            prefetch(records, np.int64(list_gaussian[min(entry + AHEAD, end - 1)]) * RECORD)
            base = np.int64(list_gaussian[entry]) * RECORD
            left, top = block_corners(records, base, fx, fy)
            bits = touched_blocks(records, base, left, top) & live
            list_blocks[entry] = bits
            if bits == 0:
                continue
            curve = tabulate(records, base, left, top, work)
            red, green, blue = lanes(records[base + 6]), lanes(records[base + 7]), lanes(records[base + 8])
            while bits != 0:
                block = lowest_bit(bits)
                bits &= bits - np.uint64(1)
                at = block * np.uint64(16)
                s = form_in_block(work, block, curve)
                t = load(work, at)
                alpha = lane_min(alpha_of(s), ALPHA_MAX)
                valid = (s <= lanes(LIMIT)) & (t > lanes(ZERO))
                w = select(valid, alpha * t, lanes(ZERO))
                after = t - w
                finished = valid & (after <= lanes(T_MIN))
                if mask_bits(finished) != 0:
                    w = select(finished, lanes(ZERO), w)
                    after = select(finished, lanes(ZERO) - t, after)
                    if mask_bits(after > lanes(ZERO)) == 0:
                        live &= ~(np.uint64(1) << block)
                store(work, 256 + at, w * red + load(work, 256 + at))
                store(work, 512 + at, w * green + load(work, 512 + at))
                store(work, 768 + at, w * blue + load(work, 768 + at))
                store(work, at, after)
            if live == 0:
                list_blocks[entry + 1 : end] = 0
                break
        for i in range(0, 256, 16):
            t = lane_abs(load(work, i))
            store(work, i, t)
            for channel in range(3):
                at = (channel + 1) * 256 + i
                store(work, at, load(work, at) + t * background[channel])
        for channel in range(3):
            blocks_to_rows(work, (channel + 1) * 256, image, channel * plane + y * line + x, line)
        blocks_to_rows(work, 0, image, 3 * plane + y * line + x, line)


@njit(
    "void(int64[::1],int64[::1],int64[::1],int32[::1],int32[::1],uint16[::1],float32[::1],int64,int64,float32[::1],float32[::1],float32[::1],float32[::1])",
    nogil=True,
    cache=True,
)
def blend_backward(
    counter: Any,
    tile_order: Any,
    tile_start: Any,
    list_gaussian: Any,
    list_slot: Any,
    list_blocks: Any,
    records: Any,
    width: int,
    height: int,
    image: Any,
    grad: Any,
    work: Any,
    slots: Any,
) -> None:
    """Fill each pair's slot (see ``project_backward``) from ``grad`` [4, …], dL/d(red, green, blue) and dL/dalpha.

    ``image`` and ``list_blocks`` are what ``blend`` wrote. ``work``: WORK floats of this thread's own.
    """
    columns = (width + 15) // 16
    line = columns * 16
    plane = (height + 15) // 16 * 16 * line
    zero = lanes(ZERO)
    while True:
        turn = take_next(counter)
        if turn >= len(tile_order):
            break
        tile = tile_order[turn]
        x, y = tile % columns * 16, tile // columns * 16
        start_transmittance(work, width - x, height - y)
        for channel in range(3):
            rows_to_blocks(grad, channel * plane + y * line + x, line, work, 512 + 256 * channel)
        for channel in range(3):
            rows_to_blocks(image, channel * plane + y * line + x, line, work, 1280)
            for i in range(0, 256, 16):
                seen = load(work, 1280 + i) * load(work, 512 + 256 * channel + i)
                store(work, 256 + i, seen if channel == 0 else seen + load(work, 256 + i))
        rows_to_blocks(image, 3 * plane + y * line + x, line, work, 1280)
        rows_to_blocks(grad, 3 * plane + y * line + x, line, work, 1536)
        for i in range(0, 256, 16):
            store(work, 256 + i, load(work, 256 + i) - load(work, 1280 + i) * load(work, 1536 + i))
        fx, fy = np.float32(x), np.float32(y)
        end = tile_start[tile + 1]
        for entry in range(tile_start[tile], end):
            slot = np.int64(list_slot[entry]) * 16
            bits = np.uint64(list_blocks[entry])
            if bits == 0:
                store(slots, slot, zero)
                continue
            ahead = min(entry + AHEAD, end - 1)
            prefetch(records, np.int64(list_gaussian[ahead]) * RECORD)
            prefetch(slots, np.int64(list_slot[ahead]) * 16)
            base = np.int64(list_gaussian[entry]) * RECORD
            left, top = block_corners(records, base, fx, fy)
            curve = tabulate(records, base, left, top, work)
            opaque = records[base + 5] < OPAQUE
            red, green, blue = lanes(records[base + 6]), lanes(records[base + 7]), lanes(records[base + 8])
            near_x: Any = min(max(np.int64((records[base] - fx) * QUARTER), 0), 3)
            near_y: Any = min(max(np.int64((records[base + 1] - fy) * QUARTER), 0), 3)
            anchor = np.uint64(64 * near_y + 16 * near_x)
            sum_q, sum_x, sum_y, sum_xx, sum_xy, sum_yy = zero, zero, zero, zero, zero, zero
            sum_red, sum_green, sum_blue = zero, zero, zero
            while bits != 0:
                block = lowest_bit(bits)
                bits &= bits - np.uint64(1)
                at = block * np.uint64(16)
                s = form_in_block(work, block, curve)
                t = load(work, at)
                valid = (s <= lanes(LIMIT)) & (t > zero)
                full = alpha_of(s)
                alpha = select(valid, lane_min(full, ALPHA_MAX), zero)
                w = alpha * t
                after = t - w
                finished = valid & (after <= lanes(T_MIN))
                if mask_bits(finished) != 0:
                    w, alpha = select(finished, zero, w), select(finished, zero, alpha)
                    after = select(finished, zero - t, after)
                store(work, at, after)
                grad_red, grad_green, grad_blue = load(work, 512 + at), load(work, 768 + at), load(work, 1024 + at)
                sum_red += w * grad_red
                sum_green += w * grad_green
                sum_blue += w * grad_blue
                shade = grad_red * red + grad_green * green + grad_blue * blue
                behind = load(work, 256 + at)
                store(work, 256 + at, behind - w * shade)
                # alpha dL/dalpha = alpha (T shade - what lies behind / (1 - alpha)); none where alpha was cut to 0.999.
                q = alpha * (t * shade - behind) / (ONE - alpha)
                if opaque:
                    q = select(full <= lanes(ALPHA_MAX), q, zero)
                place = anchor + block
                sum_q += q
                sum_x += q * MOMENTS[place]
                sum_y += q * MOMENTS[place + np.uint64(256)]
                sum_xx += q * MOMENTS[place + np.uint64(512)]
                sum_xy += q * MOMENTS[place + np.uint64(768)]
                sum_yy += q * MOMENTS[place + np.uint64(1024)]
            # From the blocks' places to the pixels': in the anchor block each lane lies (dx, dy) from the centre.
            dx = lane_column() + (HALF + fx + np.float32(4 * near_x) - records[base])
            dy = lane_row() + (HALF + fy + np.float32(4 * near_y) - records[base + 1])
            all_x, all_y = sum_x + dx * sum_q, sum_y + dy * sum_q
            sums = sums_of_nine(
                sum_q,
                all_x,
                sum_xx + dx * (sum_x + all_x),
                all_y,
                sum_xy + dx * sum_y + dy * all_x,
                sum_yy + dy * (sum_y + all_y),
                sum_red,
                sum_green,
                sum_blue,
            )
            store(slots, slot, sums)
