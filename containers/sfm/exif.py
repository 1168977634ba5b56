"""What EXIF says about a photo: camera, focal length, date and position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

FILM_DIAGONAL_MM = math.hypot(36, 24)  # FocalLengthIn35mmFilm compares diagonals (CIPA DCG-001)
UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # FocalPlaneResolutionUnit
PLAUSIBLE_FOCAL = (0.3, 12.0)  # in long sides


@dataclass(frozen=True)
class PhotoInfo:
    """EXIF of one photo; what is missing or makes no sense is None."""

    camera: str = ""  # make and model
    focal_ratio: float | None = None  # focal length over long side, so that it holds for every size of the photo
    taken_at: str | None = None  # "2026:06:21 10:00:00", sorts by time
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    altitude_m: float | None = None

    @property
    def has_position(self) -> bool:
        return self.latitude_deg is not None and self.longitude_deg is not None


def read_info(image: Image.Image) -> PhotoInfo:
    """Read EXIF from an opened image. Damaged tags count as missing: a photo is usable without any."""
    exif = image.getexif()
    details, gps = exif.get_ifd(IFD.Exif), exif.get_ifd(IFD.GPSInfo)
    camera = " ".join(str(exif.get(tag, "")).strip(" \0") for tag in (Base.Make, Base.Model)).strip()
    taken = details.get(Base.DateTimeOriginal)
    latitude = angle_deg(gps.get(GPS.GPSLatitude), gps.get(GPS.GPSLatitudeRef), "S", 90)
    longitude = angle_deg(gps.get(GPS.GPSLongitude), gps.get(GPS.GPSLongitudeRef), "W", 180)
    if latitude is None or longitude is None or (latitude == 0 and longitude == 0):  # 0, 0 is written without a fix
        latitude = longitude = None
    altitude = number(gps.get(GPS.GPSAltitude))
    if altitude is not None and gps.get(GPS.GPSAltitudeRef) in (1, b"\x01"):
        altitude = -altitude
    return PhotoInfo(
        camera=camera,
        focal_ratio=focal_ratio(details, image.size),
        taken_at=str(taken).strip(" \0") or None if taken else None,
        latitude_deg=latitude,
        longitude_deg=longitude,
        altitude_m=altitude,
    )


def focal_ratio(details: dict[int, Any], size: tuple[int, int]) -> float | None:
    """Focal length over long side, from the 35 mm equivalent or from the sensor's resolution."""
    film = number(details.get(Base.FocalLengthIn35mmFilm))
    if film:
        return plausible(film / FILM_DIAGONAL_MM * math.hypot(*size) / max(size))
    focal_mm, per_unit = number(details.get(Base.FocalLength)), number(details.get(Base.FocalPlaneXResolution))
    unit_mm = UNIT_MM.get(details.get(Base.FocalPlaneResolutionUnit, 2))
    width = number(details.get(Base.ExifImageWidth)) or size[0]  # the size the resolution is about
    if focal_mm and per_unit and unit_mm:
        return plausible(focal_mm * per_unit / unit_mm / width * size[0] / max(size))
    return None


def plausible(ratio: float) -> float | None:
    return ratio if PLAUSIBLE_FOCAL[0] <= ratio <= PLAUSIBLE_FOCAL[1] else None


def number(value: Any) -> float | None:
    """A finite number, or None for whatever else a tag may hold."""
    try:
        result = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return result if math.isfinite(result) else None


def angle_deg(value: Any, reference: Any, negative: str, limit: float) -> float | None:
    """Degrees from the three rationals of EXIF and its reference letter."""
    if not isinstance(value, tuple | list) or len(value) != 3:
        return None
    parts = [number(part) for part in value]
    if any(part is None for part in parts):
        return None
    angle = sum(part / 60**k for k, part in enumerate(parts) if part is not None)
    if angle > limit:
        return None
    return -angle if str(reference).upper().startswith(negative) else angle


def strip_metadata(path: Path) -> None:
    """Remove EXIF, XMP and comments from a JPEG in place, without touching the picture (ITU-T T.81, annex B)."""
    data = path.read_bytes()
    if data[:2] != b"\xff\xd8":
        raise ValueError(f"{path.name} is not a JPEG")
    kept, position = [b"\xff\xd8"], 2
    while data[position] == 0xFF and data[position + 1] != 0xDA:  # up to the start of scan
        marker = data[position + 1]
        length = 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker not in (0xE1, 0xED, 0xFE):  # APP1, APP13, COM
            kept.append(data[position : position + length])
        position += length
    stripped = b"".join(kept) + data[position:]
    if len(stripped) != len(data):
        path.write_bytes(stripped)
