"""validate: options, photos, cost, reuse."""

import boto3
import pytest

import validate
from base.failures import JobFailure
from tests.unit.cloud import BUCKET, JOB, JPEG, Cloud, add_job, cloud, job_row
from uploads import photos

__all__ = ["cloud"]
OTHER = "my-house-01KD8E7J9Q3M5V8X2Z4B6C7D00"


def run(cloud: Cloud) -> dict:
    return validate.handler({"job_id": JOB, "scene": "my-house", "bucket": BUCKET, "settle": {}}, cloud.context)


def put_photos(cloud: Cloud, count: int = 8, name: str = "IMG {}.jpg") -> list[str]:
    names = sorted(name.format(number) for number in range(count))
    for one in names:
        cloud.put(f"uploads/my-house/{one}", JPEG)
    return names


def refused(cloud: Cloud) -> JobFailure:
    with pytest.raises(JobFailure) as raised:
        run(cloud)
    assert type(raised.value).__name__ == raised.value.code, "the class name is what Step Functions sees"
    return raised.value


def test_good_upload(cloud):
    add_job("SETTLING")
    names = put_photos(cloud, 8, "day 1/a+b%20ü {}.JPG")
    for path, body in {
        "fake.jpg": b"This is a text.",
        "empty.jpg": b"",
        "c.heic": JPEG,
        ".DS_Store": b"x",
        "d.mp4": b"x",
    }.items():
        cloud.put(f"uploads/my-house/{path}", body)
    cloud.put("uploads/my-house/job.json", {"preset": "high", "title": "Haus"})
    cloud.put("uploads/my-house-2/other.jpg", JPEG)
    answer = run(cloud)
    assert answer == {
        "start_at": "sfm",
        "photos": 8,
        "rejected": 4,
        "estimated_usd": answer["estimated_usd"],
        "training_shortened": False,
    }
    assert cloud.read(f"work/{JOB}/manifest.json") == [{"prefix": f"s3://{BUCKET}/uploads/my-house/"}, *names]
    rejected = {entry["name"]: entry["reason"] for entry in cloud.read(f"work/{JOB}/rejected.json")}
    assert rejected.keys() == {"fake.jpg", "empty.jpg", "c.heic", "d.mp4"}
    assert rejected["fake.jpg"] == "the content is not a JPEG, PNG, TIFF or WebP image"
    assert rejected["empty.jpg"] == "the file is empty"
    job = job_row()
    assert job["options"] == {"preset": "high", "title": "Haus", "start_at": "sfm", "ready": False}
    assert (job["photos"], job["rejected"], job["estimated_usd"]) == (8, 4, answer["estimated_usd"])


def test_hostile_names_are_reported_not_passed_on(cloud):
    add_job()
    put_photos(cloud)
    hostile = ["a//b.jpg", "new\nline.jpg", "x" * 256 + ".jpg"]
    for name in hostile:
        cloud.put(f"uploads/my-house/{name}", JPEG)
    assert run(cloud)["rejected"] == 3
    assert {entry["name"] for entry in cloud.read(f"work/{JOB}/rejected.json")} == set(hostile)
    for name in ("../../etc/a.jpg", "a/../b.jpg", "./a.jpg"):  # clients normalise these away before they reach S3
        assert photos.problem_of_path(name) == "the name has an empty part, '.' or '..'"
    assert len(cloud.read(f"work/{JOB}/manifest.json")) == 9


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({}, "NO_PHOTOS", "holds no photos"),
        ({"a.jpg": b"hello"}, "NO_PHOTOS", "'a.jpg': the content is not"),
        ({"a.zip": b"PK"}, "ARCHIVE_DAMAGED", "'a.zip' is not a complete zip archive"),
        ({"flight.MP4": b"x", "notes.txt": b"x"}, "UNSUPPORTED_INPUT", "holds a video"),
        (
            {f"{n}.jpg": JPEG for n in range(7)},
            "TOO_FEW_PHOTOS",
            "Only 7 of the uploaded files are readable photos; 8 are needed",
        ),
    ],
)
def test_uploads_that_cannot_become_a_scene(cloud, files, code, words):
    add_job()
    for name, body in files.items():
        cloud.put(f"uploads/my-house/{name}", body)
    failure = refused(cloud)
    assert failure.code == code
    assert words in failure.reason
    assert f"work/{JOB}/manifest.json" not in cloud.keys("work/")


