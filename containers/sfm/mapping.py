"""The child process that runs pycolmap: features, matches, camera poses, scene frame and undistorted images.

``python -m sfm.mapping request.json``. The request names the prepared photos, the matcher and the folders; the result
goes to ``request["result"]``. Only SIFT and pair lists are used: the other matchers of the wheel need downloads.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from PIL import Image

from job import StageError
from sfm.align import Alignment, align
from sfm.exif import strip_metadata
from sfm.options import Matcher
from sfm.pairs import choose_matcher, choose_pairs, left_out, more_pairs
from sfm.phase import phase
from sfm.retrieval import DESCRIPTOR_LENGTH, similarities

signal.signal(signal.SIGTERM, signal.SIG_DFL)  # importing pycolmap installs a handler that prints a stack trace

Array = np.ndarray[Any, Any]

THOROUGH_BELOW = 0.9  # share of photos registered; below, the mapper runs once more, with its own settings
RETRY_BELOW = 0.6  # below, everything runs once more with the strong settings
MIN_REGISTERED, MIN_REGISTERED_SHARE = 5, 0.25
UNDISTORTED_QUALITY = 95
MATCH_BLOCKS = 50  # how often match progress becomes visible; at the end of each the cores wait for the last pair
MIN_PAIRS_A_BLOCK = 40
FEW_FEATURES = 150
FEATURES_LONG_SIDE_PX = 1600  # poses come from the middle octaves: more pixels cost time and memory, and move nothing
VERIFIED_INLIERS = 15  # what the mapper takes for an overlap
FEW_PARTNERS = 3
SEED = 1
EXHAUSTIVE_RETRY_UP_TO = 100
GUIDED_UP_TO_PAIRS = 300  # guided matching costs a second a pair


@dataclass(frozen=True)
class Settings:
    """How hard to look for features. ``fast`` finds the same cameras with a fifth of the work in nearly all sets."""

    name: str
    first_octave: int  # -1 doubles the image first
    max_features: int
    settle_sooner: bool


FAST = Settings("fast", 0, 4096, settle_sooner=True)
STRONG = Settings("strong", -1, 8192, settle_sooner=False)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    pycolmap.logging.minloglevel = int(pycolmap.logging.WARNING)
    watch_parent()
    try:
        result = reconstruct(request)
    except StageError as error:
        result = {"error": {"code": error.code, "reason": error.reason}}
    Path(request["result"]).write_text(json.dumps(result), encoding="utf-8")


def reconstruct(request: dict[str, Any]) -> dict[str, Any]:
    """All steps; see ``describe`` and ``run`` in ``stage.py`` for what a request holds. Raises StageError."""
    photos, work = request["photos"], Path(request["work"])
    gps = positions_enu(photos)
    wanted = Matcher(request["matcher"])
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
    return {
        "images": images,
        "unregistered": {
            photo["image"]: why_not(attempt.database, photo["image"])
            for photo in photos
            if photo["image"] not in images
        },
        "georeferenced": alignment.georeferenced,
        "origin": origin,
        "gps_residual_m": alignment.gps_residual_m,
        "gravity": alignment.gravity,
        "points": model.num_points3D(),
        "reprojection_error_px": model.compute_mean_reprojection_error(),
        "center": centroid.tolist(),
        "radius": float(np.median(np.linalg.norm(centres - centroid, axis=1))),
        "matcher": matcher.value,
        "settings": settings.name,
        "versions": {"pycolmap": pycolmap.__version__},
    }


@dataclass(frozen=True)
class Positions:
    """EXIF positions in ENU metres at a reference point; NaN where unknown (only "up" without an altitude)."""

    enu_m: Array  # [n, 3]
    reference: tuple[float, float, float] | None  # latitude, longitude (degrees), height (metres)


def positions_enu(photos: list[dict[str, Any]]) -> Positions:
    rows = [[photo["latitude_deg"], photo["longitude_deg"], photo["altitude_m"]] for photo in photos]
    lla = np.array(rows, dtype=float)
    known = ~np.isnan(lla[:, :2]).any(1)
    enu = np.full((len(photos), 3), np.nan)
    if not known.any():
        return Positions(enu, None)
    altitude = lla[known, 2]
    height = float(np.median(altitude[~np.isnan(altitude)])) if (~np.isnan(altitude)).any() else 0.0
    reference = (float(np.median(lla[known, 0])), float(np.median(lla[known, 1])), height)
    filled = lla[known].copy()
    filled[np.isnan(altitude), 2] = height
    enu[known] = pycolmap.GPSTransform().ellipsoid_to_enu(filled, *reference)
    enu[np.isnan(lla[:, 2]), 2] = np.nan
    return Positions(enu, reference)


def geodetic(enu_m: Array, gps: Positions) -> dict[str, float]:
    assert gps.reference is not None
    latitude, longitude, height = pycolmap.GPSTransform().enu_to_ellipsoid(enu_m[None], *gps.reference)[0]
    return {"lat_deg": float(latitude), "lon_deg": float(longitude), "alt_m": float(height)}


@dataclass(frozen=True)
class Attempt:
    database: Path
    model: Any  # pycolmap.Reconstruction or None
    registered: int


def map_photos(request: dict[str, Any], gps: Positions, matcher: Matcher, settings: Settings, folder: Path) -> Attempt:
    """Features, matches and poses with one choice of settings; the model with the most photos."""
    photos, prepared = request["photos"], Path(request["prepared"])
    folder.mkdir(parents=True)
    database = folder / "database.db"
    import_photos(database, prepared, photos)
    names = [photo["image"] for photo in photos]
    with phase("features", log):
        extract(database, prepared, names, settings)
    with phase("pairs", log):
        order = sorted(range(len(photos)), key=lambda k: (photos[k]["taken_at"] or "", photos[k]["name"]))
        similarity = look_alike(database, names) if matcher is Matcher.RETRIEVAL else None
        pairs = choose_pairs(matcher, gps.enu_m[:, :2], order, similarity, generous=settings is STRONG)
    guided = settings is STRONG and len(pairs) <= GUIDED_UP_TO_PAIRS
    with phase("matching", log):
        match(database, names, pairs, folder / "pairs.txt", guided)
        if similarity is not None:
            lost = left_out(len(names), verified_pairs(database, names), FEW_PARTNERS)
            more = more_pairs(similarity, set(pairs), lost)
            match(database, names, more, folder / "more.txt", guided)
            pairs += more
    with phase("mapping", log):
        model, models = best_model(database, prepared, folder, len(photos), settings.settle_sooner)
    registered = model.num_reg_images() if model is not None else 0
    log(
        "mapped",
        settings=settings.name,
        matcher=matcher.value,
        pairs=len(pairs),
        registered=registered,
        photos=len(photos),
        models=models,
    )
    return Attempt(database, model, registered)


def import_photos(database: Path, prepared: Path, photos: list[dict[str, Any]]) -> None:
    """One camera for all photos of the same size, make, model and focal length: shared intrinsics give better poses."""
    pycolmap.Database.open(database).close()
    groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for photo in photos:
        ratio = photo["focal_ratio"]
        key = (photo["width"], photo["height"], photo["camera"], round(ratio, 2) if ratio else None)
        groups[key].append(photo["image"])
    ratios = {photo["image"]: photo["focal_ratio"] for photo in photos}
    for (width, height, *_), names in groups.items():
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = "SIMPLE_RADIAL"
        ratio = ratios[names[0]]
        if ratio:
            reader.camera_params = f"{ratio * max(width, height)},{width / 2},{height / 2},0"
        pycolmap.import_images(database, prepared, pycolmap.CameraMode.SINGLE, names, reader)


def extract(database: Path, prepared: Path, names: list[str], settings: Settings) -> None:
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size = FEATURES_LONG_SIDE_PX
    options.sift.first_octave = settings.first_octave
    options.sift.max_num_features = settings.max_features
    with count_rows(database, "keypoints", len(names), "photos", "Finding features"):
        pycolmap.extract_features(database, prepared, names, extraction_options=options)


def look_alike(database: Path, names: list[str]) -> Array:
    """Similarity of the photos by their features; see ``similarities``."""
    with closing(pycolmap.Database.open(database)) as db:
        ids = image_ids(db)

        def descriptors(k: int) -> Array:
            rows: Array = db.read_descriptors(ids[names[k]]).data
            return rows.reshape(-1, DESCRIPTOR_LENGTH)

        return similarities(descriptors, len(names))


def verified_pairs(database: Path, names: list[str]) -> list[tuple[int, int]]:
    """Pairs of indices into ``names`` that were found to show the same."""
    index = {name: k for k, name in enumerate(names)}
    with closing(pycolmap.Database.open(database)) as db:
        row = {image_id: index[name] for name, image_id in image_ids(db).items()}
        ids, inliers = db.read_two_view_geometry_num_inliers()
    found = zip(pair_ids(ids), inliers, strict=True)
    return [(row[a], row[b]) for (a, b), count in found if count >= VERIFIED_INLIERS]


def image_ids(db: Any) -> dict[str, int]:
    return {image.name: image.image_id for image in db.read_all_images()}


def match(database: Path, names: list[str], pairs: list[tuple[int, int]], file: Path, guided: bool) -> None:
    """Compare the pairs. ``guided`` looks again along the epipolar lines, which saves sets with repetitive texture."""
    if not pairs:
        return
    file.write_text("".join(f"{names[i]} {names[j]}\n" for i, j in pairs), encoding="utf-8")
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = file
    pairing.block_size = max(MIN_PAIRS_A_BLOCK, len(pairs) // MATCH_BLOCKS)
    matching = pycolmap.FeatureMatchingOptions()
    matching.guided_matching = guided
    with count_rows(database, "two_view_geometries", len(pairs), "pairs", "Comparing photos"):
        pycolmap.match_image_pairs(database, matching, pairing)


def best_model(database: Path, prepared: Path, folder: Path, photos: int, sooner: bool) -> tuple[Any, int]:
    """The model with the most photos, or None, and how many were found; ``sooner``: see ``settle_sooner``."""
    models = run_mapper(database, prepared, folder / "models", photos, sooner)
    if sooner and most_registered(models) < THOROUGH_BELOW * photos:
        thorough = run_mapper(database, prepared, folder / "thorough", photos, sooner=False)
        log("mapped_again", before=most_registered(models), now=most_registered(thorough))
        models = max(models, thorough, key=most_registered)
    return max(models, key=lambda m: (m.num_reg_images(), m.num_points3D()), default=None), len(models)


def most_registered(models: list[Any]) -> int:
    return max((model.num_reg_images() for model in models), default=0)


def run_mapper(database: Path, prepared: Path, folder: Path, photos: int, sooner: bool) -> list[Any]:
    """Incremental mapping; all models found, perhaps none."""
    folder.mkdir()
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = SEED
    options.min_model_size = min(10, max(3, photos // 4))
    options.max_num_models = 5
    if sooner:
        settle_sooner(options)
    registered = 0

    def start() -> None:
        nonlocal registered
        registered = 2
        send(progress=[registered, photos, "photos", "Placing cameras"])

    def advance() -> None:
        nonlocal registered
        registered = min(registered + 1, photos)
        send(progress=[registered, photos, "photos", "Placing cameras"])

    send(progress=[0, photos, "photos", "Placing cameras"])
    models = pycolmap.incremental_mapping(
        database, prepared, folder, options, initial_image_pair_callback=start, next_image_callback=advance
    )
    return list(models.values())


def settle_sooner(options: Any) -> None:
    """Adjust the whole model less often, and stop when the cost hardly falls.

    The mapper's own settings adjust after every tenth of growth, up to five times, to full convergence. These need a
    third of the work and move the cameras by less than 0.1 % of the scene's radius (median).
    """
    options.ba_global_frames_ratio = options.ba_global_points_ratio = 1.4
    options.ba_global_max_refinements, options.ba_local_max_refinements = 2, 1
    options.ba_global_function_tolerance = options.ba_local_function_tolerance = 1e-4


def require_enough(registered: int, photos: int) -> None:
    advice = (
        "Take photos that overlap by two thirds with their neighbours, from different positions "
        "(walk, do not only turn), of things with visible texture, sharp and evenly lit."
    )
    if registered == 0:
        raise StageError("NO_MODEL", f"No two of the {photos} photos could be related to each other. {advice}")
    if registered < max(MIN_REGISTERED, MIN_REGISTERED_SHARE * photos):
        raise StageError(
            "TOO_FEW_REGISTERED", f"Only {registered} of {photos} photos could be placed in one scene. {advice}"
        )


def registered_images(model: Any) -> list[Any]:
    return sorted((image for image in model.images.values() if image.has_pose), key=lambda image: image.name)


def align_model(model: Any, photos: list[dict[str, Any]], gps: Positions) -> Alignment:
    """Transform ``model`` in place into the scene frame."""
    row = {photo["image"]: k for k, photo in enumerate(photos)}
    images = registered_images(model)
    centres = np.array([image.projection_center() for image in images])
    rotations = np.array([image.cam_from_world().rotation.matrix() for image in images])
    points = np.array([point.xyz for point in model.points3D.values()]).reshape(-1, 3)
    alignment = align(centres, rotations, points, gps.enu_m[[row[image.name] for image in images]])
    s = alignment.scene_from_model
    model.transform(pycolmap.Sim3d(s.scale, pycolmap.Rotation3d(s.rotation), s.translation))
    return alignment


def write_output(model: Any, request: dict[str, Any]) -> dict[str, str]:
    """Undistort into ``output``/images and write ``output``/sparse; returns {prepared name: path in the output}."""
    work, output = Path(request["work"]), Path(request["output"])
    aligned, dense = work / "aligned", work / "dense"
    aligned.mkdir()
    model.write_binary(aligned)
    options = pycolmap.UndistortCameraOptions()
    options.max_image_size = request["long_side_px"]
    count = model.num_reg_images()
    send(watch={"folder": str(dense / "images"), "total": count, "unit": "photos", "message": "Undistorting"})
    pycolmap.undistort_images(
        dense, aligned, request["prepared"], undistort_options=options, jpeg_quality=UNDISTORTED_QUALITY
    )
    send(watch=None, progress=[count, count, "photos", "Undistorting"])
    names = output_names(request["photos"])
    flat = pycolmap.Reconstruction(dense / "sparse")
    for folder in ("images", "sparse"):
        shutil.rmtree(output / folder, ignore_errors=True)
        (output / folder).mkdir(parents=True)
    written = {}
    for image in flat.images.values():
        if not image.has_pose:
            continue
        source, prepared_name = dense / "images" / image.name, image.name
        if not source.is_file():
            raise StageError(
                "UNDISTORT_FAILED",
                f"The undistorted image of photo {prepared_name} was not written; see the job's log.",
            )
        target = output / "images" / names[prepared_name]
        target.parent.mkdir(parents=True, exist_ok=True)
        strip_metadata(source)
        shutil.move(source, target)
        image.name = names[prepared_name]
        written[prepared_name] = f"images/{names[prepared_name]}"
    if len(written) != count:
        raise StageError(
            "UNDISTORT_FAILED", f"Only {len(written)} of {count} photos were undistorted; see the job's log."
        )
    flat.write_binary(output / "sparse")
    for name in ("rigs.bin", "frames.bin"):  # one camera a photo: three files say all, and every reader knows them
        (output / "sparse" / name).unlink(missing_ok=True)
    return written


def output_names(photos: list[dict[str, Any]]) -> dict[str, str]:
    """{prepared name: <name as uploaded>.jpg}; where two would get the same one, the old suffix stays in the name."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for photo in photos:
        uploaded = Path(photo["name"])
        candidates = [
            uploaded.with_suffix(".jpg"),
            uploaded.with_name(f"{uploaded.stem}_{uploaded.suffix.lstrip('.')}.jpg"),
        ]
        candidates += [uploaded.with_name(f"{uploaded.stem}_{Path(photo['image']).stem}.jpg")]
        name = next(c.as_posix() for c in candidates if c.as_posix().lower() not in taken)
        taken.add(name.lower())
        names[photo["image"]] = name
    return names


