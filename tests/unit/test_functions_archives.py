"""validate over zip archives: their photos are used. What no honest archive holds: test_archives_hostile.py."""

import io
import random
import zipfile
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import IncompleteReadError
from botocore.response import StreamingBody
from moto.s3.models import s3_backends

from base import aws, failures
from tests.unit import zips
from tests.unit.cloud import BUCKET, JPEG, cloud
from tests.unit.zips import EIGHT, UPLOADS, WORK, body, manifest, refused, rejected, run, upload
from uploads import archives, remote_zip

__all__ = ["cloud"]


def uploaded_long_ago(key: str) -> None:
    stored = s3_backends["123456789012"]["aws"].get_object(BUCKET, key)
    stored.last_modified = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archive_instead_of_photos(cloud, method):
    upload(cloud, photos_zip=zips.make(EIGHT, method))
    before = cloud.keys("uploads/")
    assert {name: run(cloud)[name] for name in ("photos", "rejected")} == {"photos": 8, "rejected": 0}
    assert manifest(cloud) == [{"prefix": f"s3://{BUCKET}/{WORK}"}, *(f"photos.zip/{name}" for name in sorted(EIGHT))]
    assert {name: body(f"{WORK}photos.zip/{name}") for name in EIGHT} == EIGHT
    assert cloud.keys("uploads/") == before


def test_archives_beside_photos(cloud):
    """All come together under the job's own prefix; the names tell where each is from."""
    upload(cloud, one_zip=zips.make(EIGHT), two_zip=zips.make(EIGHT))
    direct = {"IMG 0.jpg": JPEG + b"a", "day 1/a+b%20ü ä.JPG": JPEG + b"b"}
    for name, data in direct.items():
        cloud.put(UPLOADS + name, data)
    assert run(cloud)["photos"] == 18
    prefix, *names = manifest(cloud)
    assert prefix == {"prefix": f"s3://{BUCKET}/{WORK}"}
    assert names == sorted([*direct, *(f"{archive}.zip/{name}" for archive in ("one", "two") for name in EIGHT)])
    assert {name: body(WORK + name) for name in direct} == direct
    assert set(cloud.keys(WORK)) == {WORK + name for name in names}


def test_equal_names_in_folders_and_twice_in_one_folder_are_all_used(cloud):
    files = [(f"day {day}/IMG.jpg", JPEG + bytes([day])) for day in range(8)]
    files += [("day 0/IMG.jpg", JPEG + b"second"), ("day 0/IMG.jpg", JPEG + b"third")]
    upload(cloud, photos_zip=zips.make(files))
    cloud.put(UPLOADS + "photos.zip/day 1/IMG.jpg", JPEG + b"uploaded")  # a folder that is called like the archive
    assert run(cloud)["photos"] == 11
    names = manifest(cloud)[1:]
    assert len(set(names)) == 11
    assert body(WORK + "photos.zip/day 0/IMG (2).jpg") == JPEG + b"second"
    assert body(WORK + "photos.zip/day 0/IMG (3).jpg") == JPEG + b"third"
    assert body(WORK + "photos.zip/day 1/IMG.jpg") == JPEG + b"uploaded"
    assert body(WORK + "photos.zip/day 1/IMG (2).jpg") == JPEG + bytes([1])


NAMES = ["sp ace.jpg", "a+b.jpg", "100%25.jpg", "äöü/日本.JPG", 'it\'s "quoted" 🏠.jpg', "n" * 251 + ".jpg"]


def test_names_in_any_writing(cloud):
    upload(cloud, photos_zip=zips.make({name: JPEG + name.encode() for name in [*NAMES, *EIGHT]}))
    assert run(cloud)["photos"] == len(NAMES) + 8
    for name in NAMES:
        assert body(f"{WORK}photos.zip/{name}") == JPEG + name.encode()
        assert f"photos.zip/{name}" in manifest(cloud)


