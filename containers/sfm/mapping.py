"""The child process that runs pycolmap: features, matches, camera poses, scene frame and undistorted images.

``python -m sfm.mapping request.json``; see ``sfm.request`` for what it is asked and answers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from job import StageError
from sfm.exif import PhotoInfo
from sfm.features import FAST, STRONG, extract, import_photos, match, verified_pairs, why_not
from sfm.georeference import align_model, geodetic, positions_enu, registered_images
from sfm.mapper import SEED, map_photos, require_enough
from sfm.messages import log
from sfm.options import Matcher
from sfm.output import write_output
from sfm.pairs import choose_matcher
from sfm.phase import phase
from sfm.request import MapAnswer, MapPhoto, MapRequest, MapResult, Rejection

signal.signal(signal.SIGTERM, signal.SIG_DFL)  # importing pycolmap installs a handler that prints a stack trace

RETRY_BELOW = 0.6  # share of photos registered; below, everything runs once more with the strong settings
EXHAUSTIVE_RETRY_UP_TO = 100


def main() -> None:
    request = MapRequest.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    pycolmap.logging.minloglevel = int(pycolmap.logging.WARNING)
    watch_parent()
    try:
        answer = MapAnswer(result=reconstruct(request))
    except StageError as error:
        answer = MapAnswer(error=Rejection(code=error.code, reason=error.reason))
    request.answer.write_text(answer.model_dump_json(), encoding="utf-8")


def reconstruct(request: MapRequest) -> MapResult:
    """All steps. Raises StageError."""
    photos, work, wanted = request.photos, request.work, request.matcher
    gps = positions_enu(photos)
    matcher = choose_matcher(wanted, gps.enu_m[:, :2])
    if wanted is Matcher.SPATIAL and matcher is not wanted:
        log("matcher_replaced", wanted=wanted, used=matcher, why="too few photos have a GPS position")
    settings = FAST
    attempt = map_photos(request, gps, matcher, settings, work / settings.name)
    if attempt.registered < RETRY_BELOW * len(photos):
        log("retry", registered=attempt.registered, photos=len(photos), settings=STRONG.name)
        if matcher is not Matcher.EXHAUSTIVE and len(photos) <= EXHAUSTIVE_RETRY_UP_TO:
            matcher = Matcher.EXHAUSTIVE
        second = map_photos(request, gps, matcher, STRONG, work / STRONG.name)
        if second.registered > attempt.registered:
            attempt, settings = second, STRONG
    require_enough(attempt.registered, len(photos))
    assert attempt.model is not None
    model = attempt.model
    alignment = align_model(model, photos, gps)
    origin = None
    if alignment.origin_enu_m is not None:
        origin = geodetic(alignment.origin_enu_m, gps)
    with phase("undistorting", log):
        images = write_output(model, request)
    centres = np.array([image.projection_center() for image in registered_images(model)])
    centroid = centres.mean(0)
    return MapResult(
        images=images,
        unregistered={
            photo.image: why_not(attempt.database, photo.image) for photo in photos if photo.image not in images
        },
        georeferenced=alignment.georeferenced,
        origin=origin,
        gps_residual_m=alignment.gps_residual_m,
        gravity=alignment.gravity,
        points=model.num_points3D(),
        reprojection_error_px=model.compute_mean_reprojection_error(),
        center=centroid.tolist(),
        radius=float(np.median(np.linalg.norm(centres - centroid, axis=1))),
        matcher=matcher,
        settings=settings.name,
        versions={"pycolmap": pycolmap.__version__},
    )


def selfcheck(folder: Path) -> None:
    """Features of two made-up photos, the second one shifted, are found and match. Raises SystemExit when not."""
    coarse = np.random.default_rng(SEED).integers(0, 256, (60, 80), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
    names = ["a.png", "b.png"]
    picture.crop((0, 0, 560, 440)).save(folder / names[0])
    picture.crop((40, 20, 600, 460)).save(folder / names[1])
    info = PhotoInfo(focal_ratio=1.2)
    photos = [MapPhoto(name=name, image=name, width_px=560, height_px=440, info=info) for name in names]
    database = folder / "database.db"
    pycolmap.logging.minloglevel = int(pycolmap.logging.WARNING)
    import_photos(database, folder, photos)
    extract(database, folder, names, FAST)
    match(database, names, [(0, 1)], folder / "pairs.txt", guided=False)
    if verified_pairs(database, names) != [(0, 1)]:
        raise SystemExit("pycolmap does not work on this machine: two overlapping pictures were not recognised")


def watch_parent() -> None:
    """End this process when its parent is gone: nobody would read the result."""
    parent = os.getppid()

    def loop() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=loop, daemon=True).start()


if __name__ == "__main__":
    main()
