# Longer than 400 lines: tables and kernels of one scene
"""The scene of the sample photos: a hamlet in a wooded valley, built from a seed.

World frame: ENU metres, origin on the village green at height 0. Everything is the project's own; nothing is loaded.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from benchmarks.hamlet.render import (
    ELLIPSOID,
    LEAVES,
    MASONRY,
    MAX_DISTANCE_M,
    PAINT,
    PLANKS,
    PLASTER,
    POLYTOPE,
    ROCK,
    STONE,
    TILES,
    World,
    fractal2,
    ground_height,
    hash01,
    noise2,
    render_sun_depth,
    sun_tiles,
    sunlight,
)

Array = np.ndarray[Any, Any]

HALF_M = 128.0
INNER_HALF_M = 52.0
SUN = np.array([-0.52, -0.38, 0.765])
SUN_HALF_M, SUN_MAP_PX = 110.0, 2048

# Houses: x, y, yaw in degrees, length, width, wall height, walls, wall colour, roof colour
HOUSES = (
    (-9.0, 6.0, 20.0, 13.0, 8.0, 5.7, PLASTER, (0.62, 0.56, 0.42), (0.36, 0.13, 0.07)),
    (10.0, 9.5, -35.0, 10.0, 7.0, 5.6, STONE, (0.42, 0.37, 0.30), (0.16, 0.15, 0.16)),
    (13.5, -8.0, 75.0, 14.0, 7.5, 4.0, PLANKS, (0.33, 0.18, 0.09), (0.30, 0.20, 0.12)),
    (-12.0, -11.0, -10.0, 9.0, 6.5, 2.9, PLASTER, (0.50, 0.27, 0.20), (0.33, 0.16, 0.08)),
    (-27.0, -4.0, 60.0, 8.0, 6.0, 2.9, STONE, (0.36, 0.33, 0.30), (0.38, 0.17, 0.09)),
    (2.0, 27.0, 8.0, 11.0, 6.5, 2.9, PLASTER, (0.55, 0.52, 0.48), (0.20, 0.17, 0.17)),
    (31.0, 6.0, -62.0, 9.0, 7.0, 3.0, PLANKS, (0.22, 0.26, 0.20), (0.31, 0.14, 0.08)),
)
TOWER = (0.5, 12.5, 14.0)  # x, y, yaw of the church tower
PATHS = (
    ((-60.0, -30.0), (-38.0, -15.0), (-20.0, -4.0), (-2.0, -2.0), (6.0, -1.0), (24.0, 2.0), (44.0, 16.0), (70.0, 30.0)),
    ((-2.0, -2.0), (3.0, -16.0), (0.0, -34.0), (8.0, -60.0)),
)
FIELDS = (
    (-2.0, -32.0, 0.35, 12.0, 8.0),
    (33.0, -22.0, -0.5, 10.0, 9.0),
    (-30.0, 22.0, 0.9, 9.0, 11.0),
)  # x, y, yaw, half sizes


class SampleScene(NamedTuple):
    """What the ray caster needs: solids, and lit ground maps (inner and whole), each a pyramid of [N, N, 3] uint8."""

    world: World
    inner: tuple[Array, ...]
    outer: tuple[Array, ...]


def build_scene(seed: int) -> SampleScene:
    """The whole scene; about two seconds of computing on two cores."""
    heights = terrain_heights(seed)
    solids = Solids(heights)
    rng = np.random.default_rng(seed)
    for index, house in enumerate(HOUSES):
        add_house(solids, index, house)
    add_tower(solids)
    add_walls_and_goods(solids, rng)
    add_trees(solids, rng)
    add_rocks(solids, rng)
    world = solids.world()
    render_sun_depth(world, *sun_tiles(world), world.sun_depth)
    shade = contact_shade(solids)
    paths = [np.array(path) for path in PATHS]
    segments = np.concatenate([np.concatenate([p[:-1], p[1:]], 1) for p in paths])
    fields = np.array(FIELDS)
    yards = np.array([(x, y, 0.5 * length) for x, y, _, length, *_ in HOUSES])
    maps = []
    for size, half in ((3072, INNER_HALF_M), (2048, HALF_M)):
        texels = np.empty((size, size, 3), np.uint8)
        paint_ground(world, shade, segments, fields, yards, half, seed, texels)
        maps.append(pyramid(texels))
    return SampleScene(world, maps[0], maps[1])


def pyramid(level: Array) -> tuple[Array, ...]:
    """Map and its halvings by box filter, six levels."""
    levels = [level]
    for _ in range(5):
        a = levels[-1].astype(np.uint16)
        levels.append(((a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2] + 2) // 4).astype(np.uint8))
    return tuple(levels)


@njit(cache=True, parallel=True)
def fill_heights(heights: Array, half: float, seed: int) -> None:
    """Valley floor with gentle swells; hills rise all around, so that no photo looks past the scene."""
    n = heights.shape[0]
    for j in prange(n):
        for i in range(n):
            x, y = (i / (n - 1) * 2 - 1) * half, (j / (n - 1) * 2 - 1) * half
            r = math.sqrt(x * x + y * y) + 7 * noise2(x / 45, y / 45, seed + 2)
            s = min(max((r - 36) / 80, 0.0), 1.0)
            hill = 28 * s * s * (3 - 2 * s) * (1 + 0.3 * noise2(x / 38, y / 38, seed + 3))
            swell = min(max((math.sqrt(x * x + y * y) - 8) / 25, 0.15), 1.0)
            rough = 1.6 * noise2(x / 26, y / 26, seed) + 0.5 * noise2(x / 9, y / 9, seed + 1)
            heights[j, i] = hill + swell * rough + 0.12 * noise2(x / 2.7, y / 2.7, seed + 4)


def terrain_heights(seed: int) -> Array:
    heights = np.empty((1024, 1024), np.float32)
    fill_heights(heights, HALF_M, seed)
    return heights


def local_slopes(heights: Array) -> Array:
    """[32, 32] steepest slope of the bilinear surface ``heights`` [1024, 1024] in each cell and its neighbours."""
    east = np.abs(np.diff(heights, axis=1, append=heights[:, -1:]))
    north = np.abs(np.diff(heights, axis=0, append=heights[-1:]))
    spacing_m = 2 * HALF_M / (len(heights) - 1)
    cells = [d.reshape(32, 32, 32, 32).max((1, 3)) for d in (east, north)]
    padded = np.pad(np.hypot(*cells) / spacing_m * 1.02, 1, mode="edge")
    return np.max([padded[j : j + 32, i : i + 32] for j in range(3) for i in range(3)], axis=0)


class Solids:
    """Collects solids; :meth:`world` packs them into arrays."""

    def __init__(self, heights: Array) -> None:
        self.heights = heights
        self.rows: list[dict[str, Any]] = []
        self.footprints: list[
            tuple[float, float, float, float, float]
        ] = []  # x, y, radius, strength, height above ground

    def ground(self, x: float, y: float) -> float:
        return float(ground_height(self.heights, HALF_M, x, y))

    def ellipsoid(
        self, centre: tuple[float, float, float], radii: tuple[float, float, float], material: int, colour: Any
    ) -> None:
        self.rows.append(
            {
                "kind": ELLIPSOID,
                "centre": centre,
                "radii": radii,
                "bound": (*centre, max(radii)),
                "planes": np.zeros((0, 4)),
                "material": material,
                "colour": colour,
            }
        )

    def polytope(
        self,
        origin: tuple[float, float, float],
        yaw_deg: float,
        faces: list[tuple[tuple[float, float, float], float, float]],
        corners: list[tuple[float, float, float]],
        material: int | tuple[int, ...],
        colour: Any,
        wall_height: float = 0.0,
    ) -> None:
        """Faces as (outward normal, offset, half width) and corners in the local frame (x along yaw)."""
        c, s = math.cos(math.radians(yaw_deg)), math.sin(math.radians(yaw_deg))
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        place = np.array(origin)
        normals = np.array([f[0] for f in faces], float)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        offsets = np.array([f[1] for f in faces])[:, None] / length
        normals = normals / length @ turn.T
        points = np.array(corners) @ turn.T + place
        middle = (points.min(0) + points.max(0)) / 2
        self.rows.append(
            {
                "kind": POLYTOPE,
                "centre": origin,
                "radii": (1, 1, 1),
                "bound": (*middle, float(np.linalg.norm(points - middle, axis=1).max()) + 0.01),
                "planes": np.concatenate([normals, offsets + normals @ place[:, None]], 1),
                "half": [f[2] for f in faces],
                "material": material,
                "colour": colour,
                "wall_height": wall_height,
            }
        )

    def box(
        self,
        origin: tuple[float, float, float],
        yaw_deg: float,
        half: tuple[float, float, float],
        material: int,
        colour: Any,
    ) -> None:
        """Box standing on ``origin``, of height 2 * half[2]."""
        a, b, h = half[0], half[1], 2 * half[2]
        faces = [((1, 0, 0), a, b), ((-1, 0, 0), a, b), ((0, -1, 0), b, a), ((0, 1, 0), b, a), ((0, 0, 1), h, a)]
        corners = [(x, y, z) for x in (-a, a) for y in (-b, b) for z in (0, h)]
        self.polytope(origin, yaw_deg, faces, corners, material, colour)  # type: ignore[arg-type]

    def world(self) -> World:
        count = len(self.rows)
        planes, half = np.zeros((count, 6, 4)), np.zeros((count, 6))
        material = np.zeros((count, 6), np.int64)
        for p, row in enumerate(self.rows):
            k = len(row["planes"])
            planes[p, :k] = row["planes"]
            half[p, :k] = row.get("half", 0)
            material[p] = row["material"] if isinstance(row["material"], int) else (*row["material"], *(0,) * 6)[:6]
        bound = np.array([row["bound"] for row in self.rows], float)
        sun = SUN / np.linalg.norm(SUN)
        across = np.cross(sun, [0, 0, 1])
        slopes = local_slopes(self.heights)
        across /= np.linalg.norm(across)
        return World(
            kind=np.array([row["kind"] for row in self.rows]),
            centre=np.array([row["centre"] for row in self.rows], float),
            radii=np.array([row["radii"] for row in self.rows], float),
            bound_centre=np.ascontiguousarray(bound[:, :3]),
            bound_radius=np.ascontiguousarray(bound[:, 3]),
            planes=planes,
            plane_count=np.array([len(row["planes"]) for row in self.rows]),
            material=material,
            face_half=half,
            wall_height=np.array([row.get("wall_height", 0.0) for row in self.rows]),
            colour=np.array([row["colour"] for row in self.rows], float),
            seed=np.arange(count) * 7919 + 13,
            heights=self.heights,
            half_m=HALF_M,
            highest_m=float(self.heights.max()) + 0.01,
            steepest=float(slopes.max()),
            slopes=slopes,
            sun=sun,
            sun_axes=np.stack([across, np.cross(sun, across)]),
            sun_half_m=SUN_HALF_M,
            sun_depth=np.full((SUN_MAP_PX, SUN_MAP_PX), MAX_DISTANCE_M, np.float32),
        )


def add_house(solids: Solids, index: int, house: tuple[Any, ...]) -> None:
    """Body with gables, two roof slabs with eaves, a chimney, a step of stone."""
    x, y, yaw, length, width, wall, material, colour, roof = house
    a, b = length / 2, width / 2
    origin = (x, y, solids.ground(x, y) - 0.1)
    rise = 0.85  # tangent of the roof's pitch
    top = wall + rise * b
    faces = [
        ((1, 0, 0), a, b),
        ((-1, 0, 0), a, b),
        ((0, -1, 0), b, a),
        ((0, 1, 0), b, a),
        ((0, -rise, 1), top, a),
        ((0, rise, 1), top, a),
    ]
    corners = [(sx * a, sy * b, z) for sx in (-1, 1) for sy in (-1, 1) for z in (-1.0, wall)] + [
        (a, 0, top),
        (-a, 0, top),
    ]
    solids.polytope(origin, yaw, faces, corners, (material,) * 4 + (TILES,) * 2, colour, wall)  # type: ignore[arg-type]
    eave, over, thick = b + 0.7, a + 0.5, 0.28
    for side in (-1, 1):
        slab = [
            ((0, side * rise, 1), top + thick, over),
            ((0, -side * rise, -1), -top, over),
            ((1, 0, 0), over, 1),
            ((-1, 0, 0), over, 1),
            ((0, side, 0), eave, over),
            ((0, -side, 0), 0.0, over),
        ]
        low = top - rise * eave
        corners = [(sx * over, sy, z) for sx in (-1, 1) for sy, z in ((0, top + thick), (side * eave, low))]
        solids.polytope(origin, yaw, slab, corners, (TILES, PLANKS, PLANKS, PLANKS, PLANKS, PLANKS), roof)  # type: ignore[arg-type]
    c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    if material != PLANKS:
        u, v = 0.55 * a, 0.35 * b
        base = origin[2] + top - rise * v - 0.6
        solids.box((x + c * u - s * v, y + s * u + c * v, base), yaw, (0.5, 0.42, 1.1), STONE, (0.38, 0.24, 0.18))
    for k in range(-int(a), int(a) + 1):
        solids.footprints.append((x + c * k, y + s * k, b + 1.3, 0.55, 0.0))


def add_tower(solids: Solids) -> None:
    """A square church tower of stone with a pointed roof."""
    x, y, yaw = TOWER
    ground = solids.ground(x, y) - 0.2
    a, wall = 2.3, 11.2
    body = [((1, 0, 0), a, a), ((-1, 0, 0), a, a), ((0, -1, 0), a, a), ((0, 1, 0), a, a), ((0, 0, 1), wall, a)]
    corners = [(sx * a, sy * a, z) for sx in (-1, 1) for sy in (-1, 1) for z in (0, wall)]
    solids.polytope((x, y, ground), yaw, body, corners, STONE, (0.46, 0.42, 0.34), wall)  # type: ignore[arg-type]
    e, tip = a + 0.45, 5.2
    slope = tip / e
    roof = [((sx * slope, sy * slope, 1), tip, e) for sx, sy in ((1, 0), (-1, 0), (0, -1), (0, 1))] + [
        ((0, 0, -1), 0.0, e)
    ]
    corners = [(sx * e, sy * e, 0) for sx in (-1, 1) for sy in (-1, 1)] + [(0, 0, tip)]
    solids.polytope((x, y, ground + wall), yaw, roof, corners, (TILES,) * 4 + (PLANKS,), (0.13, 0.20, 0.18))  # type: ignore[arg-type]
    solids.footprints.append((x, y, a + 2.0, 0.6, 0.0))


def add_walls_and_goods(solids: Solids, rng: np.random.Generator) -> None:
    """Dry-stone walls that follow the ground, crates and bales in the yards."""
    for x0, y0, x1, y1 in ((-22, 14, -6, 19), (18, -18, 26, -4), (-20, -20, -4, -21.5), (18, 16, 27, 12)):
        pieces = int(math.hypot(x1 - x0, y1 - y0) / 2) + 1
        yaw = math.degrees(math.atan2(y1 - y0, x1 - x0))
        for k in range(pieces):
            t = (k + 0.5) / pieces
            x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
            solids.box(
                (x, y, solids.ground(x, y) - 0.3),
                yaw + rng.uniform(-4, 4),
                (1.08, 0.3, 0.62),
                MASONRY,
                (0.40, 0.38, 0.34),
            )
            solids.footprints.append((x, y, 0.9, 0.4, 0.0))
    colours = ((0.55, 0.12, 0.08), (0.10, 0.22, 0.42), (0.50, 0.40, 0.14), (0.16, 0.32, 0.16), (0.45, 0.28, 0.13))
    for x, y in (
        (-2, 3),
        (-0.5, 4.3),
        (3.5, 4),
        (5, -6),
        (6.5, -7.6),
        (-6, -6),
        (-5, -7.8),
        (-19, 2),
        (19, 2.5),
        (7, -13),
    ):
        size = rng.uniform(0.45, 0.95)
        half = (size, size * rng.uniform(0.6, 1), size * rng.uniform(0.5, 0.9))
        colour = colours[int(rng.integers(len(colours)))]
        solids.box((x, y, solids.ground(x, y) - 0.1), rng.uniform(0, 90), half, PLANKS, colour)
        solids.footprints.append((x, y, size + 0.4, 0.45, 0.0))


def free_ground(x: float, y: float, margin: float) -> bool:
    """Whether a tree or rock may stand here: off houses, tower, paths, fields and the green in the middle."""
    for hx, hy, _, length, *_ in HOUSES:
        if math.hypot(x - hx, y - hy) < 0.5 * length + margin + 1.0:
            return False
    if math.hypot(x - TOWER[0], y - TOWER[1]) < 4 + margin:
        return False
    for path in PATHS:
        for (ax, ay), (bx, by) in itertools.pairwise(path):
            t = min(max(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2), 0), 1)
            if math.hypot(x - ax - t * (bx - ax), y - ay - t * (by - ay)) < 1.8 + 0.6 * margin:
                return False
    for fx, fy, yaw, a, b in FIELDS:
        u = (x - fx) * math.cos(yaw) + (y - fy) * math.sin(yaw)
        v = -(x - fx) * math.sin(yaw) + (y - fy) * math.cos(yaw)
        if abs(u) < a + margin and abs(v) < b + margin:
            return False
    return math.hypot(x, y) > 6


def add_trees(solids: Solids, rng: np.random.Generator) -> None:
    """Single trees in the valley, a wood on the hills; greens from spruce to early autumn."""
    greens = (
        (0.10, 0.20, 0.04),
        (0.15, 0.26, 0.05),
        (0.08, 0.16, 0.06),
        (0.22, 0.25, 0.05),
        (0.34, 0.21, 0.04),
        (0.13, 0.22, 0.09),
    )
    placed: list[tuple[float, float]] = []
    for attempt in range(2600):
        far = attempt >= 500
        r = rng.uniform(52, 112) if far else rng.uniform(7, 52)
        angle = rng.uniform(0, 2 * math.pi)
        x, y = r * math.cos(angle), r * math.sin(angle)
        if len(placed) >= (300 if far else 58) or not free_ground(x, y, 2.0):
            continue
        if any(math.hypot(x - px, y - py) < (4.6 if far else 5.0) for px, py in placed):
            continue
        placed.append((x, y))
        add_tree(solids, rng, x, y, rng.uniform(0.75, 1.25), greens[int(rng.integers(len(greens)))], far)


def add_tree(solids: Solids, rng: np.random.Generator, x: float, y: float, size: float, colour: Any, far: bool) -> None:
    ground = solids.ground(x, y)
    spruce = rng.random() < 0.35
    if spruce:
        height = 8.5 * size
        for k in range(4):
            t = k / 3
            radius = (2.1 - 1.55 * t) * size
            solids.ellipsoid(
                (x, y, ground + height * (0.24 + 0.60 * t)), (radius, radius, 0.17 * height), LEAVES, (0.07, 0.14, 0.06)
            )
    else:
        trunk = 2.4 * size
        solids.ellipsoid((x, y, ground + trunk + 1.9 * size), (2.0 * size, 2.0 * size, 1.9 * size), LEAVES, colour)
        for _ in range(2 if far else 5):
            angle, lift = rng.uniform(0, 2 * math.pi), rng.uniform(-0.5, 1.3)
            reach, r = rng.uniform(1.1, 1.7) * size, rng.uniform(0.95, 1.45) * size
            centre = (x + reach * math.cos(angle), y + reach * math.sin(angle), ground + trunk + (1.7 + lift) * size)
            tint = rng.uniform(0.8, 1.25)
            solids.ellipsoid(centre, (r, r, 0.85 * r), LEAVES, tuple(tint * c for c in colour))
    if not far:
        solids.box(
            (x, y, ground - 0.2), rng.uniform(0, 90), (0.2 * size, 0.2 * size, 1.7 * size), PAINT, (0.20, 0.14, 0.09)
        )
    solids.footprints.append((x, y, 2.6 * size, 0.45, 1.0))


def add_rocks(solids: Solids, rng: np.random.Generator) -> None:
    """Boulders half in the ground, and bushes."""
    for k in range(150):
        r, angle = rng.uniform(6.5, 48), rng.uniform(0, 2 * math.pi)
        x, y = r * math.cos(angle), r * math.sin(angle)
        if not free_ground(x, y, 0.8):
            continue
        size = rng.uniform(0.25, 0.75)
        tone = rng.uniform(0.75, 1.15)
        radii = (size * rng.uniform(0.8, 1.4), size * rng.uniform(0.8, 1.4), size * rng.uniform(0.6, 0.9))
        height = solids.ground(x, y) + 0.15 * size
        if k % 3:
            solids.ellipsoid((x, y, height), radii, ROCK, (0.36 * tone, 0.34 * tone, 0.31 * tone))
        else:
            solids.ellipsoid((x, y, height + 0.3), radii, LEAVES, (0.16 * tone, 0.21, 0.05))
        solids.footprints.append((x, y, 1.5 * size, 0.5, 0.0))


def contact_shade(solids: Solids) -> Array:
    """[1024, 1024] share of sky light that reaches the ground (1 in the open), darker around whatever stands there."""
    n = 1024
    shade = np.ones((n, n), np.float32)
    axis = np.linspace(-HALF_M, HALF_M, n)
    for x, y, radius, strength, _ in solids.footprints:
        i, j = (
            np.searchsorted(axis, (x - 1.6 * radius, x + 1.6 * radius)),
            np.searchsorted(axis, (y - 1.6 * radius, y + 1.6 * radius)),
        )
        gx, gy = axis[i[0] : i[1]][None, :], axis[j[0] : j[1]][:, None]
        d = np.hypot(gx - x, gy - y) / radius
        block = shade[j[0] : j[1], i[0] : i[1]]
        np.minimum(block, 1 - strength * np.clip(1.6 - d, 0, 0.6) / 0.6, out=block)
    return shade


@njit(cache=True, fastmath=True)
def path_distance(segments: Array, x: float, y: float) -> float:
    """Distance to the nearest of the segments [S, 4], metres."""
    best = 1e9
    for k in range(segments.shape[0]):
        ax, ay, bx, by = segments[k]
        t = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)
        t = min(max(t, 0.0), 1.0)
        best = min(best, (x - ax - t * (bx - ax)) ** 2 + (y - ay - t * (by - ay)) ** 2)
    return math.sqrt(best)


@njit(cache=True, fastmath=True)
def ground_albedo(
    segments: Array, fields: Array, yards: Array, x: float, y: float, px: float, seed: int
) -> tuple[float, float, float]:
    """Albedo of the ground: meadow with flowers, sandy path, cobbled yards, ploughed and sown fields."""
    broad = fractal2(x, y, 22.0, 1.0, 0.6, seed + 50)
    fine = fractal2(x, y, 1.6, px, 0.88, seed + 60)
    dry = min(max(0.45 + 0.75 * broad + 0.35 * fine, 0.0), 1.0)
    tone = 1.0 + 0.55 * fine
    red, green, blue = (0.11 + 0.19 * dry) * tone, (0.19 + 0.09 * dry) * tone, (0.05 + 0.05 * dry) * tone
    cell_x, cell_y = math.floor(x / 0.35), math.floor(y / 0.35)
    pick = hash01(cell_x, cell_y, 5, seed)
    if pick > 0.93:  # a flower or a pale stone, at a random place of its cell
        fx = (cell_x + 0.2 + 0.6 * hash01(cell_x, cell_y, 6, seed)) * 0.35
        fy = (cell_y + 0.2 + 0.6 * hash01(cell_x, cell_y, 7, seed)) * 0.35
        if (x - fx) ** 2 + (y - fy) ** 2 < (0.05 + 0.06 * hash01(cell_x, cell_y, 8, seed)) ** 2:
            if pick > 0.975:
                red, green, blue = 0.75, 0.72, 0.66
            elif pick > 0.955:
                red, green, blue = 0.70, 0.52, 0.06
            else:
                red, green, blue = 0.30, 0.27, 0.24
    for k in range(fields.shape[0]):
        c, s = math.cos(fields[k, 2]), math.sin(fields[k, 2])
        u = (x - fields[k, 0]) * c + (y - fields[k, 1]) * s
        v = -(x - fields[k, 0]) * s + (y - fields[k, 1]) * c
        if abs(u) < fields[k, 3] + 0.4 * fine and abs(v) < fields[k, 4] + 0.4 * fine:
            soil = 1.0 + 0.6 * fine
            red, green, blue = 0.20 * soil, 0.135 * soil, 0.085 * soil
            row = v / 0.9 + 0.10 * fine
            plant = abs(row - math.floor(row) - 0.5) * 2
            tuft = hash01(math.floor(row), math.floor(u / 0.4), 9 + k, seed)
            if plant < 0.55 and tuft > 0.25 and k != 1:
                red, green, blue = (0.10 + 0.12 * tuft) * soil, 0.26 * soil, 0.06 * soil
            elif k == 1:
                wheat = 1.0 + 0.5 * fine + 0.2 * (plant - 0.5)
                red, green, blue = 0.46 * wheat, 0.35 * wheat, 0.13 * wheat
    yard = 1e9
    for k in range(yards.shape[0]):
        yard = min(yard, math.sqrt((x - yards[k, 0]) ** 2 + (y - yards[k, 1]) ** 2) - yards[k, 2])
    green_edge = math.sqrt(x * x + y * y) - 4.5
    if min(yard - 1.2, green_edge) + 1.3 * broad + 0.5 * fine < 0:
        row = math.floor(y / 0.42)
        column = x / 0.46 + 0.5 * (row & 1)
        cell = math.floor(column)
        stone = 0.65 + 0.6 * hash01(cell, row, 12, seed)
        gap = y / 0.42 - row < 0.14 or column - cell < 0.13
        stone *= (0.5 if gap else 1.0) * (1 + 0.3 * fine)
        red, green, blue = 0.33 * stone, 0.30 * stone, 0.26 * stone
    lane = path_distance(segments, x, y) + 0.5 * fine
    if lane < 1.7:
        rut = 0.8 if abs(lane - 0.75) < 0.22 else 1.05
        pebble = 0.8 + 0.45 * hash01(math.floor(x / 0.11), math.floor(y / 0.11), 13, seed)
        sand = rut * pebble * (1 + 0.3 * fine)
        red, green, blue = 0.42 * sand, 0.33 * sand, 0.22 * sand
    return max(red, 0.01), max(green, 0.01), max(blue, 0.01)


@njit(cache=True, parallel=True, fastmath=True)
def paint_ground(
    world: World, shade: Array, segments: Array, fields: Array, yards: Array, half: float, seed: int, out: Array
) -> None:
    """Fill ``out`` [N, N, 3] with lit ground over [-half, half]², stored as 255 * sqrt(colour / 3)."""
    n = out.shape[0]
    px = 2 * half / n
    last = shade.shape[0] - 1
    for j in prange(n):
        for i in range(n):
            x, y = ((i + 0.5) / n * 2 - 1) * half, ((j + 0.5) / n * 2 - 1) * half
            red, green, blue = ground_albedo(segments, fields, yards, x, y, px, seed)
            z = ground_height(world.heights, world.half_m, x, y)
            sx = (ground_height(world.heights, world.half_m, x + 0.3, y) - z) / 0.3 + 0.35 * noise2(
                x * 3, y * 3, seed + 70
            )
            sy = (ground_height(world.heights, world.half_m, x, y + 0.3) - z) / 0.3 + 0.35 * noise2(
                x * 3, y * 3, seed + 71
            )
            length = math.sqrt(sx * sx + sy * sy + 1)
            cosine = (world.sun[2] - sx * world.sun[0] - sy * world.sun[1]) / length
            open_sky = shade[
                round((y + world.half_m) / (2 * world.half_m) * last),
                round((x + world.half_m) / (2 * world.half_m) * last),
            ]
            sun = max(0.0, cosine) * sunlight(world, x, y, z + 0.1) * 2.5
            sky = 0.8 * open_sky * (0.55 + 0.45 / length)
            out[j, i, 0] = int(255 * math.sqrt(min(1.0, red * (sun + 0.85 * sky) / 3)))
            out[j, i, 1] = int(255 * math.sqrt(min(1.0, green * (0.93 * sun + sky) / 3)))
            out[j, i, 2] = int(255 * math.sqrt(min(1.0, blue * (0.80 * sun + 1.2 * sky) / 3)))
