"""What is planned for a device's memory, and that a training with too little room goes on with less."""

import json

import numpy as np
import pytest

from job import Job, JobKind, StageError
from tests.containers.training_runs import prepare, write_scene
from train import checkpoint, memory, stage, trainer
from train.checkpoint import Checkpoint, Position
from train.cpu.engine import CpuEngine
from train.gpu import device
from train.memory import FreeMemory, MemoryPlan, OutOfDeviceMemory

GIB = 1 << 30
T4, L4, H100 = (
    FreeMemory(int(0.96 * size) * GIB, size * GIB, host * GIB) for size, host in ((15, 14), (22, 14), (80, 200))
)
STANDARD = MemoryPlan(300_000, 1600)
PAIR = 8 + 4 + 12 + 2  # of a tile and a Gaussian: key, id, the same in the sort, a bit for each of 16 blocks


def test_the_formula_counts_the_arrays():
    """Against bytes that are counted by hand for one Gaussian with SH of degree 3, and one photo of 1000x500."""
    parameters = 3 + 3 + 4 + 1 + 48
    buffers = 3 + 3 + 3 + 1 + 2 + 12 + 12 + 1  # directions, scales, conics, opacity, means2d, records, sums, depth
    gsplat = (2 + 2 + 1 + 3) + (3 + 4 + 3) + 3  # projection, its gradients, tile counts (one int, one long)
    assert memory.model_bytes(1, 3) == 4 * (3 * parameters + buffers + gsplat) + 4 * 48 + 6 * PAIR
    assert memory.picture_bytes([(1000, 500), (10, 10)], 4000) == 500_000 * 3 * 4 * 5
    assert memory.photo_bytes([(1000, 500)], 1000) == 3 * (500_000 + 125_000 + 31_250)
    assert memory.photo_bytes([(1000, 500)] * 2, 500) == 2 * 3 * (125_000 + 31_250) + 2 * 3 * 125_000 // 16


def test_several_gpus_share_the_model_but_not_what_they_send():
    """A shard needs what a model of its size does, but for tile lists; what is sent and drawn is of all Gaussians."""
    of_views = 12 + 12 + (2 + 2 + 1 + 3) + (2 + 1)  # records, sums; radii, means2d, depth, conics; two of them for all
    sent, got = (10 + 2 + 2 + 1) + 13, 13
    drawn = 12 + 12 + (2 + 2 + 1) + 9 + 9  # records, sums, projection, sums that go back and that come
    whole = 4 * (of_views + sent + got + drawn) + 2 * 8 + 6 * PAIR
    assert memory.model_bytes(4000, 3, 4) == memory.model_bytes(1000, 3) - 1000 * 6 * PAIR + 4000 * whole
    assert memory.model_bytes(4001, 3, 4) > memory.model_bytes(4000, 3, 4)
    sizes = [(4000, 3000)] * 300
    wanted = MemoryPlan(5_000_000, 1600)
    assert memory.fitting(wanted, sizes, 3, T4, 4) == wanted
    assert memory.needed_bytes(wanted, sizes, 3, 4) < memory.needed_bytes(wanted, sizes, 3)
    assert memory.fitting(wanted, sizes, 3, FreeMemory(5 * GIB, 6 * GIB, 14 * GIB), 4).max_gaussians < 5_000_000
    # 2.3 GB of photos on a GPU that has 1.5 GiB for them; each of four processes has them twice, and the trainer once.
    for host, pinned in ((40, True), (30, False)):
        assert memory.fitting(STANDARD, sizes, 2, FreeMemory(3 * GIB, 4 * GIB, host * GIB), 4).pinned_photos == pinned


@pytest.mark.parametrize("room", [T4, L4, H100], ids=["T4", "L4", "H100"])
def test_what_fits_is_taken_as_wanted(room):
    sizes = [(4000, 3000)] * 300
    assert memory.fitting(STANDARD, sizes, 2, room) == STANDARD
    assert memory.fitting(MemoryPlan(1_000_000, 1600), sizes, 3, room) == MemoryPlan(1_000_000, 1600)


