# Longer than 400 lines: one kernel that numba compiles calls the next
"""Ray caster of the sample scene: heightfield, convex polytopes and leafy ellipsoids, compiled with numba.

World frame: ENU metres (x east, y north, z up). Camera frame as in COLMAP: x right, y down, z forward; pixel centres
at +0.5. Colours are linear RGB until :func:`develop` turns them into a photo.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

Array = np.ndarray[Any, Any]

TILE_PX = 16
MAX_DISTANCE_M = 600.0

POLYTOPE, ELLIPSOID = 0, 1
TILES, STONE, PLASTER, PLANKS, MASONRY, LEAVES, ROCK, PAINT = range(8)


class World(NamedTuple):
    """The scene as flat arrays. P solids, F = 6 faces at most, heights on a square grid over [-half, half]²."""

    kind: Array  # [P] POLYTOPE or ELLIPSOID
    centre: Array  # [P, 3] centre of the ellipsoid, or local origin on the ground of the polytope
    radii: Array  # [P, 3] of the ellipsoid
    bound_centre: Array  # [P, 3]
    bound_radius: Array  # [P]
    planes: Array  # [P, 6, 4] outward normal and offset, n·x <= offset inside
    plane_count: Array  # [P]
    material: Array  # [P, 6]
    face_half: Array  # [P, 6] half width of the face, metres
    wall_height: Array  # [P]
    colour: Array  # [P, 3] albedo
    seed: Array  # [P]
    heights: Array  # [G, G] metres, row = north
    half_m: float
    highest_m: float
    steepest: float  # slope of the terrain anywhere
    slopes: Array  # [C, C] steepest slope of each cell of the terrain and the eight around it
    sun: Array  # [3] towards the sun
    sun_axes: Array  # [2, 3] axes of the shadow map
    sun_half_m: float
    sun_depth: Array  # [S, S] distance of the first surface from the plane of the sun


@njit(cache=True, inline="always")
def hash01(ix: int, iy: int, iz: int, seed: int) -> float:
    """A fixed pseudo-random number in 0..1 for a lattice point."""
    h = (ix * 374761393 + iy * 668265263 + iz * 1440662683 + seed * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFFFF) / 16777216.0


@njit(cache=True, fastmath=True)
def noise2(x: float, y: float, seed: int) -> float:
    """Value noise in -1..1 with unit lattice."""
    ix, iy = math.floor(x), math.floor(y)
    fx, fy = x - ix, y - iy
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    a = hash01(ix, iy, 0, seed) * (1 - fx) + hash01(ix + 1, iy, 0, seed) * fx
    b = hash01(ix, iy + 1, 0, seed) * (1 - fx) + hash01(ix + 1, iy + 1, 0, seed) * fx
    return 2 * (a * (1 - fy) + b * fy) - 1


@njit(cache=True, fastmath=True)
def noise3(x: float, y: float, z: float, seed: int) -> float:
    """Value noise in -1..1 with unit lattice."""
    ix, iy, iz = math.floor(x), math.floor(y), math.floor(z)
    fx, fy, fz = x - ix, y - iy, z - iz
    fx, fy, fz = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy), fz * fz * (3 - 2 * fz)
    total = 0.0
    for k in range(2):
        a = hash01(ix, iy, iz + k, seed) * (1 - fx) + hash01(ix + 1, iy, iz + k, seed) * fx
        b = hash01(ix, iy + 1, iz + k, seed) * (1 - fx) + hash01(ix + 1, iy + 1, iz + k, seed) * fx
        total += (a * (1 - fy) + b * fy) * (fz if k == 1 else 1 - fz)
    return 2 * total - 1


@njit(cache=True, fastmath=True)
def fractal2(x: float, y: float, coarsest_m: float, finest_m: float, gain: float, seed: int) -> float:
    """Octaves of noise, about -1..1, from ``coarsest_m`` down to ``finest_m``, a pixel's footprint."""
    total, weight, norm, size = 0.0, 1.0, 0.0, coarsest_m
    while size > finest_m:
        fade = min(1.0, size / finest_m - 1.0)
        total += fade * weight * noise2(x / size, y / size, seed)
        norm += weight
        weight *= gain
        size *= 0.5
        seed += 17
    return total / max(norm, 1.0) * 1.6


