"""What finding the cameras costs: `python -m benchmarks sfm [NAME=FOLDER ...] [--rendered 50 100 200]`.

Runs the SfM stage as a program on folders of photos and on rendered sample photos with known cameras, and prints and
writes wall and processor seconds by phase, photos registered, pairs compared, and errors against the true cameras.
Sets that were measured before stay in the file. From the processor seconds it estimates a scene on the machine of the
stage (8 vCPU) and extrapolates to more photos; both are marked as such.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.hamlet import TRUTH_FILE, render_photos
from benchmarks.recording import RESULTS, write_result
from sfm.photos import prepare_photos

REPOSITORY = Path(__file__).resolve().parents[1]

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "spaceport" / "benchmark"
PHASES = ("photos", "features", "pairs", "matching", "mapping", "undistorting")
RENDERED_PX = (800, 600)
CAMERA_PX, CAMERA_PHOTOS = (4000, 3000), 16  # what cameras and telephones write

# Assumptions of the estimate for ml.c6i.2xlarge. Its 8 vCPU are 4 cores with two threads each; a core is taken to be as
# fast as one here. Mapping works one photo after the other and is taken to use one and a half, the rest all of them.
CORES_WORTH = 4.5
MAPPING_CORES_WORTH = 1.5
EXTRAPOLATED = (50, 200, 1000)


def rendered_photos(cache: Path, largest: int) -> Path:
    """The folder with the sample of ``largest`` photos, rendered if it is not there yet (a second a photo)."""
    folder = cache / f"sample-{largest}-{RENDERED_PX[0]}"
    if not (folder / TRUTH_FILE).is_file():
        render_photos(folder, largest, *RENDERED_PX)
    return folder


def measure(photos: list[Path], preset: str, truth: dict[str, Any] | None, keep_exif: bool = True) -> dict[str, Any]:
    """Figures of one run of the stage; raises SystemExit when it fails."""
    with tempfile.TemporaryDirectory() as root_name:
        root = Path(root_name)
        folder = root / "processing/input/photos"
        folder.mkdir(parents=True)
        for photo in photos:
            if keep_exif:
                shutil.copy(photo, folder)
            else:
                without_exif(photo, folder / photo.name)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SPACEPORT_")}
        environment |= {"SPACEPORT_ML_ROOT": root_name, "PYTHONPATH": str(REPOSITORY / "containers")}
        environment |= {"SPACEPORT_OPTION_JOB_ID": "benchmark", "SPACEPORT_OPTION_PRESET": preset}
        before, children = time.monotonic(), os.times()
        done = subprocess.run(
            [sys.executable, "-m", "sfm"], env=environment, capture_output=True, text=True, check=False
        )
        after = os.times()
        wall = time.monotonic() - before
        if done.returncode:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        scene = json.loads((root / "processing/output/scene.json").read_text())
        errors = pose_errors(root / "processing/output", truth) if truth else {}
    mapped = [event for event in events if event["event"] == "mapped"]
    return {
        "n_photos": len(photos),
        "preset": preset,
        "wall_seconds": wall,
        "cpu_seconds": after[2] + after[3] - children[2] - children[3],
        "phases": phases(events),
        "pairs": sum(event["pairs"] for event in mapped),
        "attempts": len(mapped),
        "matcher": scene["matcher"],
        "registered": scene["registered"],
        "points": scene["points"],
        "reprojection_error_px": scene["reprojection_error_px"],
        **errors,
    }


def without_exif(photo: Path, target: Path) -> None:
    """A copy without EXIF: no position, no focal length, no time."""
    from sfm.exif import strip_metadata

    shutil.copy(photo, target)
    strip_metadata(target)


def phases(events: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds by phase, summed over the attempts."""
    result = {name: {"wall_seconds": 0.0, "cpu_seconds": 0.0} for name in PHASES}
    for event in events:
        if event["event"] == "phase":
            result[event["phase"]]["wall_seconds"] += event["seconds"]
            result[event["phase"]]["cpu_seconds"] += event["cpu_seconds"]
    return result


def pose_errors(output: Path, truth: dict[str, Any]) -> dict[str, float]:
    """Camera centres in per cent of the scene's radius and rotations in degrees, after the best similarity."""
    import pycolmap

    cameras = {camera["name"]: np.array(camera["world_to_camera"]) for camera in truth["cameras"]}
    names = {row["image"]: row["name"] for row in json.loads((output / "photos.json").read_text()) if row["image"]}
    model = pycolmap.Reconstruction(output / "sparse")
    images = list(model.images.values())
    true = [cameras[names[f"images/{image.name}"]] for image in images]
    found_centres = np.array([image.projection_center() for image in images])
    true_centres = np.array([np.linalg.inv(pose)[:3, 3] for pose in true])
    fit = pycolmap.estimate_sim3d(found_centres, true_centres)
    centres = np.linalg.norm([fit * centre for centre in found_centres] - true_centres, axis=1)
    centres *= 100 / truth["scene_radius_m"]
    turn = fit.rotation.matrix()
    angles = [
        angle_deg(pose[:3, :3] @ turn @ image.cam_from_world().rotation.matrix().T)
        for pose, image in zip(true, images, strict=True)
    ]
    return {
        "centre_error_percent_median": float(np.median(centres)),
        "centre_error_percent_max": float(np.max(centres)),
        "rotation_error_deg_median": float(np.median(angles)),
        "rotation_error_deg_max": float(np.max(angles)),
    }


