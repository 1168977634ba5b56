"""Uploads in virtual time: any number, order and repetition of events is one job; what comes later is the next."""

import json
import random

import pytest

from tests.state_machine.simulator import invariants
from tests.state_machine.simulator.code import deployed
from tests.state_machine.simulator.plan import Act, Delivery, Fault, Plan
from tests.state_machine.simulator.world import JPEG, SCENE, World
from tests.unit import zips


def jobs_of(world):
    return {pk[4:]: row for pk, row in world.table.rows.items() if pk.startswith("JOB#")}


@pytest.mark.parametrize("seed", range(3))
def test_two_thousand_photos_are_one_job(seed):
    """Events doubled, up to a quiet period apart, and some an hour late."""
    rng = random.Random(seed)
    deliveries = {}
    for number in range(2001):
        delays = [rng.uniform(0, 20)]
        if rng.random() < 0.3:
            delays.append(rng.uniform(0, 30))
        if rng.random() < 0.02:
            delays.append(3600.0)
        deliveries["object", number] = Delivery(tuple(delays))
    plan = Plan(photos=2000, photo_gap_s=0.02, options=b'{"email": "ada@example.org"}', deliveries=deliveries)
    world = World(deployed(), plan).run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    assert job["photos"] == 2000
    assert job["status"] == "SUCCEEDED"
    assert len(world.started()) == 1


@pytest.mark.parametrize("state", ["SfM", "Train", "Compress", "Notify"])
def test_second_upload_while_it_runs_is_a_second_job_over_all_photos(state):
    world = World(deployed(), Plan(acts=(Act(state, "upload", 5),))).run()
    assert invariants.check(world) == []
    assert [row["photos"] for row in jobs_of(world).values()] == [9, 10]
    assert {row["status"] for row in jobs_of(world).values()} == {"SUCCEEDED"}


@pytest.mark.parametrize("options", [b'{"ready": true}', None])
@pytest.mark.parametrize("delay_s", [0.05, 0.3, 0.55, 0.8, 1.2])
def test_photo_in_the_second_in_which_the_upload_is_closed_is_in_a_job(options, delay_s):
    """Validate has listed the folder already; the event's time is that of the closing, in whole seconds."""
    world = World(deployed(), Plan(options=options, acts=(Act("Validate", "upload", delay_s),))).run()
    assert invariants.check(world) == []
    assert [row["photos"] for row in jobs_of(world).values()] == [9, 10]
    assert {row["status"] for row in jobs_of(world).values()} == {"SUCCEEDED"}


def test_photos_of_the_second_of_ready_options_are_in_their_job():
    """However late their events come: the upload is not closed before that second is over."""
    late = {("object", number): Delivery((30.0,)) for number in range(3)}
    world = World(deployed(), Plan(photos=9, photo_gap_s=0.05, deliveries=late)).run()
    assert invariants.check(world) == []
    assert [row["photos"] for row in jobs_of(world).values()] == [9]


def test_second_upload_after_the_end_is_a_second_job():
    world = World(deployed(), Plan(acts=(Act("Succeeded", "upload", 4000),))).run()
    assert invariants.check(world) == []
    assert [row["photos"] for row in jobs_of(world).values()] == [9, 10]


PLAIN_OPTIONS = b'{"email": "ada@example.org", "title": "My house"}'


@pytest.mark.parametrize(
    ("options", "first", "title"),
    [
        (PLAIN_OPTIONS, True, "My house"),
        (PLAIN_OPTIONS, False, "My house"),
        (b'{"ready": true, "title": "My house"}', False, "My house"),
        (b"{}", True, None),
        (None, False, None),
    ],
)
def test_options_first_last_or_missing(options, first, title):
    world = World(deployed(), Plan(options=options, options_first=first))
    world.run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    assert (job["status"], job["photos"]) == ("SUCCEEDED", 9)
    assert (job["options"].get("title"), job["options"]["preset"]) == (title, "standard")


def test_ready_options_before_the_photos_close_the_upload_too_early():
    """As documented: what comes after them is a new upload, which waits for the quiet period."""
    options = b'{"ready": true, "email": "ada@example.org"}'
    world = World(deployed(), Plan(options=options, options_first=True, photo_gap_s=5, possible=("NO_PHOTOS",)))
    world.run()
    assert invariants.check(world) == []
    first, second = jobs_of(world).values()
    assert (first["status"], first["failure"]["code"]) == ("FAILED", "NO_PHOTOS")
    assert (second["status"], second["photos"]) == ("SUCCEEDED", 9)


