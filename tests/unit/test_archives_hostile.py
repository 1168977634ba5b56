"""Archives that no honest tool makes, or that are broken: the job ends with the names of archive and member."""

import io
import random
import stat
import tracemalloc
import zipfile

import pytest

from base import failures
from base.failures import JobFailure
from tests.unit import zips
from tests.unit.cloud import JPEG, add_job, cloud
from tests.unit.zips import EIGHT, UPLOADS, WORK, body, manifest, refused, run, upload
from uploads import archives, remote_zip

__all__ = ["cloud"]
PLAIN = zips.make(EIGHT)


def bomb() -> bytes:
    """Photos, and one that is 20 MB of zeros."""
    return zips.make({**EIGHT, "z.jpg": JPEG + bytes(20_000_000)})


def crc_error() -> bytes:
    data = bytearray(zips.make(EIGHT, zipfile.ZIP_STORED))
    data[data.index(EIGHT["IMG 5.jpg"]) + 10] ^= 1
    return bytes(data)


def torn_photo() -> bytes:
    """The compressed bytes of one photo are noise."""
    noise = random.Random(1).randbytes(5000)
    data = zips.make({**EIGHT, "z.jpg": JPEG + noise})
    at = data.index(b"z.jpg") + 200
    return data[:at] + bytes(1000) + data[at + 1000 :]