def test_names_as_old_and_as_windows_tools_write_them(cloud):
    data = zips.make({"day 1\\a.jpg": JPEG, "./b.jpg": JPEG, "c//d.jpg": JPEG, "Gr@@n.jpg": JPEG, **EIGHT})
    upload(cloud, photos_zip=data.replace(b"Gr@@n.jpg", b"Gr\x81\xe1n.jpg"))  # cp437 without the flag for UTF-8
    assert run(cloud)["photos"] == 12
    assert {f"photos.zip/{name}" for name in ("day 1/a.jpg", "b.jpg", "c/d.jpg", "Grüßn.jpg")} <= set(
        manifest(cloud)[1:]
    )


def test_what_is_no_photo_is_passed_over_and_reported(cloud):
    others = {
        "__MACOSX/._IMG 0.jpg": JPEG,
        "._IMG 1.jpg": JPEG,
        ".DS_Store": b"x",
        "sub/Thumbs.db": b"x",
        "__MACOSX/inner.zip": b"PK",
        "folder/": b"",
        "notes.txt": b"x",
        "job.json": b"{}",
        "clip.mp4": b"x",
        "c.heic": JPEG,
        "empty.jpg": b"",
        "fake.jpg": b"This is a text, not a photo.",
        "new\nline.jpg": JPEG,
        "nul.jpg\0.zip": JPEG,
        "x" * 256 + ".jpg": JPEG,
        "/".join(["deep" * 10] * 25) + "/a.jpg": JPEG,
    }
    upload(cloud, photos_zip=zips.make({**EIGHT, **others}))
    answer = run(cloud)
    reasons = {name.removeprefix("photos.zip/"): reason for name, reason in rejected(cloud).items()}
    assert set(reasons) == set(list(others)[6:])
    assert (answer["photos"], answer["rejected"]) == (8, 10)
    assert reasons["fake.jpg"] == "the content is not a JPEG, PNG, TIFF or WebP image"
    assert reasons["empty.jpg"] == "the file is empty"
    assert reasons["job.json"] == "options count beside the archive, not in it"
    assert "videos are not supported" in reasons["clip.mp4"]
    assert set(cloud.keys(WORK)) == {f"{WORK}photos.zip/{name}" for name in EIGHT}


def test_number_that_makes_a_name_too_long(cloud):
    upload(cloud, photos_zip=zips.make([*EIGHT.items(), ("n" * 251 + ".jpg", JPEG), ("n" * 251 + ".jpg", JPEG)]))
    assert run(cloud)["photos"] == 9
    assert rejected(cloud) == {f"photos.zip/{'n' * 251} (2).jpg": "a part of the name is longer than 255 bytes"}


def test_numbers_pass_over_names_that_are_there():
    numbers = {"a (2).jpg": 1, "a.jpg": 1}
    assert [archives.distinct("a.jpg", numbers) for _ in range(3)] == ["a (3).jpg", "a (4).jpg", "a (5).jpg"]
    assert archives.distinct("a (2).jpg", numbers) == "a (2) (2).jpg"
    assert archives.distinct("b.jpg", numbers) == "b.jpg"


def test_finding_a_number_does_not_take_longer_for_each_name():
    """Thousands of members of one name must not hold Validate up."""

    class Counted(dict):
        looked_up = 0

        def __contains__(self, name):
            Counted.looked_up += 1
            return super().__contains__(name)

    numbers = Counted()
    assert len({archives.distinct("a.jpg", numbers) for _ in range(1000)}) == 1000
    assert Counted.looked_up < 3000


def test_connection_that_breaks_is_another_try(cloud, monkeypatch):
    upload(cloud, photos_zip=PLAIN)
    read = StreamingBody.read

    def broken(stream, amt=None):
        raise IncompleteReadError(actual_bytes=len(read(stream)) - 1, expected_bytes=99)

    monkeypatch.setattr(StreamingBody, "read", broken)
    failure = refused(cloud)
    assert (type(failure).__name__, failure.code) == (failures.TRANSIENT, "SERVICE_BUSY")