def why_not(database: Path, image: str) -> tuple[str, str]:
    """Code and reason of a photo that was not registered."""
    with closing(pycolmap.Database.open(database)) as db:
        image_id = db.read_image_with_name(image).image_id
        features = db.num_keypoints_for_image(image_id)
        if features < FEW_FEATURES:
            reason = f"shows too little texture ({features} features); it may be blurred, dark or of a plain surface"
            return "TOO_LITTLE_TEXTURE", reason
        ids, inliers = db.read_two_view_geometry_num_inliers()
    partners = sum(
        image_id in pair and count >= VERIFIED_INLIERS for pair, count in zip(pair_ids(ids), inliers, strict=True)
    )
    if partners == 0:
        return "NO_OVERLAP", "shows nothing that any other photo shows; take photos in between"
    return (
        "NOT_REGISTERED",
        f"overlaps with {partners} other photos, but not enough to fix its position; take photos in between",
    )


def pair_ids(ids: Any) -> Iterator[tuple[int, int]]:
    for pair in ids:
        yield pair if isinstance(pair, tuple) else pycolmap.pair_id_to_image_pair(pair)


def selfcheck(folder: Path) -> None:
    """Features of two made-up photos, the second one shifted, are found and match. Raises SystemExit when not."""
    coarse = np.random.default_rng(SEED).integers(0, 256, (60, 80), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
    names = ["a.png", "b.png"]
    picture.crop((0, 0, 560, 440)).save(folder / names[0])
    picture.crop((40, 20, 600, 460)).save(folder / names[1])
    photos = [{"image": name, "width": 560, "height": 440, "camera": "", "focal_ratio": 1.2} for name in names]
    database = folder / "database.db"
    pycolmap.logging.minloglevel = int(pycolmap.logging.WARNING)
    import_photos(database, folder, photos)
    extract(database, folder, names, FAST)
    match(database, names, [(0, 1)], folder / "pairs.txt", guided=False)
    if verified_pairs(database, names) != [(0, 1)]:
        raise SystemExit("pycolmap does not work on this machine: two overlapping pictures were not recognised")


# Messages to the parent


def send(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def log(event: str, **fields: Any) -> None:
    send(log={"event": event, **fields})


@contextmanager
def count_rows(database: Path, table: str, total: int, unit: str, text: str) -> Iterator[None]:
    """Ask the parent to report the number of rows of ``table`` as progress while the block runs.

    Not in this process: a second copy of SQLite that opens the file drops the locks of the first one
    (sqlite.org/howtocorrupt.html, section 2.2.1), and the matcher then dies of SIGBUS.
    """
    send(watch={"database": str(database), "table": table, "total": total, "unit": unit, "message": text})
    yield
    send(watch=None, progress=[total, total, unit, text])


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
