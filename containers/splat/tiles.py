"""Which Gaussians touch which 16x16-pixel tile, front to back.

Two passes over blocks of the depth-sorted Gaussians: ``emit`` finds the tiles that each ellipse really touches and
counts them, ``scatter`` puts them into the tiles' lists (a stable counting sort). The result is the same for any
number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from splat.projection import RECORD
from splat.simd import take_next

TILE = 16
MARGIN = 0.02  # pixels; the raster tests each pixel in float32, so the tiles must be chosen a little too wide
LIMIT = np.log(255.0) / 8  # where alpha = 1/255, in the units of a record


@njit(forceinline=True, nogil=True)
def reach(slope: Any, bend: Any, limit: Any, y: Any) -> Any:
    """Middle and half length of the ellipse's chord at height ``y`` above its centre."""
    return slope * y, np.sqrt(max(limit - bend * y * y, 0.0))


@njit(
    "void(int64[::1],int64[::1],int64[::1],int64[::1],float32[::1],int64,int64,int32[::1],int32[::1],int64[::1],int32[::1],int64[:,::1])",
    nogil=True,
    cache=True,
)
def emit(
    counter: Any,
    order: Any,
    blocks: Any,
    room: Any,
    records: Any,
    width: int,
    height: int,
    slot_tile: Any,
    slot_gaussian: Any,
    first_slot: Any,
    slot_count: Any,
    counts: Any,
) -> None:
    """For each block of ``order`` fill its slots (tile and Gaussian), and ``counts`` [blocks, tiles].

    ``blocks`` [B + 1]: where each block begins in ``order``; ``room`` [B + 1]: where its slots begin.
    """
    columns, rows = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    while True:
        block = take_next(counter)
        if block >= len(blocks) - 1:
            break
        slot = room[block]
        counts[block, :] = 0
        for rank in range(blocks[block], blocks[block + 1]):
            gaussian = order[rank]
            base = gaussian * RECORD
            mx, my = np.float64(records[base]), np.float64(records[base + 1])
            half_width, half_height = np.float64(records[base + 10]), np.float64(records[base + 11])
            limit = (LIMIT - np.float64(records[base + 5])) / np.float64(records[base + 2])
            slope, tilt = np.float64(records[base + 9]), np.float64(records[base + 12])
            bend = max(np.float64(records[base + 4]) / np.float64(records[base + 2]) - slope * slope, 0.0)
            y_right = tilt * half_width  # the height at which the ellipse reaches furthest to the right
            top: Any = max(np.int64(np.floor((my - half_height) / TILE)), 0)
            bottom: Any = min(np.int64(np.floor((my + half_height) / TILE)) + 1, rows)
            start = slot
            for row in range(top, bottom):
                y0 = max(row * TILE + 0.5 - my, -half_height)
                y1 = min(min(row * TILE + TILE, height) - 0.5 - my, half_height)
                if y1 < y0 - MARGIN:
                    continue
                middle, half = reach(slope, bend, limit, min(max(y_right, y0), y1))
                right = mx + min(middle + half, half_width) + MARGIN
                middle, half = reach(slope, bend, limit, min(max(-y_right, y0), y1))
                left = mx + max(middle - half, -half_width) - MARGIN
                first: Any = max(np.int64(np.ceil(left - 0.5)) >> 4, 0)
                last: Any = min(np.int64(np.floor(right - 0.5)) >> 4, columns - 1)
                for column in range(first, last + 1):
                    tile = row * columns + column
                    slot_tile[slot] = tile
                    slot_gaussian[slot] = gaussian
                    counts[block, tile] += 1
                    slot += 1
            first_slot[gaussian] = start
            slot_count[gaussian] = slot - start
        room[block] = slot  # now the end of the block's slots


@njit(
    "void(int64[::1],int64[::1],int64[::1],int32[::1],int32[::1],int64[:,::1],int32[::1],int32[::1])",
    nogil=True,
    cache=True,
)
def scatter(
    counter: Any,
    starts: Any,
    ends: Any,
    slot_tile: Any,
    slot_gaussian: Any,
    places: Any,
    list_gaussian: Any,
    list_slot: Any,
) -> None:
    """Put each slot into its tile's list; ``places`` [blocks, tiles] says where a block's part of a list begins."""
    while True:
        block = take_next(counter)
        if block >= len(starts):
            break
        for slot in range(starts[block], ends[block]):
            tile = slot_tile[slot]
            place = places[block, tile]
            places[block, tile] = place + 1
            list_gaussian[place] = slot_gaussian[slot]
            list_slot[place] = slot