def test_zip64(cloud, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr(zipfile, "ZIP64_LIMIT", 10)
        data = zips.make(EIGHT)
    assert b"PK\x06\x06" in data
    upload(cloud, photos_zip=data)
    assert run(cloud)["photos"] == 8
    assert body(f"{WORK}photos.zip/IMG 3.jpg") == EIGHT["IMG 3.jpg"]


def test_archive_behind_a_program_and_with_a_comment(cloud):
    target = io.BytesIO(zips.make(EIGHT))
    with zipfile.ZipFile(target, "a") as archive:
        archive.comment = b"from my drone " * 1000
    upload(cloud, photos_zip=b"MZ" + b"\0" * 5000 + target.getvalue())
    assert run(cloud)["photos"] == 8


PLAIN = zips.make(EIGHT)


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({}, "NO_PHOTOS", "holds no photos"),
        ({"notes.txt": b"x"}, "NO_PHOTOS", "'photos.zip/notes.txt': not a photo"),
        ({"a.jpg": b"a text that is no photo"}, "NO_PHOTOS", "'photos.zip/a.jpg': the content is not"),
        (dict(list(EIGHT.items())[:7]), "TOO_FEW_PHOTOS", "Only 7 of"),
    ],
)
def test_archives_that_cannot_become_a_scene(cloud, files, code, words):
    upload(cloud, photos_zip=zips.make(files))
    failure = refused(cloud)
    assert failure.code == code
    assert words in failure.reason


def test_too_many_photos_are_not_even_unpacked(cloud, monkeypatch):
    cloud.set(monkeypatch, MAX_PHOTOS="10")
    upload(cloud, one_zip=PLAIN)
    for number in range(3):
        cloud.put(f"{UPLOADS}{number}.jpg", JPEG)
    failure = refused(cloud)
    assert (failure.code, failure.reason) == ("TOO_MANY_PHOTOS", "The scene has 11 photos; 10 are allowed")
    assert cloud.keys(WORK) == []


def test_file_and_folder_of_one_name_do_not_meet_on_a_disk(cloud):
    upload(cloud, photos_zip=zips.make({**EIGHT, "IMG 0.jpg/a.jpg": JPEG}))
    assert run(cloud)["photos"] == 8
    assert rejected(cloud) == {"photos.zip/IMG 0.jpg/a.jpg": "its folder has the name of another photo"}


class Watched:
    """Every call of the functions to S3; ``before`` is called with operation, number and parameters."""

    def __init__(self, monkeypatch, before=lambda operation, number, parameters: None):
        self.calls: list[tuple[str, dict]] = []
        self.bytes = 0
        own, make = aws.s3(), BaseClient._make_api_call

        def call(client, operation, parameters):
            if client is not own:
                return make(client, operation, parameters)
            self.calls.append((operation, parameters))
            before(operation, self.count(operation), parameters)
            answer = make(client, operation, parameters)
            self.bytes += answer["ContentLength"] if operation == "GetObject" else 0
            return answer

        monkeypatch.setattr(BaseClient, "_make_api_call", call)

    def count(self, operation: str) -> int:
        return sum(name == operation for name, _ in self.calls)


def test_repeated_call_goes_on_where_it_was(cloud, monkeypatch):
    upload(cloud, photos_zip=PLAIN)
    cloud.put(UPLOADS + "direct.jpg", JPEG)
    uploaded_long_ago(UPLOADS + "photos.zip")
    monkeypatch.setattr(archives, "UNPACK_THREADS", 1)

    def die(operation, number, parameters):
        if operation == "PutObject" and number == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as first:
        Watched(first, die)
        with pytest.raises(KeyboardInterrupt):
            run(cloud)
    assert len(cloud.keys(WORK + "photos.zip/")) == 5
    with monkeypatch.context() as second:
        watched = Watched(second)
        assert run(cloud)["photos"] == 9
    written = [parameters["Key"] for operation, parameters in watched.calls if operation == "PutObject"]
    assert [key for key in written if key.startswith(WORK)] == [f"{WORK}photos.zip/IMG {n}.jpg" for n in (5, 6, 7)]
    with monkeypatch.context() as third:
        watched = Watched(third)
        assert run(cloud)["photos"] == 9
    assert watched.count("PutObject") == 2, "rejected.json and manifest.json"
    assert {name: body(f"{WORK}photos.zip/{name}") for name in EIGHT} == EIGHT