def test_photos_go_to_the_host_first_and_then_it_is_halved():
    many = [(8000, 6000)] * 250
    assert memory.fitting(MemoryPlan(1_000_000, 4000), many, 3, H100) == MemoryPlan(1_000_000, 4000)
    assert memory.fitting(MemoryPlan(1_000_000, 2500), many, 3, FreeMemory(4 * GIB, 5 * GIB, 64 * GIB)).pinned_photos
    # 27 GB of photos, and the host is no larger: half the pixels, twice.
    assert memory.fitting(MemoryPlan(1_000_000, 6000), many, 3, T4) == MemoryPlan(1_000_000, 2999)
    large = memory.fitting(MemoryPlan(5_000_000, 1600), many, 3, FreeMemory(4 * GIB, 5 * GIB, 64 * GIB))
    assert large.max_gaussians in (1_250_000, 2_500_000) and large.pinned_photos


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_fits_and_is_never_more_than_wanted(seed):
    rng = np.random.default_rng(seed)
    sizes = [(int(w), int(h)) for w, h in rng.integers(300, 9000, (rng.integers(4, 800), 2))]
    wanted = MemoryPlan(int(rng.integers(10_000, 5_000_000)), int(rng.integers(320, 8192)))
    total = int(rng.uniform(4, 80) * GIB)
    room = FreeMemory(int(0.9 * total), total, int(rng.uniform(8, 128) * GIB))
    plan = memory.fitting(wanted, sizes, 3, room)
    assert memory.needed_bytes(plan, sizes, 3) <= 0.85 * total
    assert plan.max_gaussians <= wanted.max_gaussians and plan.long_side <= wanted.long_side
    if memory.needed_bytes(wanted, sizes, 3) <= 0.85 * total - memory.RESERVE:
        assert plan == wanted


def test_a_device_that_is_far_too_small_is_named():
    with pytest.raises(StageError, match=r"not enough for .* Gaussians and 9 photos .* 0.3 GB are free") as caught:
        memory.fitting(STANDARD, [(4000, 3000)] * 9, 2, FreeMemory(300_000_000, GIB, GIB))
    assert caught.value.code == "OUT_OF_GPU_MEMORY"


class SmallEngine:
    """An engine with room for so many Gaussians; its only parameter counts the steps."""

    def __init__(self, plan, room):
        self.capacity, self.room = plan.max_gaussians, room
        if plan.max_gaussians > 4 * room:
            raise OutOfDeviceMemory(f"The memory of a test is not enough for {plan.max_gaussians} Gaussians")
        self.steps, self.logits = 0, np.linspace(-1, 1, 1000, dtype=np.float32)

    def step(self):
        self.steps += 1
        if self.capacity > self.room and self.steps == 7:
            raise OutOfDeviceMemory("The memory of a test is not enough for a step")

    def state(self):
        return {"steps": np.array(self.steps), "value_opacity_logits": self.logits}


def test_a_full_device_is_tried_again_with_less_from_the_checkpoint(tmp_path):
    """Too large to begin with, then full in the seventh step: the checkpoint of the fifth is gone on with."""
    wanted, sizes, started, reasons = MemoryPlan(800_000, 640), [(640, 480)] * 4, [], []

    def fingerprint(plan):
        return {"engine": "test", "photos": ["a"], "max_gaussians": plan.max_gaussians, "size": [640, 480]}

    def attempt(plan):
        engine = SmallEngine(plan, 100_000)
        if plan != wanted:
            checkpoint.carry_over(tmp_path, plan, fingerprint(plan))
        saved = checkpoint.load(tmp_path)
        if saved and saved.fingerprint == fingerprint(plan):
            engine.steps = int(saved.engine["steps"])
        started.append((plan.max_gaussians, engine.steps))
        while engine.steps < 10:
            engine.step()
            if engine.steps == 5:
                checkpoint.save(tmp_path, Checkpoint(fingerprint(plan), engine.state(), Position(), {}))
        return engine.steps

    def then(plan, reason):
        reasons.append(reason)
        return memory.smaller(plan, sizes, 2, 0, reason)

    assert memory.retried_when_full(attempt, wanted, then) == 10
    assert started == [(400_000, 0), (200_000, 5), (100_000, 5)]
    assert [reason.split("for ")[1] for reason in reasons] == ["800000 Gaussians", "a step", "a step"]
    # After an interruption the next process begins with what worked.
    assert checkpoint.carried_over(tmp_path, wanted) == MemoryPlan(100_000, 640)
    assert checkpoint.carried_over(tmp_path, MemoryPlan(50_000, 640)) == MemoryPlan(50_000, 640)
    assert checkpoint.carried_over(tmp_path / "none", wanted) == wanted


