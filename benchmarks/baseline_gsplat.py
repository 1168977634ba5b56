"""What gsplat's own example trainer reaches on our photos and poses, to compare training_gpu.py with.

    python -m benchmarks baseline_gsplat --gsplat FOLDER --sfm SFM_FOLDER --long-side 1200 [--steps 30000]

FOLDER is a checkout of gsplat v1.5.3 (its examples are not in the wheel); its `default` recipe of 30,000 steps runs
unchanged in a process of its own, see gsplat_runner.py for what stands around it and which packages it needs. It is
given a COLMAP folder made of the output of SfM: the photos as training has them at this size (PNG), their cameras and
the sparse points. Both hold out every 8th photo by name. Writes OUT/baseline-NAME.json; about 4 minutes on an H100 for
48 photos of 1200x900.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.recording import commit, write_result
from splat.cameras import PINHOLE, Scene, View, read_scene
from splat.images import load_photo

ROOT = Path(__file__).resolve().parents[1]

STEPS = 30_000
OUT = ROOT / "build" / "gpu-job"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsplat", type=Path, required=True, help="checkout of gsplat v1.5.3")
    parser.add_argument("--sfm", type=Path, required=True, help="folder that SfM wrote")
    parser.add_argument("--long-side", type=int, required=True, help="pixels")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--name", help="of the scene; the folder's name up to -sfm when missing")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    name = arguments.name or arguments.sfm.absolute().name.split("-sfm")[0]
    work = arguments.out / f"gsplat-{name}"
    write_colmap(read_scene(arguments.sfm), arguments.long_side, work / "data")
    run(name, arguments.gsplat.absolute(), work, arguments.long_side, arguments.steps, arguments.out)


def run(name: str, gsplat: Path, work: Path, long_side: int, steps: int, out: Path) -> None:
    """Train in another process; its output goes to ``work``/log.txt. Raises SystemExit when it fails."""
    report, log = work / "report.json", work / "log.txt"
    words = [sys.executable, "-m", "benchmarks", "gsplat_runner", "--gsplat", str(gsplat)]
    words += ["--data", str(work / "data"), "--out", str(work / "result"), "--report", str(report)]
    with log.open("w") as file:
        status = subprocess.run([*words, "--steps", str(steps)], stdout=file, stderr=subprocess.STDOUT, check=False)
    if status.returncode:
        last = "\n".join(log.read_text().splitlines()[-15:])
        sys.exit(f"error: the example ended with {status.returncode}; figures so far, if any, in {report}\n{last}")
    result = json.loads(report.read_text())
    shown = f"--gsplat FOLDER --sfm SFM_FOLDER --long-side {long_side} --steps {steps}"
    figures = {"long_side": long_side, "iterations": steps, **result["steps"][str(steps)]}
    write_result(
        f"baseline-{name}",
        figures,
        f"python -m benchmarks baseline_gsplat {shown}",
        folder=out,
        machine=result["device"],
        details={"commit": commit(), "steps": result["steps"], "stand_ins": result["stand_ins"]},
        **result["versions"],
    )


def write_colmap(scene: Scene, long_side: int, folder: Path) -> None:
    """``images/`` and ``sparse/`` of COLMAP's binary format: every photo with a camera of its own, at ``long_side``.

    Photos are named by their number, so that their order stays that of the names. Format: COLMAP documentation,
    "Output Format, Binary File Format".
    """
    views = [view.fitted(long_side) for view in scene.views]
    for part in ("images", "sparse"):
        (folder / part).mkdir(parents=True, exist_ok=True)

    def write_photo(number: int) -> None:
        pixels = load_photo(scene.photo_path(scene.views[number]), views[number].width, views[number].height)
        Image.fromarray(pixels).save(folder / "images" / photo_name(number), compress_level=1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write_photo, range(len(views))))
    cameras, images = struct.pack("<Q", len(views)), struct.pack("<Q", len(views))
    for i, view in enumerate(views):
        cameras += struct.pack("<iiQQ4d", i + 1, PINHOLE, view.width, view.height, *view.K[[0, 1, 0, 1], [0, 1, 2, 2]])
        images += struct.pack("<I7dI", i + 1, *quaternion(view), *view.world_to_camera[:3, 3], i + 1)
        images += photo_name(i).encode() + b"\0" + struct.pack("<Q", 0)
    points = struct.pack("<Q", len(scene.points_xyz))
    for i, (xyz, rgb) in enumerate(zip(scene.points_xyz, scene.points_rgb, strict=True)):
        points += struct.pack("<Q3d3BdQ", i + 1, *xyz, *rgb, 0.0, 0)
    for name, data in (("cameras", cameras), ("images", images), ("points3D", points)):
        (folder / "sparse" / f"{name}.bin").write_bytes(data)


def photo_name(number: int) -> str:
    return f"{number:05d}.png"


def quaternion(view: View) -> NDArray[np.float64]:
    """[4] wxyz of the rotation from the world to the camera: the eigenvector of Bar-Itzhack 2000, eq. 3."""
    R = view.world_to_camera[:3, :3]
    symmetric = np.empty((4, 4))
    symmetric[:3, :3] = R + R.T - np.trace(R) * np.eye(3)
    symmetric[3, :3] = symmetric[:3, 3] = [R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]
    symmetric[3, 3] = np.trace(R)
    x, y, z, w = np.linalg.eigh(symmetric)[1][:, -1]
    return np.array([w, x, y, z])


if __name__ == "__main__":
    main()