@pytest.mark.parametrize("name", ["sub/job.json", "Job.json", "job.json.txt", "job.json ", ".job.json"])
def test_only_the_options_of_the_scene_itself_count(name):
    world = World(deployed(), Plan(options=None))
    world.s3.put(f"uploads/{SCENE}/{name}", b'{"preset": "draft", "ready": true}')
    world.s3.put(f"uploads/{SCENE}-2/job.json", b"not JSON at all, of another scene")
    world.run()
    jobs = {row["scene"]: row for row in jobs_of(world).values()}
    assert jobs[SCENE]["status"] == "SUCCEEDED"
    assert jobs[SCENE]["options"]["preset"] == "standard"
    assert jobs[f"{SCENE}-2"]["failure"]["code"] == "BAD_OPTION"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (b'{"emial": "ada@example.org"}', "'emial' is unknown, did you mean 'email'?"),
        (b'{"max_gaussians": "many", "email": "ada@example.org"}', "'max_gaussians'"),
        (b"[1]", "must hold one JSON object"),
        (b"\xff\xfe", "not valid JSON"),
        (b"{" * 70_000, "70,000 bytes"),
        (b"[" * 60_000, "too many brackets"),
        (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, "too many brackets"),
        (b'{"reuse_job": "../../etc"}', "'reuse_job'"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_wrong_options_are_one_message_that_names_the_key(options, words, first):
    world = World(deployed(), Plan(options=options, options_first=first, possible=("BAD_OPTION",))).run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    assert job["failure"]["code"] == "BAD_OPTION"
    assert words in job["failure"]["reason"]
    assert world.sagemaker.created == []


HOSTILE = [
    "../../other/a.jpg", "./a.jpg", "a//b.jpg", "sp ace + 100% \u00e9\u4e2d.jpg", "%2e%2e/x.jpg", "n" * 255 + ".jpg",
    "new\nline.jpg", "__MACOSX/._a.jpg", ".hidden.jpg", "job.json/a.jpg", "deep/" * 40 + "a.jpg",
]  # fmt: skip


def test_hostile_names_neither_escape_nor_stop_the_others():
    world = World(deployed(), Plan())
    for name in HOSTILE:
        world.s3.objects[f"uploads/{SCENE}/{name}"] = JPEG
    world.s3.objects[f"uploads/{SCENE}-2/neighbour.jpg"] = JPEG  # a prefix of the name is not the name
    world.run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    manifest = world.s3.objects[f"work/{job['job_id']}/manifest.json"].decode()
    assert "neighbour" not in manifest
    assert ".." not in manifest.replace("%2e%2e", "")
    assert "sp ace + 100% \u00e9\u4e2d.jpg" in manifest
    assert "%2e%2e/x.jpg" in manifest
    assert "\\n" not in manifest
    rejected = json.loads(world.s3.objects[f"work/{job['job_id']}/rejected.json"])
    reasons = {entry["name"]: entry["reason"] for entry in rejected}
    assert reasons["../../other/a.jpg"] == reasons["./a.jpg"] == "the name has an empty part, '.' or '..'"
    assert not [name for name in reasons if "hidden" in name or "MACOSX" in name]
    assert job["photos"] == 9 + 4  # spaces and unicode, the percent signs, job.json/, and the deep folder


def test_object_that_is_deleted_between_listing_and_reading():
    world = World(deployed(), Plan(photos=10))
    listed = world.s3.paginate

    def list_then_delete(**arguments):
        pages = list(listed(**arguments))
        if arguments["Prefix"].startswith("uploads/"):
            world.s3.objects.pop(f"uploads/{SCENE}/IMG 003.jpg", None)
        return iter(pages)

    world.s3.paginate = list_then_delete
    world.run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    assert (job["status"], job["photos"], job["rejected"]) == ("SUCCEEDED", 9, 1)


def test_videos_are_refused_in_plain_words():
    world = World(deployed(), Plan(photos=0, possible=("UNSUPPORTED_INPUT",)))
    world.s3.put(f"uploads/{SCENE}/flight.mp4", b"ftyp")
    world.run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    assert job["failure"]["code"] == "UNSUPPORTED_INPUT"


ZIPPED = {f"{number}.jpg": JPEG + bytes([number]) for number in range(12)}


def unpacked(world):
    """The photos of archives that the manifest of the only job names."""
    (job_id,) = jobs_of(world)
    _, *names = json.loads(world.s3.objects[f"work/{job_id}/manifest.json"])
    folder = f"work/{job_id}/photos/"
    return {name: world.s3.objects[folder + name] for name in names if ".zip/" in name}


def test_one_archive_is_one_job():
    world = World(deployed(), Plan(photos=0))
    world.s3.put(f"uploads/{SCENE}/photos.zip", zips.make(ZIPPED))
    world.run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    assert (job["status"], job["photos"], job["rejected"]) == ("SUCCEEDED", 12, 0)
    assert unpacked(world) == {f"photos.zip/{name}": body for name, body in ZIPPED.items()}


def test_two_thousand_photos_in_one_archive_are_one_job():
    world = World(deployed(), Plan(photos=0))
    world.s3.put(f"uploads/{SCENE}/photos.zip", zips.make({f"{number}.jpg": JPEG for number in range(2000)}))
    world.run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    assert (job["status"], job["photos"]) == ("SUCCEEDED", 2000)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(1, 45, 3))