def test_it_ends_when_nothing_is_left_to_halve():
    def attempt(plan):
        raise OutOfDeviceMemory("The memory of a test is not enough for anything")

    def then(plan, reason):
        return memory.smaller(plan, [(640, 480)], 2, 0, reason)

    with pytest.raises(StageError, match=r"10000 Gaussians .* 320 pixels: The memory of a test") as caught:
        memory.retried_when_full(attempt, MemoryPlan(40_000, 320), then)
    assert caught.value.code == "OUT_OF_GPU_MEMORY"


def test_a_checkpoint_of_another_training_is_not_carried_over(tmp_path):
    before = {"engine": "test", "photos": ["a", "b"], "max_gaussians": 9, "size": [4, 4]}
    checkpoint.save(tmp_path, Checkpoint(before, {}, Position(), {}))
    checkpoint.carry_over(tmp_path, STANDARD, {**before, "photos": ["a"], "max_gaussians": 5})
    assert checkpoint.load(tmp_path).fingerprint == before


def test_the_most_opaque_are_kept_in_their_order():
    logits = np.array([0.5, -2, 3, 1, -1], np.float32)
    assert memory.most_opaque(logits, 3).tolist() == [0, 2, 3]
    assert memory.most_opaque(logits, 5).tolist() == [0, 1, 2, 3, 4]


def test_the_hosts_memory_is_known_here():
    assert 0 < memory.free_host_bytes() < 1 << 46


def test_the_stage_goes_on_with_half_the_gaussians(tmp_path, monkeypatch, capsys):
    """An engine that is full in its thirtieth step when it may have more than 10,000 Gaussians."""
    write_scene(tmp_path / "sfm")

    class FullEngine(CpuEngine):
        taken = 0

        def step(self, *arguments):
            self.taken += 1
            if self.taken == 30 and self.setup.max_gaussians > 10_000:
                raise OutOfDeviceMemory("The memory of a test is not enough for a step")
            super().step(*arguments)

    monkeypatch.setattr(stage, "open_engine", FullEngine)
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY_S", 0.0)
    root = prepare(tmp_path / "ml", tmp_path / "sfm", max_gaussians=40_000, max_iterations=100)
    stage.run(Job.open("train", JobKind.TRAINING, root))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    halved = [event["planned"]["max_gaussians"] for event in events if event["event"] == "out of memory"]
    resumed = [event["iteration"] for event in events if event["event"] == "resumed"]
    assert halved == [20_000, 10_000]
    assert len(resumed) == 2 and 0 < resumed[0] < resumed[1] < 60
    metrics = json.loads((root / "model/metrics.json").read_text())
    assert metrics["iterations"] == 100 and 600 <= metrics["gaussians"] <= 10_000


@pytest.mark.parametrize(("options", "wanted"), [({}, 3), ({"max_gpus": 2}, 2)])
def test_the_stage_trains_on_all_gpus_but_not_on_more_than_asked_for(tmp_path, monkeypatch, capsys, options, wanted):
    write_scene(tmp_path / "sfm")
    opened = []

    def open_engine(setup):
        opened.append(setup)
        return CpuEngine(setup)

    monkeypatch.setattr(device, "choose", lambda: device.Choice(True, "a test says so"))
    monkeypatch.setattr(device, "count", lambda most: min(3, most or 3))
    monkeypatch.setattr(device, "free_memory", lambda gpus: T4 if gpus == wanted else None)
    monkeypatch.setattr(stage, "open_engine", open_engine)
    root = prepare(tmp_path / "ml", tmp_path / "sfm", max_gaussians=1_000, max_iterations=10, **options)
    stage.run(Job.open("train", JobKind.TRAINING, root))
    assert [(setup.gpus, setup.pinned_photos) for setup in opened] == [(wanted, False)]
    assert f'"gpus": {wanted}' in capsys.readouterr().out