def angle_deg(rotation: Any) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, (float(np.trace(rotation)) - 1) / 2))))


def camera_sized(photos: list[Path]) -> dict[str, float]:
    """Processor seconds a photo to check and reduce photos of 12 megapixels; the measured sets are smaller."""
    with tempfile.TemporaryDirectory() as root_name:
        root = Path(root_name)
        (root / "photos").mkdir()
        for photo in photos[:CAMERA_PHOTOS]:
            with Image.open(photo) as image:
                image.resize(CAMERA_PX).save(root / "photos" / photo.name, quality=92)
        wall, cpu = time.monotonic(), time.process_time()
        prepare_photos(root / "photos", root / "prepared", 1600, lambda done, total: None, lambda: None)
        cpu_seconds, wall_seconds = time.process_time() - cpu, time.monotonic() - wall
    return {
        "cpu_seconds_per_photo": cpu_seconds / CAMERA_PHOTOS,
        "wall_seconds_per_photo": wall_seconds / CAMERA_PHOTOS,
    }


def estimate(figures: dict[str, Any]) -> dict[str, Any]:
    """Extrapolation: growth by phase from the rendered sets, level from the largest set of real photos."""
    sets: dict[str, dict[str, Any]] = figures["sets"]
    standard = {name: run for name, run in sets.items() if run["preset"] == "standard"}
    rendered = [run for run in standard.values() if run["kind"] == "rendered"]
    real = [run for run in standard.values() if run["kind"] == "real"]
    level = max(real, key=lambda run: run["n_photos"], default=None)
    rendered = [run for run in rendered if level and run["matcher"] == level["matcher"]]  # another grows otherwise
    if level is None or len(rendered) < 2:
        return {}
    exponents = {}
    for name in PHASES:
        n = np.log([run["n_photos"] for run in rendered])
        seconds = np.log([max(run["phases"][name]["cpu_seconds"], 1e-3) for run in rendered])
        exponents[name] = max(1.0, float(np.polyfit(n, seconds, 1)[0]))  # a start that is not repeated hides growth
    result: dict[str, Any] = {"extrapolated": True, "from": level["name"], "exponents": exponents, "scenes": {}}
    for n_photos in EXTRAPOLATED:
        cpu = {
            name: level["phases"][name]["cpu_seconds"] * (n_photos / level["n_photos"]) ** exponents[name]
            for name in PHASES
        }
        cpu["photos"] = figures["camera_sized_photos"]["cpu_seconds_per_photo"] * n_photos
        seconds = cpu["mapping"] / MAPPING_CORES_WORTH + (sum(cpu.values()) - cpu["mapping"]) / CORES_WORTH
        result["scenes"][str(n_photos)] = {
            "cpu_seconds": sum(cpu.values()),
            "cpu_seconds_by_phase": cpu,
            "seconds_on_8_vcpu": seconds,
            "seconds_per_photo_on_8_vcpu": seconds / n_photos,
        }
    result["assumption"] = (
        f"8 vCPU do the work of {CORES_WORTH} cores of the measuring machine, mapping uses {MAPPING_CORES_WORTH}; "
        "photos of 12 megapixels"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="NAME=FOLDER", help="folders of photos")
    parser.add_argument("--rendered", nargs="*", type=int, default=[], help="numbers of sample photos")
    parser.add_argument(
        "--largest", type=int, default=200, help="photos to render; a smaller set is every n-th of them"
    )
    parser.add_argument("--without-exif", action="store_true", help="strip positions, times and focal lengths")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--cache", type=Path, default=CACHE)
    options = parser.parse_args()
    suffix = ("" if options.preset == "standard" else f"-{options.preset}") + "-bare" * options.without_exif
    work: list[tuple[str, str, list[Path], dict[str, Any] | None]] = []
    for text in options.sets:
        name, folder = text.split("=", 1)
        work.append((name + suffix, "real", sorted(path for path in Path(folder).iterdir() if path.is_file()), None))
    for count in options.rendered:
        folder = rendered_photos(options.cache, options.largest)
        photos = sorted(folder.glob("*.jpg"))[:: options.largest // count][:count]
        work.append((f"sample-{count}{suffix}", "rendered", photos, json.loads((folder / TRUTH_FILE).read_text())))
    for name, kind, photos, truth in work:
        load = os.getloadavg()[0]
        run = measure(photos, options.preset, truth, not options.without_exif)
        decoding = camera_sized(photos) if kind == "real" and len(photos) >= CAMERA_PHOTOS else None
        add_set({"name": name, "kind": kind, "load_before": load, **run}, decoding)


def add_set(run: dict[str, Any], decoding: dict[str, float] | None) -> None:
    """Put one run into the file of results, beside those that are there."""
    file = RESULTS / "sfm.json"
    figures: dict[str, Any] = json.loads(file.read_text())["figures"] if file.is_file() else {"sets": {}}
    figures["sets"][run["name"]] = run
    if decoding:
        figures["camera_sized_photos"] = decoding
    figures["estimate"] = estimate(figures)
    write_result("sfm", figures, "python -m benchmarks sfm plush=PHOTOS caliterra=PHOTOS --rendered 50 100 200")


if __name__ == "__main__":
    main()
