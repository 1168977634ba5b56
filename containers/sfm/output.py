"""The files that later stages read: undistorted images and COLMAP's model of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pycolmap

from job import StageError
from sfm.exif import strip_metadata
from sfm.messages import Watch, count
from sfm.request import MapPhoto, MapRequest

UNDISTORTED_QUALITY = 95


def write_output(model: pycolmap.Reconstruction, request: MapRequest) -> dict[str, str]:
    """Undistort into ``output``/images and write ``output``/sparse; returns {prepared name: path in the output}."""
    output, aligned, dense = request.output, request.work / "aligned", request.work / "dense"
    aligned.mkdir()
    model.write_binary(aligned)
    options = pycolmap.UndistortCameraOptions()
    options.max_image_size = request.long_side_px
    registered = model.num_reg_images()
    with count(Watch(total=registered, unit="photos", message="Undistorting", folder=dense / "images")):
        pycolmap.undistort_images(
            dense, aligned, request.prepared, undistort_options=options, jpeg_quality=UNDISTORTED_QUALITY
        )
    names = output_names(request.photos)
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
    if len(written) != registered:
        raise StageError(
            "UNDISTORT_FAILED", f"Only {len(written)} of {registered} photos were undistorted; see the job's log."
        )
    flat.write_binary(output / "sparse")
    for name in ("rigs.bin", "frames.bin"):  # one camera a photo: three files say all, and every reader knows them
        (output / "sparse" / name).unlink(missing_ok=True)
    return written


def output_names(photos: Sequence[MapPhoto]) -> dict[str, str]:
    """{prepared name: <name as uploaded>.jpg}; where two would get the same one, the old suffix stays in the name."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for photo in photos:
        uploaded = Path(photo.name)
        candidates = [
            uploaded.with_suffix(".jpg"),
            uploaded.with_name(f"{uploaded.stem}_{uploaded.suffix.lstrip('.')}.jpg"),
        ]
        candidates += [uploaded.with_name(f"{uploaded.stem}_{Path(photo.image).stem}.jpg")]
        name = next(c.as_posix() for c in candidates if c.as_posix().lower() not in taken)
        taken.add(name.lower())
        names[photo.image] = name
    return names
