"""The SfM stage: photos in, camera poses, undistorted images and the scene frame out."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from typing import Any

from job import Job
from job.documents import write_json_atomically
from sfm.child import run_mapping
from sfm.options import Options
from sfm.phase import phase
from sfm.photos import Photo, prepare_photos

OUTPUTS = (
    "images",
    "sparse/cameras.bin",
    "sparse/images.bin",
    "sparse/points3D.bin",
    "scene.json",
    "photos.json",
)
ENU_FROM_SCENE = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]  # scene is (east, -up, north)


def run(job: Job) -> None:
    """The whole stage. Raises StageError for every failure that the user can act on."""
    options = Options.model_validate(job.options)
    work = job.scratch / "sfm"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        with phase("photos", job.log):
            photos = prepare_photos(
                job.input("photos"),
                work / "photos",
                options.long_side_px,
                progress=lambda done, total: job.progress(done, total, "photos", "Checking photos"),
                check_stop=job.check_stop,
            )
        for photo in photos:
            if photo.code:
                job.log("photo_rejected", name=photo.name, code=photo.code, reason=photo.reason)
        result = run_mapping(
            job,
            {
                "photos": [describe(photo) for photo in photos if photo.image],
                "prepared": str(work / "photos"),
                "work": str(work),
                "output": str(job.output),
                "matcher": options.matcher.value,
                "long_side_px": options.long_side_px,
            },
            work,
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_json_atomically(job.output / "photos.json", photo_table(photos, result))
    write_json_atomically(job.output / "scene.json", scene_description(job, photos, result))
    job.log("reconstructed", registered=len(result["images"]), photos=len(photos), points=result["points"])


def describe(photo: Photo) -> dict[str, Any]:
    """What the mapping program needs to know of a photo."""
    return {
        "name": photo.name,
        "image": photo.image,
        "width": photo.width,
        "height": photo.height,
        **asdict(photo.info),
    }


def photo_table(photos: list[Photo], result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each uploaded file: registered, or why not."""
    rows = []
    for photo in photos:
        image = result["images"].get(photo.image)
        code, reason = photo.code, photo.reason
        if image is None and photo.image is not None:
            code, reason = result["unregistered"][photo.image]
        rows.append(
            {"name": photo.name, "image": image, "registered": image is not None, "code": code, "reason": reason}
        )
    return rows


def scene_description(job: Job, photos: list[Photo], result: dict[str, Any]) -> dict[str, Any]:
    georeferenced = result["georeferenced"]
    return {
        "units": "metres" if georeferenced else "arbitrary",
        "georeferenced": georeferenced,
        "origin": result["origin"],
        "enu_from_scene": ENU_FROM_SCENE if georeferenced else None,
        "gps_residual_m": result["gps_residual_m"],
        "photos": len(photos),
        "registered": len(result["images"]),
        **{
            key: result[key]
            for key in ("points", "reprojection_error_px", "center", "radius", "matcher", "settings", "gravity")
        },
        "seconds": round(time.time() - job.started_at, 3),
        "versions": result["versions"],
    }


def selfcheck() -> None:
    """The mapping program works: pycolmap finds features and matches them."""
    with tempfile.TemporaryDirectory() as folder:
        program = "import sys, pathlib, sfm.mapping; sfm.mapping.selfcheck(pathlib.Path(sys.argv[1]))"
        command = [sys.executable, "-c", program, folder]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the mapping program does not work (status {done.returncode}): {done.stderr[-2000:]}")
