"""Each image, run as SageMaker runs it with what start_job sends: all of /opt/ml mounted over, root's with mode 0755,
no network, a read-only root file system, no capabilities, a memory limit.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compress.stage
from base.stages import STAGE_NAMES, StageName
from spaceport.jobs.docker import Limits
from splat.model import read_ply, write_ply
from tests.images.figures import Figures
from tests.images.player import OPTIONS, PROMISED, STOP_LIMIT_S, Player, Ran, report_missing


def provide(
    player: Player, stage: StageName, photos: list[Path], good_run: Callable[[StageName], tuple[Ran, Path]]
) -> None:
    """Good input for a stage."""
    player.put_photos(photos)
    for name in STAGE_NAMES[: STAGE_NAMES.index(stage)]:
        player.put_result(name, good_run(name)[1])


LONG_TRAINING = {"preset": "draft", "max_gaussians": 3000, "max_image_long_side": 320}


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_good_input(stage: StageName, good_run: Callable[[StageName], tuple[Ran, Path]], figures: Figures) -> None:
    ran, result = good_run(stage)
    figures.add(stage, "good input", ran.exit_status, f"{len(ran.stored)} files", ran.seconds)
    assert ran.exit_status == 0, ran.log[-3000:]
    assert ran.verdict.status == "succeeded"
    assert ran.message == ""
    assert set(PROMISED[stage]) <= set(ran.stored)
    assert sorted(ran.outputs) == sorted(ran.stored), "everything written is stored, and nothing else"
    assert all((result / name).stat().st_size > 0 for name in PROMISED[stage])
    last = ran.progress[-1]
    assert (last["stage"], last["step"]) == (stage, last["total"])


def spoil_photos(player: Player, tmp_path: Path) -> None:
    files = [tmp_path / f"note-{number}.jpg" for number in range(9)]
    for file in files:
        file.write_text("not a photo")
    player.put_photos(files)


def spoil(player: Player, stage: StageName, name: str, tmp_path: Path) -> None:
    """Cut a file of an earlier stage's result in half."""
    prefix = f"{stage}/"
    keys = [key for key in player.storage.list("photos-and-results", "work/") if prefix in key and key.endswith(name)]
    assert len(keys) == 1, keys
    whole = player.storage.read("photos-and-results", keys[0])
    file = tmp_path / "half"
    file.write_bytes(whole[: len(whole) // 2])
    player.storage.put_file("photos-and-results", keys[0], file)


BAD_INPUT = [
    ("sfm", "no photo among the files", spoil_photos),
    ("train", "half of SfM's images.bin", lambda player, tmp: spoil(player, "sfm", "sparse/images.bin", tmp)),
    ("compress", "half of scene.ply", lambda player, tmp: spoil(player, "train", "scene.ply", tmp)),
]


@pytest.mark.parametrize(("stage", "case", "damage"), BAD_INPUT, ids=[case[0] for case in BAD_INPUT])
def test_bad_input(
    stage: StageName,
    case: str,
    damage: Callable[[Player, Path], None],
    player: Player,
    photos: list[Path],
    good_run: Callable[[StageName], tuple[Ran, Path]],
    figures: Figures,
    tmp_path: Path,
) -> None:
    provide(player, stage, photos, good_run)
    damage(player, tmp_path)
    ran = player.run(stage, OPTIONS[stage])
    figures.add(stage, case, ran.exit_status, ran.message, ran.seconds)
    failed_with_reason(ran)
    assert not ran.message.startswith("INTERNAL_ERROR"), "the user can act on this; it is no fault of the program"


@pytest.mark.parametrize("stage", STAGE_NAMES)
@pytest.mark.parametrize("entrypoint", ["request", "image"])
def test_bad_option(
    stage: StageName, entrypoint: str, player: Player, photos: list[Path], good_run: Any, figures: Figures
) -> None:
    """By the entry point of the request, and by the image's own, as ``docker run IMAGE train``."""
    provide(player, stage, photos, good_run)

    def change(request: dict[str, Any]) -> None:
        if stage == "train":
            request["HyperParameters"]["preset"] = "enormous"
        else:
            name = "PRESET" if stage == "sfm" else "PRICE_USD_PER_HOUR"
            request["Environment"][f"SPACEPORT_OPTION_{name}"] = "enormous"

    ran = player.run(stage, OPTIONS[stage], change=change, entrypoint_of_image=entrypoint == "image")
    figures.add(stage, f"wrong option, entry point of the {entrypoint}", ran.exit_status, ran.message, ran.seconds)
    failed_with_reason(ran, "BAD_OPTION")
    assert "enormous" in ran.message


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_missing_channel(stage: StageName, player: Player, photos: list[Path], good_run: Any, figures: Figures) -> None:
    provide(player, stage, photos, good_run)

    def change(request: dict[str, Any]) -> None:
        request.pop("InputDataConfig", None)
        request.pop("ProcessingInputs", None)

    ran = player.run(stage, OPTIONS[stage], change=change)
    figures.add(stage, "input channel missing", ran.exit_status, ran.message, ran.seconds)
    failed_with_reason(ran, "INPUT_MISSING")


def failed_with_reason(ran: Ran, code: str | None = None) -> None:
    """Exit code 1, a reason that check_status understands, and no result."""
    assert ran.exit_status == 1, ran.log[-3000:]
    found, _, reason = ran.message.partition(": ")
    assert found == (code or found) and found.replace("_", "").isupper(), ran.message
    assert len(ran.message) <= 1024 and len(reason) > 20
    assert (ran.verdict.status, ran.verdict.code) == ("failed", found)
    assert ran.verdict.reason.startswith(reason[:100])
    assert ran.outputs == [] and ran.stored == []


# Long enough that each phase is seen.
UNHURRIED: dict[StageName, dict[str, Any]] = {
    "sfm": {"preset": "draft", "max_image_long_side": 1600},
    "train": LONG_TRAINING,
    "compress": OPTIONS["compress"],
}
MEASURING = {"preset": "draft", "max_gaussians": 3000, "max_iterations": 60, "max_image_long_side": 1200}
LARGE_SCENE = 100_000  # Gaussians
# How the messages of progress.json begin. Writing the report is missing: it takes milliseconds.
PHASES: dict[StageName, tuple[str, ...]] = {
    "sfm": ("Checking photos", "Finding features", "Comparing photos", "Placing cameras", "Undistorting"),
    "train": ("Loading photos", "Training", "Measuring quality"),
    "compress": (*compress.stage.STEPS[:-2], "Comparing with photos"),
}
EACH_PHASE = [(stage, phase) for stage in STAGE_NAMES for phase in PHASES[stage]]


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_every_phase_is_stopped_once(stage: StageName, good_run: Callable[[StageName], tuple[Ran, Path]]) -> None:
    """No phase that a good run tells of is missing from test_stop, but those that take no time."""
    told = {news["message"] for news in good_run(stage)[0].progress if "message" in news}
    stopped = PHASES[stage]
    assert told, "a good run tells of its phases"
    assert {message for message in told if not message.startswith(stopped)} <= {*compress.stage.STEPS[-2:], "Done"}


@pytest.fixture(scope="session")
def large_scene(good_run: Callable[[StageName], tuple[Ran, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the good training with its Gaussians repeated, so that no step of compression is over at once.

    Without view-dependent colour: learning palettes until the scene looks right would take minutes.
    """
    folder = shutil.copytree(good_run("train")[1], tmp_path_factory.mktemp("large") / "train")
    few = read_ply(folder / "scene.ply")
    rng = np.random.default_rng(0)
    many = few.select(rng.integers(0, len(few), LARGE_SCENE))
    many = replace(many, sh=np.ascontiguousarray(many.sh[:, :1]))
    many.means[:] += 0.01 * np.ptp(few.means, axis=0) * rng.normal(size=many.means.shape)
    write_ply(folder / "scene.ply", many)
    return folder


@pytest.mark.parametrize(("stage", "phase"), EACH_PHASE, ids=[f"{stage}-{phase}" for stage, phase in EACH_PHASE])
def test_stop(
    stage: StageName,
    phase: str,
    player: Player,
    many_photos: list[Path],
    good_run: Any,
    large_scene: Path,
    figures: Figures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM in each phase: the program ends in time, says so by 143, and has written no half result."""
    monkeypatch.setattr("spaceport.jobs.files.PROGRESS_INTERVAL_S", 0.02)  # a phase must not pass between two looks
    provide(player, stage, many_photos, good_run)
    if stage == "compress":
        player.put_result("train", large_scene)
    options = MEASURING if phase == "Measuring quality" else UNHURRIED[stage]
    ran = player.run(stage, options, stop_when=lambda progress: progress.get("message", "").startswith(phase))
    assert ran.stop_seconds is not None, f"the phase {phase!r} was never seen: {ran.progress}"
    figures.add(stage, f"SIGTERM while “{phase}”", ran.exit_status, "stopped", ran.stop_seconds)
    assert ran.stop_seconds < STOP_LIMIT_S
    assert (ran.verdict.status, ran.verdict.code) == ("failed", "STAGE_STOPPED")
    assert ran.stored == [] and ran.message == ""
    assert ran.exit_status == 143, ran.log[-3000:]
    assert ran.events("stopped")
    if phase in ("Training", "Measuring quality"):
        assert "checkpoint.npz" in player.checkpoints()


def test_stop_at_once(player: Player, photos: list[Path], good_run: Any, figures: Figures) -> None:
    """SIGTERM while the program still loads."""
    provide(player, "compress", photos, good_run)
    ran = player.run("compress", OPTIONS["compress"], stop_at_event="loading")
    assert ran.stop_seconds is not None, ran.log[-3000:]
    figures.add("compress", "SIGTERM while it loads", ran.exit_status, "stopped", ran.stop_seconds)
    assert ran.exit_status == 143
    assert ran.stop_seconds < STOP_LIMIT_S


def test_training_resumes(player: Player, photos: list[Path], good_run: Any, figures: Figures) -> None:
    """A stopped training leaves a checkpoint; the next attempt, a new job, goes on from it."""
    provide(player, "train", photos, good_run)
    options = LONG_TRAINING | {"max_iterations": 1000}
    stopped = player.run("train", options, stop_when=lambda progress: progress["step"] >= 50)
    assert stopped.exit_status == 143, stopped.log[-3000:]
    assert [name for name in player.checkpoints() if name != "progress.json"], "no checkpoint was stored"
    ran = player.run("train", options, attempt=1)
    assert ran.exit_status == 0, ran.log[-3000:]
    (resumed,) = ran.events("resumed")
    assert resumed["iteration"] > 0
    (trained,) = ran.events("trained")
    assert trained["iterations"] > resumed["iteration"]
    figures.add("train", "resume", ran.exit_status, f"went on at iteration {resumed['iteration']}", ran.seconds)


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_out_of_memory(stage: StageName, player: Player, photos: list[Path], good_run: Any, figures: Figures) -> None:
    provide(player, stage, photos, good_run)
    ran = player.run(stage, OPTIONS[stage], limits=Limits(memory_bytes=48 << 20))
    text = ran.message or f"(none: killed) → {ran.verdict.code}: {ran.verdict.reason}"
    figures.add(stage, "memory limit of 48 MiB", ran.exit_status, text, ran.seconds)
    assert ran.exit_status == 137 or ran.message.startswith("OUT_OF_MEMORY"), ran.log[-3000:]
    assert (ran.verdict.status, ran.verdict.code) == ("failed", "OUT_OF_MEMORY")
    assert ran.stored == []


# What the volume has beyond the stage's input: enough to begin with, too little for the result.
ROOM_BYTES: dict[str, int] = {"sfm": 700_000, "train": 60_000, "compress": 1_600_000}


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of the given size, for the job's tree."""
    mounted = []

    def make(size_bytes: int) -> Path:
        folder = tmp_path / "volume"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0755", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            report_missing(f"only root can mount a small volume: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_disk_full(
    stage: StageName,
    player: Player,
    photos: list[Path],
    good_run: Any,
    figures: Figures,
    small_volume: Callable[[int], Path],
) -> None:
    provide(player, stage, photos, good_run)
    inputs = list(photos) if stage == "sfm" else []
    for name in {"sfm": (), "train": ("sfm",), "compress": ("sfm", "train")}[stage]:
        inputs += [path for path in good_run(name)[1].rglob("*") if path.is_file()]
    pages = sum(-(-path.stat().st_size // 4096) for path in inputs)
    ran = player.run(stage, OPTIONS[stage], jobs_dir=small_volume(pages * 4096 + ROOM_BYTES[stage]))
    figures.add(stage, "disk full", ran.exit_status, ran.message, ran.seconds)
    assert ran.exit_status == 1, ran.log[-3000:]
    assert ran.message.startswith("DISK_FULL: ")
    assert (ran.verdict.status, ran.verdict.code) == ("failed", "DISK_FULL")
    assert ran.stored == []