@njit(cache=True, fastmath=True)
def fractal3(x: float, y: float, z: float, coarsest_m: float, finest_m: float, gain: float, seed: int) -> float:
    """As :func:`fractal2`, for a point in space."""
    total, weight, norm, size = 0.0, 1.0, 0.0, coarsest_m
    while size > finest_m:
        fade = min(1.0, size / finest_m - 1.0)
        total += fade * weight * noise3(x / size, y / size, z / size, seed)
        norm += weight
        weight *= gain
        size *= 0.5
        seed += 17
    return total / max(norm, 1.0) * 1.6


@njit(cache=True, fastmath=True)
def ground_height(heights: Array, half_m: float, x: float, y: float) -> float:
    """Bilinear height of the terrain; outside the map the height of its border."""
    n = heights.shape[0]
    u = min(max((x + half_m) / (2 * half_m) * (n - 1), 0.0), n - 1.001)
    v = min(max((y + half_m) / (2 * half_m) * (n - 1), 0.0), n - 1.001)
    i, j = int(u), int(v)
    fu, fv = u - i, v - j
    low = heights[j, i] * (1 - fu) + heights[j, i + 1] * fu
    high = heights[j + 1, i] * (1 - fu) + heights[j + 1, i + 1] * fu
    return low * (1 - fv) + high * fv


@njit(cache=True, fastmath=True)
def hit_ground(
    heights: Array,
    half_m: float,
    highest_m: float,
    slopes: Array,
    ox: float,
    oy: float,
    oz: float,
    dx: float,
    dy: float,
    dz: float,
    start: float,
    limit: float,
) -> float:
    """Distance along the ray to the terrain, or ``limit``; nothing is hit before ``start``.

    A step is bounded by the steepest slope around (``slopes`` [C, C], valid one cell further), so none goes through;
    the last decimetre is solved on the tangent plane.
    """
    t = start
    if dz < -1e-6 and oz + t * dz > highest_m:
        t = (highest_m - oz) / dz
    across = math.sqrt(dx * dx + dy * dy)
    cell_m = 2 * half_m / slopes.shape[0]
    for _ in range(200):
        if t >= limit or (dz >= 0 and oz + t * dz > highest_m):
            return limit
        above = oz + t * dz - ground_height(heights, half_m, ox + t * dx, oy + t * dy)
        if above < 0.12:
            break
        i = min(max(int((ox + t * dx + half_m) / cell_m), 0), slopes.shape[0] - 1)
        j = min(max(int((oy + t * dy + half_m) / cell_m), 0), slopes.shape[0] - 1)
        t += min(above / max(slopes[j, i] * across - dz, 1e-6), cell_m / max(across, 1e-6))
    for _ in range(2):
        x, y = ox + t * dx, oy + t * dy
        ground = ground_height(heights, half_m, x, y)
        slope = (ground_height(heights, half_m, x + 0.1 * dx, y + 0.1 * dy) - ground) / 0.1
        t += min(max((oz + t * dz - ground) / max(slope - dz, 0.05), -0.3), 0.6)
    return min(t, limit)


@njit(cache=True, fastmath=True)
def clear_distance(
    world: World, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, spread: float
) -> float:
    """How far a whole cone of rays gets without meeting the ground; ``spread`` is its half angle in radians."""
    rate = world.steepest * math.sqrt(dx * dx + dy * dy) - dz
    widen = (1.0 + world.steepest) * spread
    t = 0.0
    while t < MAX_DISTANCE_M and rate + widen > 1e-6:
        free = oz + t * dz - ground_height(world.heights, world.half_m, ox + t * dx, oy + t * dy) - widen * t
        if free < 0.1:
            break
        t += free / (rate + widen)
    return t