HOSTILE = {
    "path upwards": (zips.make({**EIGHT, "../../x.jpg": JPEG}), "ARCHIVE_UNSAFE", "'../../x.jpg'"),
    "path upwards inside": (zips.make({**EIGHT, "a/../../x.jpg": JPEG}), "ARCHIVE_UNSAFE", "'a/../../x.jpg'"),
    "path upwards of a text": (zips.make({**EIGHT, "../x.txt": b"x"}), "ARCHIVE_UNSAFE", "'../x.txt'"),
    "path upwards by backslash": (zips.make({**EIGHT, "..\\x.jpg": JPEG}), "ARCHIVE_UNSAFE", "x.jpg"),
    "absolute path": (zips.make({**EIGHT, "/etc/x.jpg": JPEG}), "ARCHIVE_UNSAFE", "'/etc/x.jpg'"),
    "absolute by backslash": (zips.make({**EIGHT, "\\\\host\\x.jpg": JPEG}), "ARCHIVE_UNSAFE", "x.jpg"),
    "drive letter": (zips.make({**EIGHT, "C:\\x.jpg": JPEG}), "ARCHIVE_UNSAFE", "x.jpg"),
    "drive letter, slash": (zips.make({**EIGHT, "c:x.jpg": JPEG}), "ARCHIVE_UNSAFE", "'c:x.jpg'"),
    "symlink": (zips.special(EIGHT, "link.jpg", stat.S_IFLNK), "ARCHIVE_UNSAFE", "'link.jpg'"),
    "device": (zips.special(EIGHT, "dev.jpg", stat.S_IFCHR), "ARCHIVE_UNSAFE", "'dev.jpg'"),
    "pipe": (zips.special(EIGHT, "pipe", stat.S_IFIFO), "ARCHIVE_UNSAFE", "'pipe'"),
    "bomb": (bomb(), "ARCHIVE_UNSAFE", "'z.jpg'"),
    "overlap": (zips.overlapping("a.jpg", JPEG, 1000), "ARCHIVE_UNSAFE", "'a.jpg'"),
    "member over the next ones": (
        zips.changed(PLAIN, 2, compress_size=len(PLAIN) // 2),
        "ARCHIVE_UNSAFE",
        "'IMG 2.jpg'",
    ),
    "member over the directory": (zips.changed(PLAIN, 7, compress_size=5000), "ARCHIVE_UNSAFE", "'IMG 7.jpg'"),
    "encrypted": (zips.changed(PLAIN, 3, flags=0x1), "ARCHIVE_ENCRYPTED", "'IMG 3.jpg'"),
    "strongly encrypted": (zips.changed(PLAIN, 3, flags=0x41), "ARCHIVE_ENCRYPTED", "'IMG 3.jpg'"),
    "encrypted by AES": (zips.changed(PLAIN, 3, flags=0x1, method=99), "ARCHIVE_ENCRYPTED", "'IMG 3.jpg'"),
    "patch data": (zips.changed(PLAIN, 3, flags=0x20), "ARCHIVE_UNSUPPORTED", "'IMG 3.jpg'"),
    "deflate64": (zips.changed(PLAIN, 3, method=9), "ARCHIVE_UNSUPPORTED", "'IMG 3.jpg'"),
    "bzip2": (zips.make(EIGHT, zipfile.ZIP_BZIP2), "ARCHIVE_UNSUPPORTED", "'IMG 0.jpg'"),
    "lzma": (zips.make(EIGHT, zipfile.ZIP_LZMA), "ARCHIVE_UNSUPPORTED", "'IMG 0.jpg'"),
    "version of the future": (zips.changed(PLAIN, 3, version_needed=99), "ARCHIVE_DAMAGED", "photos.zip"),
    "no zip": (b"Rar!\x1a\x07 and so on " * 20, "ARCHIVE_DAMAGED", "photos.zip"),
    "nothing": (b"", "ARCHIVE_DAMAGED", "photos.zip"),
    "cut short": (PLAIN[:-50], "ARCHIVE_DAMAGED", "photos.zip"),
    "beginning lost": (PLAIN[300:], "ARCHIVE_DAMAGED", "photos.zip"),
    "zip in zip": (zips.make({**EIGHT, "more/b.ZIP": PLAIN}), "ARCHIVE_NESTED", "'more/b.ZIP'"),
    "wrong checksum": (crc_error(), "ARCHIVE_DAMAGED", "'IMG 5.jpg'"),
    "torn photo": (torn_photo(), "ARCHIVE_DAMAGED", "'z.jpg'"),
    "larger than it says": (zips.changed(PLAIN, 4, file_size=40), "ARCHIVE_DAMAGED", "'IMG 4.jpg'"),
    "smaller than it says": (zips.changed(PLAIN, 4, file_size=80), "ARCHIVE_DAMAGED", "'IMG 4.jpg'"),
    "other name in its header": (
        PLAIN.replace(b"IMG 4.jpg", b"XXX 4.jpg", 1),
        "ARCHIVE_DAMAGED",
        "'IMG 4.jpg'",
    ),
    "name that is no UTF-8": (
        zips.make({**EIGHT, "ü.jpg": JPEG}).replace("ü".encode(), b"\xff\xfe"),
        "ARCHIVE_DAMAGED",
        "photos.zip",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_end_the_job_with_their_names(cloud, case):
    data, code, words = HOSTILE[case]
    upload(cloud, photos_zip=data)
    for name, photo in EIGHT.items():  # enough photos beside it: the archive is still not passed over in silence
        cloud.put(UPLOADS + name, photo)
    failure = refused(cloud)
    assert failure.code == code
    assert "photos.zip" in failure.reason
    assert words in failure.reason
    told = failures.parse({"Error": code, "Cause": str(failure)})
    assert (told.code, told.reason) == (code, failure.reason)
    assert told.advice.endswith(".")


def test_the_size_that_is_declared_is_where_unpacking_stops(cloud):
    """60 KB that inflate to 60 MB and say that they are 60 bytes."""
    data = zips.make({**EIGHT, "z.jpg": JPEG + bytes(60_000_000)})
    upload(cloud, photos_zip=zips.changed(data, 8, file_size=60))
    tracemalloc.start()
    try:
        failure = refused(cloud)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (failure.code, "'z.jpg'" in failure.reason) == ("ARCHIVE_DAMAGED", True)
    assert peak < 30_000_000
    assert f"{WORK}photos.zip/z.jpg" not in cloud.keys("work/")


def test_many_members_that_are_each_within_the_ratio(cloud):
    flat = {f"{n}.jpg": JPEG + random.Random(n).randbytes(900) * 40 for n in range(8)}
    data = zips.make(flat)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert all(info.file_size < archives.MAX_RATIO * info.compress_size for info in archive.infolist())
    assert sum(map(len, flat.values())) > archives.MAX_RATIO_OF_ARCHIVE * len(data)
    upload(cloud, photos_zip=data)
    failure = refused(cloud)
    assert failure.code == "ARCHIVE_UNSAFE"
    assert "25 times its size" in failure.reason


@pytest.mark.parametrize(
    ("module", "name", "limit", "words"),
    [
        (archives, "MAX_MEMBERS", 15, "8 members; 15 are allowed"),
        (remote_zip, "MAX_DIRECTORY_BYTES", 300, "has 440 bytes"),
        (archives, "MAX_PHOTO_BYTES", 64, "'IMG 0.jpg'"),
        (archives, "MAX_UNPACKED_BYTES", 1000, "The archives hold"),
        (archives, "MAX_ARCHIVES", 1, "2 archives; 1 are allowed"),
    ],
)
def test_limits(cloud, monkeypatch, module, name, limit, words):
    upload(cloud, photos_zip=PLAIN, second_zip=PLAIN)
    monkeypatch.setattr(module, name, limit)
    failure = refused(cloud)
    assert failure.code == "ARCHIVE_TOO_LARGE"
    assert words in failure.reason
    assert cloud.keys(WORK) == []


def test_directory_of_any_size_is_not_read(cloud):
    """The end record claims the 30 MB before it as directory."""
    data = bytearray(bytes(30_000_000) + PLAIN)
    data[-10:-6] = (30_000_000).to_bytes(4, "little")
    upload(cloud, photos_zip=bytes(data))
    tracemalloc.start()
    try:
        assert refused(cloud).code == "ARCHIVE_TOO_LARGE"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 90_000_000  # moto reads the object to answer a range


def test_damage_anywhere_is_no_crash(cloud):
    add_job()
    outcomes = set()
    for seed in range(40):
        rng = random.Random(seed)
        data = bytearray(PLAIN)
        first = 0 if seed % 2 else len(data) - 500  # the directory is where most fields are
        for _ in range(rng.choice((1, 4, 30))):
            data[rng.randrange(first, len(data))] = rng.choice((0, 1, 0xFF, rng.randrange(256)))
        cloud.put(UPLOADS + "photos.zip", bytes(data))
        try:
            outcomes.add(run(cloud)["photos"])
        except JobFailure as failure:
            outcomes.add(failure.code)
            assert failure.code in ("NO_PHOTOS", "TOO_FEW_PHOTOS") or "photos.zip" in failure.reason, seed
            assert len(failure.reason) < 500, seed
        else:
            assert all(len(body(WORK + name)) == 65 for name in manifest(cloud)[1:]), seed
    assert {8, "TOO_FEW_PHOTOS", "ARCHIVE_DAMAGED", "ARCHIVE_ENCRYPTED", "ARCHIVE_UNSAFE"} <= outcomes