@pytest.mark.parametrize("limit", ["10", "3"])
def test_too_many_photos(cloud, monkeypatch, limit):
    cloud.set(monkeypatch, MAX_PHOTOS=limit)
    add_job()
    put_photos(cloud, 11)
    assert refused(cloud).code == "TOO_MANY_PHOTOS"


def test_file_in_a_folder_that_is_called_like_a_photo(cloud):
    """S3 keeps both keys; a stage's disk could not."""
    add_job()
    names = put_photos(cloud)
    cloud.put("uploads/my-house/IMG 0.jpg/sub/a.jpg", JPEG)
    assert run(cloud)["photos"] == 8
    assert cloud.read(f"work/{JOB}/manifest.json")[1:] == names
    (entry,) = cloud.read(f"work/{JOB}/rejected.json")
    assert entry == {"name": "IMG 0.jpg/sub/a.jpg", "reason": "its folder has the name of another photo"}


def test_photo_that_is_deleted_between_listing_and_reading(cloud, monkeypatch):
    add_job()
    put_photos(cloud, 9)
    listed = validate.list_keys

    def list_then_delete(bucket, prefix):
        objects = listed(bucket, prefix)
        boto3.client("s3").delete_object(Bucket=BUCKET, Key="uploads/my-house/IMG 3.jpg")
        return objects

    monkeypatch.setattr(validate, "list_keys", list_then_delete)
    answer = run(cloud)
    assert (answer["photos"], answer["rejected"]) == (8, 1)
    (entry,) = cloud.read(f"work/{JOB}/rejected.json")
    assert entry == {"name": "IMG 3.jpg", "reason": "the file was deleted while the upload was checked"}


def test_cost_limit(cloud):
    add_job()
    put_photos(cloud)
    cloud.put("uploads/my-house/job.json", {"max_cost_usd": 0.01})
    failure = refused(cloud)
    assert failure.code == "COST_LIMIT"
    assert "0.01 USD" in failure.reason


def test_wrong_options_still_reach_their_owner(cloud):
    add_job(options={})
    cloud.put("uploads/my-house/job.json", {"email": "a@example.com", "presset": "draft"})
    failure = refused(cloud)
    assert "'presset' is unknown, did you mean 'preset'?" in failure.reason
    assert job_row()["options"] == {"email": "a@example.com"}


def reusable(cloud: Cloud, **more) -> None:
    result = {
        "stage": "sfm",
        "job_name": "x",
        "output_uri": f"s3://{BUCKET}/work/{OTHER}/sfm/",
        "seconds": 9,
        "cost_usd": 1,
    }
    add_job()
    add_job("FAILED", pk=f"JOB#{OTHER}", job_id=OTHER, photos=31, results={"sfm": result}, **more)
    cloud.put(f"work/{OTHER}/sfm/scene.json", b"{}")


def test_start_at_train_takes_the_results_of_the_other_job(cloud):
    reusable(cloud)
    cloud.put("uploads/my-house/job.json", {"start_at": "train", "reuse_job": OTHER})
    answer = run(cloud)
    assert (answer["start_at"], answer["photos"]) == ("train", 31)
    taken = job_row()["results"]["sfm"]
    assert taken["output_uri"] == f"s3://{BUCKET}/work/{OTHER}/sfm/"
    assert (taken["cost_usd"], taken["reused_from"]) == (0, OTHER)


@pytest.mark.parametrize("case", ["unknown", "other scene", "no train result", "expired"])
def test_reuse_of_what_is_not_there(cloud, case):
    start_at = "compress" if case == "no train result" else "train"
    if case != "unknown":
        reusable(cloud, **({"scene": "castle"} if case == "other scene" else {}))
    else:
        add_job()
    if case == "expired":
        boto3.client("s3").delete_object(Bucket=BUCKET, Key=f"work/{OTHER}/sfm/scene.json")
    cloud.put("uploads/my-house/job.json", {"start_at": start_at, "reuse_job": OTHER})
    failure = refused(cloud)
    assert failure.code == "REUSE_JOB"
    assert OTHER in failure.reason
