"""The SfM stage: photos in, camera poses, undistorted images and the scene frame out."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time

from job import Job
from job.documents import PhotoRow, PhotosJson, SceneJson, write_document
from job.options import SfmOptions
from sfm.child import run_mapping
from sfm.options import Matcher, long_side_px
from sfm.phase import phase
from sfm.photos import Photo, prepare_photos
from sfm.request import MapPhoto, MapRequest, MapResult

OUTPUTS = (
    "images",
    "sparse/cameras.bin",
    "sparse/images.bin",
    "sparse/points3D.bin",
    "scene.json",
    "photos.json",
)
# The scene frame is (east, -up, north).
ENU_FROM_SCENE: list[list[float]] = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]


def run(job: Job) -> None:
    """The whole stage. Raises StageError for every failure that the user can act on."""
    options = SfmOptions.model_validate(job.options)
    work = job.scratch / "sfm"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        with phase("photos", job.log):
            photos = prepare_photos(
                job.input("photos"),
                work / "photos",
                long_side_px(options),
                progress=lambda done, total: job.progress(done, total, "photos", "Checking photos"),
                check_stop=job.check_stop,
            )
        for photo in photos:
            if photo.code:
                job.log("photo_rejected", name=photo.name, code=photo.code, reason=photo.reason)
        request = MapRequest(
            photos=[for_mapping(photo, photo.image) for photo in photos if photo.image],
            prepared=work / "photos",
            work=work,
            output=job.output,
            answer=work / "answer.json",
            matcher=Matcher(options.matcher or "auto"),
            long_side_px=long_side_px(options),
        )
        result = run_mapping(job, request)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_document(job.output / "photos.json", PhotosJson(photo_rows(photos, result)))
    write_document(job.output / "scene.json", describe_scene(job, len(photos), result))
    job.log("reconstructed", registered=len(result.images), photos=len(photos), points=result.points)


def for_mapping(photo: Photo, image: str) -> MapPhoto:
    return MapPhoto(name=photo.name, image=image, width_px=photo.width, height_px=photo.height, info=photo.info)


def photo_rows(photos: list[Photo], result: MapResult) -> list[PhotoRow]:
    rows = []
    for photo in photos:
        image, code, reason = None, photo.code, photo.reason
        if photo.image in result.images:
            image = result.images[photo.image]
        elif photo.image is not None:
            rejection = result.unregistered[photo.image]
            code, reason = rejection.code, rejection.reason
        rows.append(PhotoRow(name=photo.name, image=image, registered=image is not None, code=code, reason=reason))
    return rows


def describe_scene(job: Job, photos: int, result: MapResult) -> SceneJson:
    return SceneJson(
        units="metres" if result.georeferenced else "arbitrary",
        georeferenced=result.georeferenced,
        origin=result.origin,
        enu_from_scene=ENU_FROM_SCENE if result.georeferenced else None,
        gps_residual_m=result.gps_residual_m,
        photos=photos,
        registered=len(result.images),
        points=result.points,
        reprojection_error_px=result.reprojection_error_px,
        center=result.center,
        radius=result.radius,
        matcher=result.matcher.value,
        settings=result.settings,
        gravity=result.gravity,
        seconds=round(time.time() - job.started_at, 3),
        versions=result.versions,
    )


def selfcheck() -> None:
    """The mapping program works: pycolmap finds features and matches them."""
    with tempfile.TemporaryDirectory() as folder:
        program = "import sys, pathlib, sfm.mapping; sfm.mapping.selfcheck(pathlib.Path(sys.argv[1]))"
        command = [sys.executable, "-c", program, folder]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the mapping program does not work (status {done.returncode}): {done.stderr[-2000:]}")
