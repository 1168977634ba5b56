"""Check every photo and bring it into the shape that pose estimation can use."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from job import StageError
from sfm.exif import PhotoInfo, read_info

MIN_PHOTOS = 8
MIN_SHORT_SIDE_PX = 200
MAX_PIXELS = 300_000_000
JPEG_QUALITY = 95
NOT_PHOTOS = {".json", ".txt", ".xml", ".csv", ".srt", ".html", ".md", ".db", ".ini", ".pdf"}
ORIENTATION_UPRIGHT = 1


@dataclass(frozen=True)
class Photo:
    """One uploaded file: usable (``image`` is its prepared name), or rejected with a code and a reason."""

    name: str  # as uploaded, with its folders
    digest: str = ""
    image: str | None = None  # name in the prepared folder
    width: int = 0
    height: int = 0
    info: PhotoInfo = field(default_factory=PhotoInfo)
    code: str | None = None
    reason: str | None = None


def prepare_photos(
    folder: Path,
    prepared: Path,
    long_side_px: int,
    progress: Callable[[int, int], None],
    check_stop: Callable[[], None],
) -> list[Photo]:
    """Decode every photo under ``folder`` in full and put the usable ones into ``prepared`` as ``00000.jpg``…

    Rotation is baked in, the long side limited, colours are 8-bit RGB; a JPEG that needs none of that is linked, not
    encoded again. The order of the result is that of the names. Raises StageError TOO_FEW_PHOTOS.
    """
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns from here and refuses from twice as many
    prepared.mkdir(parents=True, exist_ok=True)
    files = photo_files(folder)
    photos: list[Photo] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            jobs = [(folder, file, prepared, f"{index:05d}.jpg", long_side_px) for index, file in enumerate(files)]
            for done, photo in enumerate(pool.map(lambda job: prepare_photo(*job), jobs), 1):
                check_stop()
                photos.append(photo)
                progress(done, len(files))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    photos = reject_duplicates(photos, prepared)
    usable = sum(photo.image is not None for photo in photos)
    if usable < MIN_PHOTOS:
        raise StageError("TOO_FEW_PHOTOS", describe_too_few(photos, usable))
    return photos


def photo_files(folder: Path) -> list[Path]:
    """Every file that may be a photo, by name; hidden files and notes beside the photos are passed by."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() not in NOT_PHOTOS]
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def prepare_photo(folder: Path, file: Path, prepared: Path, image_name: str, long_side_px: int) -> Photo:
    """Check one file and write its prepared image."""
    name = printable(file.relative_to(folder).as_posix())
    try:
        photo = Photo(name, digest=hashlib.sha256(file.read_bytes()).hexdigest())
    except OSError as error:
        return Photo(name, code="UNREADABLE_PHOTO", reason=f"could not be read: {error.strerror}")
    try:
        with Image.open(file) as image:
            if min(image.size) < MIN_SHORT_SIDE_PX:
                reason = f"is only {image.width}x{image.height} pixels; its short side needs {MIN_SHORT_SIDE_PX}"
                return replace(photo, code="PHOTO_TOO_SMALL", reason=reason)
            info = read_info(image)
            size = write_prepared(image, file, prepared / image_name, long_side_px)
    except UnidentifiedImageError:
        return replace(photo, code="UNREADABLE_PHOTO", reason="is not a photo that can be read; save it as JPEG or PNG")
    except Image.DecompressionBombError:
        reason = f"has more than {MAX_PIXELS // 1_000_000} megapixels; make it smaller"
        return replace(photo, code="PHOTO_TOO_LARGE", reason=reason)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the photo
        reason = f"is damaged or cut short ({error}); copy it from the camera again"
        return replace(photo, code="TRUNCATED_PHOTO", reason=reason)
    return replace(photo, image=image_name, width=size[0], height=size[1], info=info)


def write_prepared(image: Image.Image, file: Path, target: Path, long_side_px: int) -> tuple[int, int]:
    """Write the prepared image (or link the file where nothing needs to change) and return its size."""
    exif = image.getexif()
    orientation = exif.get(Base.Orientation, ORIENTATION_UPRIGHT)
    limit = min(1.0, long_side_px / max(image.size))
    size = (round(image.width * limit), round(image.height * limit))
    keep = (
        image.format in ("JPEG", "MPO") and image.mode == "RGB" and limit == 1.0 and orientation == ORIENTATION_UPRIGHT
    )
    if image.format == "JPEG" and limit <= 0.5:
        image.draft("RGB", (2 * size[0], 2 * size[1]))  # decodes every block, at a fraction of the resolution
    image.load()
    if keep:
        target.symlink_to(file.resolve())
        return size
    colour = as_rgb(image)
    if colour.size != size:
        colour = colour.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    colour.getexif()[Base.Orientation] = orientation
    colour = ImageOps.exif_transpose(colour)
    colour.save(target, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return colour.size


def as_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; 16-bit gray is scaled, transparency dropped."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max()))
        image = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8))
    return image.convert("RGB")


def reject_duplicates(photos: list[Photo], prepared: Path) -> list[Photo]:
    """Keep the first of files with the same bytes: a photo twice adds nothing and misleads held-out tests."""
    first: dict[str, str] = {}
    result = []
    for photo in photos:
        if photo.image is not None and photo.digest in first:
            (prepared / photo.image).unlink()
            reason = f"has the same content as {first[photo.digest]}"
            result.append(replace(photo, image=None, code="DUPLICATE_PHOTO", reason=reason))
            continue
        if photo.image is not None:
            first[photo.digest] = photo.name
        result.append(photo)
    return result


def describe_too_few(photos: list[Photo], usable: int) -> str:
    rejected = [photo for photo in photos if photo.code]
    text = f"{usable} of {len(photos)} files can be used, and at least {MIN_PHOTOS} photos are needed."
    if rejected:
        examples = "; ".join(f"{photo.name} {photo.reason}" for photo in rejected[:3])
        text += f" {len(rejected)} rejected: {examples}{'; …' if len(rejected) > 3 else ''}."
    return text + " Upload more photos of the scene, taken from different positions with much overlap."


def printable(name: str) -> str:
    """A name as valid Unicode, whatever bytes the file system holds."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