def test_unpacking_goes_on_after_being_cut_off_anywhere(at, after):
    """At any call to AWS of the first try; the second one writes nothing twice that came whole from the first."""
    world = World(deployed(), Plan(faults=(Fault("Validate", "crash", at=at, after=after),)))
    world.s3.put(f"uploads/{SCENE}/photos.zip", zips.make(ZIPPED))
    world.run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    assert (job["status"], job["photos"]) == ("SUCCEEDED", 9 + 12)
    assert unpacked(world) == {f"photos.zip/{name}": body for name, body in ZIPPED.items()}


@pytest.mark.parametrize("state", ["SfM", "Succeeded"])
def test_second_archive_while_it_runs_and_after_its_end_is_a_second_job(state):
    world = World(deployed(), Plan(acts=(Act(state, "upload", 4000 if state == "Succeeded" else 5),)))
    world.s3.put(f"uploads/{SCENE}/photos.zip", zips.make(ZIPPED))
    world.run()
    assert invariants.check(world) == []
    assert [row["photos"] for row in jobs_of(world).values()] == [9 + 12, 10 + 12]


@pytest.mark.parametrize("change", ["deleted", "replaced"])
@pytest.mark.parametrize("read", [1, 2, 4])
def test_archive_that_changes_between_listing_and_reading(change, read):
    """The next try of Validate goes by what is there then."""
    world = World(deployed(), Plan(photos=9))
    key = f"uploads/{SCENE}/photos.zip"
    world.s3.put(key, zips.make(ZIPPED))
    get, reads = world.s3.get_object, []

    def strike_then_get(**arguments):
        reads.extend([1] if arguments["Key"] == key else [])
        if len(reads) == read and change == "deleted":
            world.s3.objects.pop(key, None)
        elif len(reads) == read:
            reads.append(1)  # once
            world.s3.objects[key] = zips.make(dict.fromkeys(ZIPPED, JPEG + b"new"))
            world.s3.modified[key] = world.now()
        return get(**arguments)

    world.s3.get_object = strike_then_get
    world.run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    assert job["status"] == "SUCCEEDED"
    assert job["photos"] == (9 if change == "deleted" else 9 + 12)
    if change == "replaced":
        assert set(unpacked(world).values()) == {JPEG + b"new"}


@pytest.mark.parametrize(
    ("members", "code", "words"),
    [
        ({**ZIPPED, "../../other/a.jpg": JPEG}, "ARCHIVE_UNSAFE", "'../../other/a.jpg'"),
        ({**ZIPPED, "more.zip": zips.make(ZIPPED)}, "ARCHIVE_NESTED", "'more.zip'"),
        ({"notes.txt": b"x"}, "TOO_FEW_PHOTOS", "'photos.zip/notes.txt'"),
    ],
)
def test_hostile_archive_is_one_message_that_names_it(members, code, words):
    world = World(deployed(), Plan(photos=2, possible=(code,)))
    world.s3.put(f"uploads/{SCENE}/photos.zip", zips.make(members))
    world.run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    assert (job["status"], job["failure"]["code"]) == ("FAILED", code)
    assert words in job["failure"]["reason"]
    assert "photos.zip" in job["failure"]["reason"]
    assert world.sagemaker.created == []
    assert not [key for key in world.s3.objects if "/photos/" in key]