@njit(cache=True, fastmath=True)
def leaf_gap(x: float, y: float, z: float, seed: int) -> bool:
    """Whether the outer shell of a crown has a gap here."""
    return noise3(x * 3.1, y * 3.1, z * 3.1, seed) + 0.5 * noise3(x * 7.3, y * 7.3, z * 7.3, seed + 5) < 0.12


@njit(cache=True, fastmath=True)
def hit_ellipsoid(  # noqa: PLR0911
    centre: Array,
    radii: Array,
    material: Array,
    seeds: Array,
    p: int,
    ox: float,
    oy: float,
    oz: float,
    dx: float,
    dy: float,
    dz: float,
    limit: float,
) -> tuple[float, int]:
    """Distance to the ellipsoid and 0 (full) or 1 (its leafy shell); leaves have gaps in the shell over a full core."""
    rx, ry, rz = radii[p, 0], radii[p, 1], radii[p, 2]
    ax, ay, az = dx / rx, dy / ry, dz / rz
    bx, by, bz = (ox - centre[p, 0]) / rx, (oy - centre[p, 1]) / ry, (oz - centre[p, 2]) / rz
    a = ax * ax + ay * ay + az * az
    b = ax * bx + ay * by + az * bz
    c = bx * bx + by * by + bz * bz
    disc = b * b - a * (c - 1.0)
    if disc <= 0:
        return limit, 0
    root = math.sqrt(disc)
    near, far = (-b - root) / a, (-b + root) / a
    if far <= 0 or near >= limit:
        return limit, 0
    if material[p, 0] != LEAVES:
        return (near if near > 0 else limit), 0
    seed = seeds[p]
    if near > 0 and not leaf_gap(ox + near * dx, oy + near * dy, oz + near * dz, seed):
        return near, 1
    core = 0.82 * 0.82
    disc = b * b - a * (c - core)
    if disc > 0:
        inner = (-b - math.sqrt(disc)) / a
        return (inner if 0 < inner < limit else limit), 0
    if 0 < far < limit and not leaf_gap(ox + far * dx, oy + far * dy, oz + far * dz, seed):
        return far, 1
    return limit, 0


@njit(cache=True, fastmath=True)
def hit_polytope(
    planes: Array,
    plane_count: Array,
    p: int,
    ox: float,
    oy: float,
    oz: float,
    dx: float,
    dy: float,
    dz: float,
    limit: float,
) -> tuple[float, int]:
    """Distance to the convex polytope and the face hit, or ``limit``."""
    enter, leave, face = 0.0, limit, -1
    for k in range(plane_count[p]):
        nx, ny, nz, offset = planes[p, k]
        speed = nx * dx + ny * dy + nz * dz
        room = offset - (nx * ox + ny * oy + nz * oz)
        if speed < -1e-9:
            t = room / speed
            if t > enter:
                enter, face = t, k
        elif speed > 1e-9:
            leave = min(leave, room / speed)
        elif room < 0:
            return limit, -1
        if enter >= leave:
            return limit, -1
    return (enter, face) if face >= 0 else (limit, -1)


@njit(cache=True, fastmath=True)
def trace(
    world: World, solids: Array, ox: float, oy: float, oz: float, dx: float, dy: float, dz: float, start: float
) -> tuple[float, int, int]:
    """First surface along a ray: (distance, solid or -1 for ground or -2 for sky, face); no ground before ``start``."""
    best, hit, hit_face = MAX_DISTANCE_M, -2, 0
    for p in solids:
        cx, cy, cz = world.bound_centre[p, 0] - ox, world.bound_centre[p, 1] - oy, world.bound_centre[p, 2] - oz
        along = cx * dx + cy * dy + cz * dz
        r = world.bound_radius[p]
        if cx * cx + cy * cy + cz * cz - along * along > r * r or along - r > best:
            continue
        if world.kind[p] == ELLIPSOID:
            t, face = hit_ellipsoid(
                world.centre, world.radii, world.material, world.seed, p, ox, oy, oz, dx, dy, dz, best
            )
        else:
            t, face = hit_polytope(world.planes, world.plane_count, p, ox, oy, oz, dx, dy, dz, best)
        if t < best:
            best, hit, hit_face = t, p, face
    t = hit_ground(world.heights, world.half_m, world.highest_m, world.slopes, ox, oy, oz, dx, dy, dz, start, best)
    if t < best:
        best, hit = t, -1
    return best, hit, hit_face


