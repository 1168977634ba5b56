"""Uploads in virtual time: any number, order and repetition of events is one job; what comes later is the next."""

import random

import pytest

from tests.state_machine.simulator import invariants
from tests.state_machine.simulator.code import deployed
from tests.state_machine.simulator.plan import Act, Delivery, Plan
from tests.state_machine.simulator.world import JPEG, SCENE, World


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


def test_second_upload_after_the_end_is_a_second_job():
    world = World(deployed(), Plan(acts=(Act("Succeeded", "upload", 4000),))).run()
    assert invariants.check(world) == []
    assert [row["photos"] for row in jobs_of(world).values()] == [9, 10]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (b'{"emial": "ada@example.org"}', "'emial' is unknown, did you mean 'email'?"),
        (b'{"max_gaussians": "many", "email": "ada@example.org"}', "'max_gaussians'"),
        (b"[1]", "must hold one JSON object"),
        (b"\xff\xfe", "not valid JSON"),
        (b"{" * 70_000, "70,000 bytes"),
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


@pytest.mark.parametrize("name", ["photos.zip", "flight.mp4"])
def test_archives_and_videos_are_refused_in_plain_words(name):
    world = World(deployed(), Plan(photos=0, possible=("UNSUPPORTED_INPUT",)))
    world.s3.put(f"uploads/{SCENE}/{name}", b"PK\3\4")
    world.run()
    assert invariants.check(world) == []
    (job,) = jobs_of(world).values()
    assert job["failure"]["code"] == "UNSUPPORTED_INPUT"
