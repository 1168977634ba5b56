"""Features of the photos and matches between them, in a COLMAP database.

Only SIFT and pair lists are used: the other matchers of the wheel need downloads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfm.messages import Watch, count
from sfm.request import MapPhoto, Rejection
from sfm.retrieval import DESCRIPTOR_LENGTH, similarities

Array = np.ndarray[Any, Any]

MATCH_BLOCKS = 50  # how often match progress becomes visible; at the end of each the cores wait for the last pair
MIN_PAIRS_A_BLOCK = 40
FEW_FEATURES = 150
FEATURES_LONG_SIDE_PX = 1600  # poses come from the middle octaves: more pixels cost time and memory, and move nothing
VERIFIED_INLIERS = 15  # what the mapper takes for an overlap


@dataclass(frozen=True)
class SiftSettings:
    """Effort of the SIFT detector. ``fast`` finds the same cameras with a fifth of the work in nearly all sets."""

    name: str
    first_octave: int  # -1 doubles the image first
    max_features: int
    settle_sooner: bool


FAST = SiftSettings("fast", 0, 4096, settle_sooner=True)
STRONG = SiftSettings("strong", -1, 8192, settle_sooner=False)


def import_photos(database: Path, prepared: Path, photos: Sequence[MapPhoto]) -> None:
    """One camera for all photos of the same size, make, model and focal length: shared intrinsics give better poses."""
    pycolmap.Database.open(database).close()
    groups: dict[tuple[int, int, str, float | None], list[MapPhoto]] = defaultdict(list)
    for photo in photos:
        ratio = photo.info.focal_ratio
        groups[photo.width_px, photo.height_px, photo.info.camera, round(ratio, 2) if ratio else None].append(photo)
    for (width, height, *_), group in groups.items():
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = "SIMPLE_RADIAL"
        ratio = group[0].info.focal_ratio
        if ratio:
            reader.camera_params = f"{ratio * max(width, height)},{width / 2},{height / 2},0"
        names = [photo.image for photo in group]
        pycolmap.import_images(database, prepared, pycolmap.CameraMode.SINGLE, names, reader)


def extract(database: Path, prepared: Path, names: list[str], settings: SiftSettings) -> None:
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size = FEATURES_LONG_SIDE_PX
    options.sift.first_octave = settings.first_octave
    options.sift.max_num_features = settings.max_features
    found = Watch(total=len(names), unit="photos", message="Finding features", database=database, table="keypoints")
    with count(found):
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
    return [(row[a], row[b]) for (a, b), shared in found if shared >= VERIFIED_INLIERS]


def image_ids(db: pycolmap.Database) -> dict[str, int]:
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
    table = "two_view_geometries"
    with count(Watch(total=len(pairs), unit="pairs", message="Comparing photos", database=database, table=table)):
        pycolmap.match_image_pairs(database, matching, pairing)


def why_not(database: Path, image: str) -> Rejection:
    """Why a photo was not registered."""
    with closing(pycolmap.Database.open(database)) as db:
        image_id = db.read_image_with_name(image).image_id
        features = db.num_keypoints_for_image(image_id)
        if features < FEW_FEATURES:
            reason = f"shows too little texture ({features} features); it may be blurred, dark or of a plain surface"
            return Rejection(code="TOO_LITTLE_TEXTURE", reason=reason)
        ids, inliers = db.read_two_view_geometry_num_inliers()
    partners = sum(
        image_id in pair and shared >= VERIFIED_INLIERS for pair, shared in zip(pair_ids(ids), inliers, strict=True)
    )
    if partners == 0:
        reason = "shows nothing that any other photo shows; take photos in between"
        return Rejection(code="NO_OVERLAP", reason=reason)
    reason = f"overlaps with {partners} other photos, but not enough to fix its position; take photos in between"
    return Rejection(code="NOT_REGISTERED", reason=reason)


def pair_ids(ids: Any) -> Iterator[tuple[int, int]]:
    for pair in ids:
        yield pair if isinstance(pair, tuple) else pycolmap.pair_id_to_image_pair(pair)