@njit(cache=True, fastmath=True)
def sunlight(world: World, x: float, y: float, z: float) -> float:
    """Share of the sun that reaches a point, 0..1, from the shadow map with bilinear softening."""
    n = world.sun_depth.shape[0]
    a = x * world.sun_axes[0, 0] + y * world.sun_axes[0, 1] + z * world.sun_axes[0, 2]
    b = x * world.sun_axes[1, 0] + y * world.sun_axes[1, 1] + z * world.sun_axes[1, 2]
    depth = MAX_DISTANCE_M / 2 - (x * world.sun[0] + y * world.sun[1] + z * world.sun[2])
    u = (a + world.sun_half_m) / (2 * world.sun_half_m) * n - 0.5
    v = (b + world.sun_half_m) / (2 * world.sun_half_m) * n - 0.5
    i, j = math.floor(u), math.floor(v)
    if i < 0 or j < 0 or i >= n - 1 or j >= n - 1:
        return 1.0
    fu, fv = u - i, v - j
    limit = depth - 0.25
    lit00 = 1.0 if world.sun_depth[j, i] >= limit else 0.0
    lit10 = 1.0 if world.sun_depth[j, i + 1] >= limit else 0.0
    lit01 = 1.0 if world.sun_depth[j + 1, i] >= limit else 0.0
    lit11 = 1.0 if world.sun_depth[j + 1, i + 1] >= limit else 0.0
    return (lit00 * (1 - fu) + lit10 * fu) * (1 - fv) + (lit01 * (1 - fu) + lit11 * fu) * fv


