"""Which Gaussians touch which 16x16-pixel tile, front to back.

``sort_by_depth`` orders the Gaussians that are seen and gives each block of them room for its tiles, its slots. Two
passes over the blocks follow: ``emit`` finds the tiles that each ellipse really touches and counts them, ``scatter``
puts them into the tiles' lists (a stable counting sort); between the two ``start_lists`` says where each list begins.
The result is the same for any number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from splat.projection import RECORD
from splat.simd import prefetch, take_next

TILE = 16
MARGIN = 0.02  # pixels; the raster tests each pixel in float32, so the tiles must be chosen a little too wide
LIMIT = np.log(255.0) / 8  # where alpha = 1/255, in the units of a record
AHEAD = 8  # Gaussians; so far ahead is fetched what lies anywhere
DIGIT = 11  # bits of the key that one pass of the radix sort looks at
UNSEEN = np.uint32(0x7F800000)  # the bits of an infinite depth


@njit(forceinline=True, nogil=True)
def reach(slope: Any, bend: Any, limit: Any, y: Any) -> Any:
    """Middle and half length of the ellipse's chord at height ``y`` above its centre."""
    return slope * y, np.sqrt(max(limit - bend * y * y, 0.0))


@njit(
    "UniTuple(int64,2)(uint32[::1],float32[::1],int32[:,::1],uint32[:,::1],int64,int64[::1],int64[::1],int32[::1])",
    nogil=True,
    cache=True,
)
def sort_by_depth(
    depth: Any, tiles: Any, order: Any, keys: Any, most: int, blocks: Any, room: Any, slot_count: Any
) -> Any:
    """Write the Gaussians with a finite depth to ``order[0]``, near ones first, in blocks of at most ``most``.

    ``depth`` [N] are the bits of positive floats, which sort like the floats; equal ones keep their order. ``order``
    and ``keys`` [2, N] are room to work in. Fills ``blocks`` and ``room``, where each block begins in the order and in
    the slots, with an end, and clears ``slot_count``. Returns the number of blocks and that of slots.
    """
    size = 1 << DIGIT
    mask = np.uint32(size - 1)
    counts = np.zeros((3, size), np.int64)
    seen = 0
    for i in range(len(depth)):
        slot_count[i] = 0
        key = depth[i]
        if key >= UNSEEN:
            continue
        keys[1, seen] = key
        order[1, seen] = i
        seen += 1
        for digit in range(3):
            counts[digit, (key >> np.uint32(DIGIT * digit)) & mask] += 1
    for digit in range(3):
        total = 0
        for value in range(size):
            count = counts[digit, value]
            counts[digit, value] = total
            total += count
        source, target = (digit + 1) % 2, digit % 2
        for i in range(seen):
            key = keys[source, i]
            value = (key >> np.uint32(DIGIT * digit)) & mask
            place = counts[digit, value]
            counts[digit, value] = place + 1
            keys[target, place] = key
            order[target, place] = order[source, i]
    block, slots = 0, np.int64(0)
    for rank in range(seen):
        if rank == block * most:
            blocks[block], room[block] = rank, slots
            block += 1
        slots += np.int64(tiles[order[0, rank]])
    blocks[block], room[block] = seen, slots
    return block, slots


@njit(
    "void(int64[::1],int32[::1],int64[::1],int64[::1],float32[::1],int64,int64,int32[::1],int32[::1],int64[::1],int32[::1],int32[:,::1])",
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
    """Fill the slots of each block (tile and Gaussian), and ``counts`` [blocks, tiles].

    ``blocks`` [B + 1]: where each block begins in ``order``; ``room`` [B]: where its slots begin, then where they end.
    """
    columns, rows = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    while True:
        block = take_next(counter)
        if block >= len(counts):
            break
        slot = room[block]
        counts[block, :] = 0
        for rank in range(blocks[block], blocks[block + 1]):
            ahead = np.int64(order[min(rank + AHEAD, blocks[block + 1] - 1)])
            prefetch(records, ahead * RECORD)
            gaussian = np.int64(order[rank])
            base = gaussian * RECORD
            start = slot
            mx, my = np.float64(records[base]), np.float64(records[base + 1])
            half_width, half_height = np.float64(records[base + 10]), np.float64(records[base + 11])
            limit = (LIMIT - np.float64(records[base + 5])) / np.float64(records[base + 2])
            slope, tilt = np.float64(records[base + 9]), np.float64(records[base + 12])
            bend = max(np.float64(records[base + 4]) / np.float64(records[base + 2]) - slope * slope, 0.0)
            y_right = tilt * half_width  # the height at which the ellipse reaches furthest to the right
            top: Any = max(np.int64(np.floor((my - half_height) / TILE)), 0)
            bottom: Any = min(np.int64(np.floor((my + half_height) / TILE)) + 1, rows)
            first: Any = max(np.int64(np.ceil(mx - half_width - MARGIN - 0.5)) >> 4, 0)
            last: Any = min(np.int64(np.floor(mx + half_width + MARGIN - 0.5)) >> 4, columns - 1)
            if bottom - top == 1 and first == last:
                tile = top * columns + first
                slot_tile[slot] = tile
                slot_gaussian[slot] = gaussian
                counts[block, tile] += 1
                slot += 1
                first_slot[gaussian] = start
                slot_count[gaussian] = 1
                continue
            for row in range(top, bottom):
                y0 = max(row * TILE + 0.5 - my, -half_height)
                y1 = min(min(row * TILE + TILE, height) - 0.5 - my, half_height)
                if y1 < y0 - MARGIN:
                    continue
                middle, half = reach(slope, bend, limit, min(max(y_right, y0), y1))
                right = mx + min(middle + half, half_width) + MARGIN
                middle, half = reach(slope, bend, limit, min(max(-y_right, y0), y1))
                left = mx + max(middle - half, -half_width) - MARGIN
                first = max(np.int64(np.ceil(left - 0.5)) >> 4, 0)
                last = min(np.int64(np.floor(right - 0.5)) >> 4, columns - 1)
                for column in range(first, last + 1):
                    tile = row * columns + column
                    slot_tile[slot] = tile
                    slot_gaussian[slot] = gaussian
                    counts[block, tile] += 1
                    slot += 1
            first_slot[gaussian] = start
            slot_count[gaussian] = slot - start
        room[block] = slot


@njit("void(int32[:,::1],int64[::1])", nogil=True, cache=True)
def start_lists(counts: Any, tile_start: Any) -> None:
    """Turn ``counts`` [blocks, tiles] into the place where each block's part of each list begins.

    Fills ``tile_start`` [tiles + 1]. The lists lie tile by tile, in each tile block by block.
    """
    place = 0
    for tile in range(counts.shape[1]):
        tile_start[tile] = place
        for block in range(counts.shape[0]):
            count = counts[block, tile]
            counts[block, tile] = place
            place += count
    tile_start[counts.shape[1]] = place


@njit(
    "void(int64[::1],int64[::1],int64[::1],int32[::1],int32[::1],int32[:,::1],int32[::1],int32[::1])",
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
        if block >= len(places):
            break
        for slot in range(starts[block], ends[block]):
            tile = slot_tile[slot]
            place = places[block, tile]
            places[block, tile] = place + 1
            list_gaussian[place] = slot_gaussian[slot]
            list_slot[place] = slot
