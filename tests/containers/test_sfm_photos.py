"""What the SfM stage accepts as a photo, and how it says why not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from job import StageError
from sfm.exif import read_info, strip_metadata
from sfm.photos import as_rgb, prepare_photos


def picture(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)).resize(size)


def prepare(folder: Path, prepared: Path, long_side_px: int = 1600):
    return prepare_photos(folder, prepared, long_side_px, lambda done, total: None, lambda: None)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine good photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(9):
        picture(k).save(folder / f"good {k}.jpg", quality=90)
    return folder


def by_name(photos):
    return {photo.name: photo for photo in photos}


def test_bad_files_are_rejected_with_their_code(photos: Path, tmp_path: Path):
    good = (photos / "good 0.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(good[: len(good) // 2])
    (photos / "text.jpg").write_text("not a photo")
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "copy.jpg").write_bytes(good)
    picture(1, (16, 16)).save(photos / "tiny.png")
    (photos / "notes.txt").write_text("passed by")
    (photos / ".hidden.jpg").write_text("passed by")
    result = by_name(prepare(photos, tmp_path / "out"))
    codes = {name: photo.code for name, photo in result.items() if photo.code}
    assert codes == {
        "cut.jpg": "TRUNCATED_PHOTO",
        "text.jpg": "UNREADABLE_PHOTO",
        "empty.jpg": "UNREADABLE_PHOTO",
        "good 0.jpg": "DUPLICATE_PHOTO",  # "copy.jpg" comes first by name
        "tiny.png": "PHOTO_TOO_SMALL",
    }
    assert "copy.jpg" in result["good 0.jpg"].reason
    usable = {photo.image for photo in result.values() if photo.image}
    assert {path.name for path in (tmp_path / "out").iterdir()} == usable and len(usable) == 9


def test_names_keep_folders_and_any_characters(photos: Path, tmp_path: Path):
    for folder in ("left", "right"):
        (photos / folder).mkdir()
        picture(20 + len(folder)).save(photos / folder / "Straße 写真 1.JPG", "JPEG")
    names = {photo.name for photo in prepare(photos, tmp_path / "out") if photo.image}
    assert {"left/Straße 写真 1.JPG", "right/Straße 写真 1.JPG"} <= names


def test_orientation_is_baked_in_and_focal_kept(photos: Path, tmp_path: Path):
    exif = Image.Exif()
    exif[Base.Orientation] = 6  # turn by 90 degrees clockwise to show
    exif.get_ifd(IFD.Exif)[Base.FocalLengthIn35mmFilm] = 26
    upright = picture(30, (240, 320))
    upright.transpose(Image.Transpose.ROTATE_90).save(photos / "turned.jpg", quality=95, exif=exif)
    photo = by_name(prepare(photos, tmp_path / "out"))["turned.jpg"]
    assert (photo.width, photo.height) == (240, 320)
    with Image.open(tmp_path / "out" / photo.image) as prepared:
        assert prepared.getexif().get(Base.Orientation, 1) == 1
        difference = np.abs(np.asarray(prepared, float) - np.asarray(upright, float)).mean()
    assert difference < 6
    assert photo.info.focal_ratio == pytest.approx(26 / np.hypot(36, 24) * 400 / 320)


def test_a_good_jpeg_is_not_encoded_again_and_a_large_one_is_scaled(photos: Path, tmp_path: Path):
    picture(40, (1000, 500)).save(photos / "large.jpg", quality=95)
    result = by_name(prepare(photos, tmp_path / "out", long_side_px=400))
    assert (result["large.jpg"].width, result["large.jpg"].height) == (400, 200)
    kept = tmp_path / "out" / result["good 3.jpg"].image
    assert kept.read_bytes() == (photos / "good 3.jpg").read_bytes()


def test_too_few_photos_names_the_counts(tmp_path: Path):
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(StageError, match="TOO_FEW_PHOTOS: 0 of 0 files"):
        prepare(folder, tmp_path / "out")
    for k in range(3):
        picture(k).save(folder / f"{k}.jpg")
    (folder / "broken.jpg").write_text("x")
    with pytest.raises(StageError, match=r"3 of 4 files.*broken\.jpg is not a photo"):
        prepare(folder, tmp_path / "out2")


def test_deep_gray_is_scaled_to_eight_bits():
    deep = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert np.asarray(as_rgb(deep))[0, :, 0].tolist() == [0, 127, 255]


def test_exif_position_and_camera(tmp_path: Path):
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Model] = "Maker", "Model 1"
    details = exif.get_ifd(IFD.Exif)
    details[Base.FocalLength] = 4.5
    details[Base.FocalPlaneXResolution] = 2000 / 6.17  # 2000 pixels on a sensor 6.17 mm wide
    details[Base.FocalPlaneResolutionUnit] = 4
    details[Base.ExifImageWidth] = 2000
    gps = exif.get_ifd(IFD.GPSInfo)
    gps[GPS.GPSLatitude], gps[GPS.GPSLatitudeRef] = (30.0, 10.0, 14.904), "S"
    gps[GPS.GPSLongitude], gps[GPS.GPSLongitudeRef] = (98.0, 5.0, 22.308), "W"
    gps[GPS.GPSAltitude], gps[GPS.GPSAltitudeRef] = 12.5, b"\x01"
    picture(1, (400, 300)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        info = read_info(image)
    assert info.camera == "Maker Model 1"
    assert info.latitude_deg == pytest.approx(-(30 + 10 / 60 + 14.904 / 3600))
    assert info.longitude_deg == pytest.approx(-98.0895300)
    assert info.altitude_m == -12.5
    assert info.focal_ratio == pytest.approx(4.5 / 6.17, rel=1e-3)


def test_metadata_is_removed_without_touching_the_picture(tmp_path: Path):
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    path = tmp_path / "a.jpg"
    picture(3).save(path, exif=exif, comment=b"where I live")
    with Image.open(path) as image:
        before = np.asarray(image)
    strip_metadata(path)
    with Image.open(path) as image:
        assert not image.getexif() and "comment" not in image.info
        assert np.array_equal(np.asarray(image), before)