@njit(cache=True, parallel=True, fastmath=True)
def render_sun_depth(world: World, starts: Array, solids: Array, out: Array) -> None:
    """Fill ``out`` [S, S] with the distance of the first surface along parallel sun rays."""
    n = out.shape[0]
    tiles = (n + TILE_PX - 1) // TILE_PX
    reach = MAX_DISTANCE_M / 2
    for tile in prange(tiles * tiles):
        own = solids[starts[tile] : starts[tile + 1]]
        for j in range(tile // tiles * TILE_PX, min(n, (tile // tiles + 1) * TILE_PX)):
            for i in range(tile % tiles * TILE_PX, min(n, (tile % tiles + 1) * TILE_PX)):
                a = ((i + 0.5) / n * 2 - 1) * world.sun_half_m
                b = ((j + 0.5) / n * 2 - 1) * world.sun_half_m
                ox = a * world.sun_axes[0, 0] + b * world.sun_axes[1, 0] + reach * world.sun[0]
                oy = a * world.sun_axes[0, 1] + b * world.sun_axes[1, 1] + reach * world.sun[1]
                oz = a * world.sun_axes[0, 2] + b * world.sun_axes[1, 2] + reach * world.sun[2]
                out[j, i] = trace(world, own, ox, oy, oz, -world.sun[0], -world.sun[1], -world.sun[2], 0.0)[0]


@njit(cache=True, fastmath=True)
def wall_pattern(material: int, u: float, v: float, half: float, height: float, seed: int, px: float) -> float:
    """Brightness, about 0.2..1.4, of a roof or wall at (u, v) metres on its face, without detail finer than ``px``."""
    stain = 1.0 + 0.22 * fractal2(u, v, 3.0, px, 0.7, seed)
    if material == TILES:
        row = math.floor(v / 0.32)
        column = u / 0.27 + 0.5 * (row & 1)
        cell = math.floor(column)
        edge = v / 0.32 - row
        shade = 0.62 + 0.75 * hash01(cell, row, 1, seed)
        return shade * stain * (0.6 if edge < 0.16 else 1.0) * (0.75 if column - cell < 0.1 else 1.0)
    if material == PLANKS:
        board = math.floor(u / 0.22)
        joint = u / 0.22 - board
        shade = 0.6 + 0.7 * hash01(board, math.floor(v / 2.6 + hash01(board, 0, 2, seed)), 1, seed)
        return shade * stain * (0.45 if joint < 0.12 else 1.0) * (1 + 0.2 * noise2(u * 30, v * 1.5, seed))
    row = math.floor(v / 0.38)
    column = u / 0.62 + 0.5 * hash01(0, row, 3, seed)
    cell = math.floor(column)
    mortar = v / 0.38 - row < 0.13 or column - cell < 0.07
    shade = 0.55 + 0.75 * hash01(cell, row, 1, seed)
    if material == PLASTER:
        patch = noise2(u * 0.55, v * 0.55, seed + 9) + 0.4 * noise2(u * 2.1, v * 2.1, seed + 10)
        return stain * (shade * (0.5 if mortar else 0.75) if patch > 0.62 else 1.0)
    return shade * stain * (0.5 if mortar else 1.0)


@njit(cache=True, fastmath=True)
def opening(u: float, v: float, half: float, height: float, face: int) -> int:
    """What is at (u, v) of a wall: 0 wall, 1 window frame or sill, 2 glass, 3 door."""
    if face == 2 and abs(u - 0.4) < 0.75 and v < 2.25:
        return 3 if abs(u - 0.4) < 0.6 and v < 2.1 else 1
    slot = math.floor(u / 2.3 + 0.5)
    storey = math.floor(v / 2.8)
    if abs(slot * 2.3) + 0.8 > half or (storey + 1) * 2.8 - 0.3 > height or v < 0:
        return 0
    du, dv = abs(u - slot * 2.3), abs(v - storey * 2.8 - 1.65)
    if face == 2 and storey == 0 and abs(u - 0.4) < 1.6:
        return 0
    if du > 0.56 or dv > 0.76:
        return 0
    return 1 if du > 0.42 or dv > 0.62 or du < 0.05 or dv < 0.05 else 2


@njit(cache=True, fastmath=True)
def shade_solid(world: World, p: int, face: int, x: float, y: float, z: float, px: float) -> tuple[float, float, float]:
    """Linear colour of a solid at a point on its surface: texture, Lambert sun with shadow, sky and bounce light."""
    seed = world.seed[p]
    red, green, blue = world.colour[p]
    kind = world.material[p, face if world.kind[p] == POLYTOPE else 0]
    above = z - ground_height(world.heights, world.half_m, x, y)
    occlusion = 0.5 + 0.5 * min(1.0, max(0.0, above) / 1.5)
    if world.kind[p] == ELLIPSOID:
        nx = (x - world.centre[p, 0]) / world.radii[p, 0] ** 2
        ny = (y - world.centre[p, 1]) / world.radii[p, 1] ** 2
        nz = (z - world.centre[p, 2]) / world.radii[p, 2] ** 2
        length = math.sqrt(nx * nx + ny * ny + nz * nz)
        rough = 0.55 if kind == LEAVES else 0.45
        size = 0.45 if kind == LEAVES else 0.35
        nx = nx / length + rough * fractal3(x, y, z, size, px, 0.8, seed + 31)
        ny = ny / length + rough * fractal3(x, y, z, size, px, 0.8, seed + 32)
        nz = nz / length + rough * fractal3(x, y, z, size, px, 0.8, seed + 33)
        if kind == LEAVES:
            tone = 1.0 + 0.6 * fractal3(x, y, z, 0.9, px, 0.9, seed)
            warm = 1.0 + 0.25 * noise3(x * 0.7, y * 0.7, z * 0.7, seed + 3)
            tone *= 1.15 if face == 1 else 0.55
            occlusion *= 0.75 + 0.25 * min(1.0, max(-1.0, (z - world.centre[p, 2]) / world.radii[p, 2]))
        else:
            tone = 1.0 + 0.9 * fractal3(x, y, z, 0.5, px, 0.95, seed)
            warm = 1.0
            moss = noise3(x * 1.3, y * 1.3, z * 1.3, seed + 7)
            if moss > 0.25 and nz > 0:
                red, green, blue = red * 0.7, green * 0.95, blue * 0.5
        red, green, blue = red * tone * warm, green * tone, blue * tone
    else:
        nx, ny, nz = world.planes[p, face, 0], world.planes[p, face, 1], world.planes[p, face, 2]
        flat = math.sqrt(nx * nx + ny * ny)
        tx, ty = (-ny / flat, nx / flat) if flat > 1e-3 else (1.0, 0.0)
        lx, ly, lz = x - world.centre[p, 0], y - world.centre[p, 1], z - world.centre[p, 2]
        u = lx * tx + ly * ty
        v = lz if flat > 0.99 else -lx * ty * nz + ly * tx * nz + lz * flat
        tone = wall_pattern(kind, u, v, world.face_half[p, face], world.wall_height[p], seed + 101 * face, px)
        hole = 0
        if kind in (PLASTER, STONE) and flat > 0.99:
            hole = opening(u, v, world.face_half[p, face], world.wall_height[p], face)
        if hole == 1:
            red, green, blue = 0.62, 0.60, 0.55
            tone = 1.0 + 0.15 * fractal2(u, v, 0.4, px, 0.8, seed)
        elif hole == 2:
            tone = 0.6 + 0.7 * hash01(math.floor(u / 2.3 + 0.5), int(v / 2.8), 11, seed + face)
            red, green, blue = 0.05, 0.07, 0.09
        elif hole == 3:
            red, green, blue = 0.20, 0.10, 0.05
            tone = wall_pattern(PLANKS, u, v, 1.0, 3.0, seed, px)
        elif kind == TILES:  # moss and lichen grow on a roof
            lichen = fractal2(u, v, 2.4, px, 0.7, seed + 41)
            if lichen > 0.35:
                red, green, blue = 0.6 * red + 0.05, 0.6 * green + 0.09, 0.6 * blue + 0.03
        red, green, blue = red * tone, green * tone, blue * tone
    length = max(1e-6, math.sqrt(nx * nx + ny * ny + nz * nz))
    cosine = (nx * world.sun[0] + ny * world.sun[1] + nz * world.sun[2]) / length
    sun = max(0.0, cosine) * sunlight(world, x + 0.05 * nx, y + 0.05 * ny, z + 0.05 * nz) * 2.5
    sky = (0.55 + 0.45 * nz / length) * occlusion * 0.8
    return red * (sun + sky * 0.85), green * (sun * 0.93 + sky), blue * (sun * 0.80 + sky * 1.2)


@njit(cache=True, fastmath=True)
def bilinear(level: Array, u: float, v: float, channel: int) -> float:
    """Texel value at (u, v) in 0..1, squared: maps are stored with gamma 2."""
    n = level.shape[0]
    a = min(max(u * n - 0.5, 0.0), n - 1.001)
    b = min(max(v * n - 0.5, 0.0), n - 1.001)
    i, j = int(a), int(b)
    fu, fv = a - i, b - j
    low = level[j, i, channel] * (1 - fu) + level[j, i + 1, channel] * fu
    high = level[j + 1, i, channel] * (1 - fu) + level[j + 1, i + 1, channel] * fu
    value = (low * (1 - fv) + high * fv) / 255.0
    return value * value


@njit(cache=True, fastmath=True)
def ground_colour(maps: tuple[Array, ...], half_m: float, x: float, y: float, px: float) -> tuple[float, float, float]:
    """Lit colour of the terrain from a pyramid of maps over [-half, half]², filtered to the footprint ``px``."""
    u, v = (x + half_m) / (2 * half_m), (y + half_m) / (2 * half_m)
    texel = 2 * half_m / maps[0].shape[0]
    level = min(max(math.log2(max(px, 1e-6) / texel), 0.0), len(maps) - 1.001)
    k = int(level)
    f = level - k
    lower, upper = maps[k], maps[k + 1]
    red = bilinear(lower, u, v, 0) * (1 - f) + bilinear(upper, u, v, 0) * f
    green = bilinear(lower, u, v, 1) * (1 - f) + bilinear(upper, u, v, 1) * f
    blue = bilinear(lower, u, v, 2) * (1 - f) + bilinear(upper, u, v, 2) * f
    return 3 * red, 3 * green, 3 * blue


@njit(cache=True, fastmath=True)
def turned(camera_to_world: Array, a: float, b: float) -> tuple[float, float, float]:
    """Unit direction in the world of the ray through (a, b) on the image plane at depth 1."""
    scale = 1.0 / math.sqrt(a * a + b * b + 1.0)
    dx = (camera_to_world[0, 0] * a + camera_to_world[0, 1] * b + camera_to_world[0, 2]) * scale
    dy = (camera_to_world[1, 0] * a + camera_to_world[1, 1] * b + camera_to_world[1, 2]) * scale
    dz = (camera_to_world[2, 0] * a + camera_to_world[2, 1] * b + camera_to_world[2, 2]) * scale
    return dx, dy, dz


@njit(cache=True, parallel=True, fastmath=True)
def render_photo(
    world: World,
    inner: tuple[Array, ...],
    inner_half_m: float,
    outer: tuple[Array, ...],
    camera_to_world: Array,
    focal_px: float,
    starts: Array,
    solids: Array,
    out: Array,
) -> None:
    """Fill ``out`` [H, W, 3] with linear colour, 2x2 rays a pixel; principal point in the middle of the photo."""
    height, width = out.shape[0], out.shape[1]
    columns = (width + TILE_PX - 1) // TILE_PX
    rows = (height + TILE_PX - 1) // TILE_PX
    ox, oy, oz = camera_to_world[0, 3], camera_to_world[1, 3], camera_to_world[2, 3]
    for tile in prange(rows * columns):
        own = solids[starts[tile] : starts[tile + 1]]
        a = ((tile % columns + 0.5) * TILE_PX - 0.5 * width) / focal_px
        b = ((tile // columns + 0.5) * TILE_PX - 0.5 * height) / focal_px
        dx, dy, dz = turned(camera_to_world, a, b)
        start = clear_distance(world, ox, oy, oz, dx, dy, dz, 0.71 * TILE_PX / focal_px)
        for j in range(tile // columns * TILE_PX, min(height, (tile // columns + 1) * TILE_PX)):
            for i in range(tile % columns * TILE_PX, min(width, (tile % columns + 1) * TILE_PX)):
                red, green, blue = 0.0, 0.0, 0.0
                for sample in range(4):
                    a = (i + 0.25 + 0.5 * (sample & 1) - 0.5 * width) / focal_px
                    b = (j + 0.25 + 0.5 * (sample >> 1) - 0.5 * height) / focal_px
                    scale = 1.0 / math.sqrt(a * a + b * b + 1.0)
                    dx, dy, dz = turned(camera_to_world, a, b)
                    t, hit, face = trace(world, own, ox, oy, oz, dx, dy, dz, start)
                    x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
                    px = 0.6 * t * scale / focal_px
                    if hit >= 0:
                        r, g, b2 = shade_solid(world, hit, face, x, y, z, px)
                    elif hit == -1 and max(abs(x), abs(y)) < inner_half_m - 0.2:
                        r, g, b2 = ground_colour(inner, inner_half_m, x, y, px)
                    elif hit == -1:
                        r, g, b2 = ground_colour(outer, world.half_m, x, y, px)
                    else:
                        r, g, b2 = 0.75 - 0.3 * dz, 0.85 - 0.25 * dz, 1.0
                    red, green, blue = red + 0.25 * r, green + 0.25 * g, blue + 0.25 * b2
                out[j, i, 0], out[j, i, 1], out[j, i, 2] = red, green, blue


@njit(cache=True)
def tile_lists(boxes: Array, columns: int, rows: int) -> tuple[Array, Array]:
    """Solids by tile, as CSR (starts [T + 1], solids).

    ``boxes`` [P, 4]: first and last tile column, first and last row; empty where first > last.
    """
    starts = np.zeros(columns * rows + 1, np.int64)
    for p in range(boxes.shape[0]):
        for row in range(max(0, boxes[p, 2]), min(rows - 1, boxes[p, 3]) + 1):
            for column in range(max(0, boxes[p, 0]), min(columns - 1, boxes[p, 1]) + 1):
                starts[row * columns + column + 1] += 1
    for k in range(columns * rows):
        starts[k + 1] += starts[k]
    fill = starts[:-1].copy()
    solids = np.empty(starts[-1], np.int64)
    for p in range(boxes.shape[0]):
        for row in range(max(0, boxes[p, 2]), min(rows - 1, boxes[p, 3]) + 1):
            for column in range(max(0, boxes[p, 0]), min(columns - 1, boxes[p, 1]) + 1):
                solids[fill[row * columns + column]] = p
                fill[row * columns + column] += 1
    return starts, solids


def perspective_tiles(
    world: World, world_to_camera: Array, focal_px: float, width: int, height: int
) -> tuple[Array, Array]:
    """Which solids can be seen in each tile of a photo, from their bounding spheres (conservative)."""
    c = world.bound_centre @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    r = world.bound_radius
    near = np.maximum(c[:, 2] - r, 1e-6)
    far = np.maximum(c[:, 2] + r, 1e-6)
    columns, rows = -(-width // TILE_PX), -(-height // TILE_PX)
    boxes = np.empty((len(r), 4), np.int64)
    for axis, size in ((0, width), (1, height)):
        low, high = c[:, axis] - r, c[:, axis] + r
        first = np.where(low < 0, low / near, low / far) * focal_px + size / 2
        last = np.where(high > 0, high / near, high / far) * focal_px + size / 2
        boxes[:, 2 * axis] = np.floor(np.clip(first / TILE_PX, -1, size))
        boxes[:, 2 * axis + 1] = np.floor(np.clip(last / TILE_PX, -1, size))
    boxes[c[:, 2] + r <= 0] = (1, 0, 1, 0)
    inside = (c[:, 2] - r <= 0.05) & (c[:, 2] + r > 0)
    boxes[inside] = (0, columns - 1, 0, rows - 1)
    return tile_lists(boxes, columns, rows)


def sun_tiles(world: World) -> tuple[Array, Array]:
    """Which solids each tile of the shadow map can meet."""
    n = world.sun_depth.shape[0]
    pixels_per_m = n / (2 * world.sun_half_m)
    plane = world.bound_centre @ world.sun_axes.T  # [P, 2]
    low = (plane - world.bound_radius[:, None] + world.sun_half_m) * pixels_per_m / TILE_PX
    high = (plane + world.bound_radius[:, None] + world.sun_half_m) * pixels_per_m / TILE_PX
    boxes = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)
    tiles = -(-n // TILE_PX)
    return tile_lists(np.floor(np.clip(boxes, -1, tiles)).astype(np.int64), tiles, tiles)


def develop(linear: Array, noise: Array) -> Array:
    """Photo [H, W, 3] uint8 from linear colour: filmic shoulder, gamma 2.2, sensor noise in 8-bit steps."""
    exposed = 1.0 - np.exp(-1.15 * np.maximum(linear, 0))
    return np.clip(np.round(255 * exposed ** (1 / 2.2) + noise), 0, 255).astype(np.uint8)