def test_photos_of_an_archive_that_was_replaced_are_unpacked_again(cloud):
    upload(cloud, photos_zip=PLAIN)
    uploaded_long_ago(UPLOADS + "photos.zip")
    run(cloud)
    for key in cloud.keys(WORK):
        uploaded_long_ago(key)
    cloud.put(UPLOADS + "photos.zip", zips.make(dict.fromkeys(EIGHT, JPEG + b"\xee")))
    run(cloud)
    assert body(f"{WORK}photos.zip/IMG 0.jpg") == JPEG + b"\xee"


@pytest.mark.parametrize("read", [1, 2, 3])
@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_archive_that_changes_after_listing_is_looked_at_again(cloud, monkeypatch, change, read):
    """The state machine tries again what is transient; by then the listing says what is true."""
    upload(cloud, photos_zip=PLAIN)
    s3 = boto3.client("s3")

    def strike(operation, number, parameters):
        if operation == "GetObject" and parameters["Key"].endswith(".zip") and reads.append(1) is None:
            if len(reads) == read and change == "deleted":
                s3.delete_object(Bucket=BUCKET, Key=UPLOADS + "photos.zip")
            elif len(reads) == read:
                cloud.put(UPLOADS + "photos.zip", zips.make(dict.fromkeys(EIGHT, JPEG + b"\xee")))

    reads: list[int] = []
    with monkeypatch.context() as first:
        Watched(first, strike)
        failure = refused(cloud)
    assert type(failure).__name__ == failures.TRANSIENT
    assert (failure.code, "'photos.zip'" in failure.reason) == ("ARCHIVE_CHANGED", True)
    if change == "deleted":
        assert refused(cloud).code == "NO_PHOTOS"
    else:
        assert run(cloud)["photos"] == 8
        assert body(f"{WORK}photos.zip/IMG 0.jpg") == JPEG + b"\xee"


def test_photo_that_is_deleted_before_it_is_copied(cloud, monkeypatch):
    upload(cloud, photos_zip=PLAIN)
    cloud.put(UPLOADS + "direct.jpg", JPEG)

    def strike(operation, number, parameters):
        if operation == "CopyObject":
            boto3.client("s3").delete_object(Bucket=BUCKET, Key=UPLOADS + "direct.jpg")

    with monkeypatch.context() as patch:
        Watched(patch, strike)
        assert run(cloud)["photos"] == 8
    assert rejected(cloud) == {"direct.jpg": "the file was deleted while the upload was checked"}


def test_only_what_is_needed_is_read(cloud, monkeypatch):
    """16 MB of other files between the photos; neither they nor the whole archive are fetched for the directory."""
    noise = random.Random(2).randbytes(8_000_000)
    files = [*list(EIGHT.items())[:4], ("a.bin", noise), ("b.bin", noise), *list(EIGHT.items())[4:]]
    monkeypatch.setattr(archives, "UNPACK_THREADS", 1)
    monkeypatch.setattr(remote_zip, "BUFFER_BYTES", 1 << 20)
    upload(cloud, photos_zip=zips.make(files, zipfile.ZIP_STORED))
    watched = Watched(monkeypatch)
    assert run(cloud)["photos"] == 8
    assert watched.bytes < 3_000_000
    assert watched.count("GetObject") < 20
