"""The training loop, for any engine."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from job import Job, StageError, StopRequested
from splat.model import Gaussians
from train import checkpoint
from train.dataset import Dataset, scene_extent
from train.engine import Engine
from train.evaluate import mean_psnr, spread
from train.presets import Preset
from train.relocation import refine
from train.stopping import Clock, Plateau

CHECKPOINT_EVERY_S = 20.0
LOSS_CHECK_EVERY = 100  # steps
EVALUATIONS = 10  # points of the curve
STOP_EVALUATIONS = 20  # the same, when the stop rule is in use
CURVE_PHOTOS = 8
COOL_DOWN = 0.1  # of the time so far, after a plateau
PLATEAU_LOSS_DB = 0.02  # a final model that is worse than the best by more than this is not used


@dataclass
class Result:
    gaussians: Gaussians
    iterations: int
    seconds: float
    stop_reason: str  # time_budget, max_iterations, plateau
    curve: list[dict[str, float]]


@dataclass
class Position:
    """Where the training is; all of it is kept in the checkpoint."""

    iteration: int = 0
    elapsed_s: float = 0.0
    order: list[int] = field(default_factory=list)
    evaluated: int = 0
    cooling_from: list[float] = field(default_factory=list)  # [progress, elapsed_s] at the plateau
    curve: list[dict[str, float]] = field(default_factory=list)
    plateau: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Runs ``engine`` over ``data`` as ``preset`` says; saves to ``job.checkpoints`` and goes on from there."""

    def __init__(self, job: Job, engine: Engine, preset: Preset, data: Dataset, threads: int, seed: int) -> None:
        self.job, self.engine, self.preset, self.data = job, engine, preset, data
        self.extent = scene_extent([photo.view for photo in data.train])
        self.rng = np.random.default_rng(seed)
        self.at = Position()
        self.plateau = Plateau()
        self.threads = threads
        self.evaluations = STOP_EVALUATIONS if data.validation else EVALUATIONS
        self._unchecked = 0  # steps since the last look at the loss
        self._best: tuple[float, Gaussians] | None = None

    def start(self, gaussians: Gaussians) -> None:
        self.engine.load(gaussians)

    def resume(self) -> bool:
        """Go on from the checkpoint if there is one of the same training; False when there is none."""
        saved = checkpoint.load(self.job.checkpoints)
        if saved is None or saved[1]["fingerprint"] != self.fingerprint():
            return False
        engine_state, trainer_state = saved
        self.engine.restore(engine_state)
        self.at = Position(**trainer_state["position"])
        self.plateau = Plateau(**trainer_state["plateau"])
        self.rng.bit_generator.state = trainer_state["random"]
        return True

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be of use."""
        first = self.data.train[0].view
        return {
            "engine": self.engine.name,
            "photos": [photo.view.name for photo in self.data.train],
            "size": [first.width, first.height],
            "max_gaussians": self.preset.max_gaussians,
            "sh_degree": self.preset.sh_degree,
        }

    def save(self) -> None:
        self.at.elapsed_s = self.clock.elapsed_s()
        state = {
            "fingerprint": self.fingerprint(),
            "position": asdict(self.at),
            "plateau": asdict(self.plateau),
            "random": self.rng.bit_generator.state,
        }
        checkpoint.save(self.job.checkpoints, self.engine.state(), state)
        self._saved_at = time.monotonic()

    def run(self) -> Result:
        """Train to the end. Raises StopRequested after SIGTERM (with a checkpoint) and StageError TRAINING_DIVERGED."""
        self.clock = Clock(self.at.elapsed_s, self.threads)
        self._saved_at = time.monotonic()
        while True:
            if self.job.stop_requested:
                self.save()
                raise StopRequested
            elapsed_s = self.clock.elapsed_s()
            progress, reason = self._progress(elapsed_s)
            if progress >= 1.0:
                return self._finish(reason)
            self._step(progress)
            self._report(progress, elapsed_s)
            if self.at.iteration % LOSS_CHECK_EVERY == 0:
                self._check_loss()
            if progress * self.evaluations >= self.at.evaluated + 1:
                self.at.evaluated = int(progress * self.evaluations)
                self._evaluate(progress)
            if time.monotonic() - self._saved_at >= CHECKPOINT_EVERY_S:
                self.save()

    def _progress(self, elapsed_s: float) -> tuple[float, str]:
        """(0..1, why it would end)."""
        by_time, by_steps = elapsed_s / self.preset.budget_s, self.at.iteration / self.preset.max_iterations
        progress, reason = (by_time, "time_budget") if by_time > by_steps else (by_steps, "max_iterations")
        if self.at.cooling_from and progress < 1.0:
            start, since_s = self.at.cooling_from
            progress = start + (1 - start) * (elapsed_s - since_s) / (COOL_DOWN * max(since_s, 1.0))
            reason = "plateau"
        return progress, reason

    def _step(self, progress: float) -> None:
        schedule, at = self.preset.schedule, self.at
        if not at.order:
            at.order = self.rng.permutation(len(self.data.train)).tolist()
        sh_degree = schedule.sh_degree(progress, self.preset.sh_degree)
        self.engine.step(at.order.pop(), schedule.level(progress), sh_degree, schedule.rates(progress, self.extent))
        at.iteration += 1
        self._unchecked += 1
        if at.iteration % schedule.refine_every == 0 and progress < schedule.refine_until:
            refine(self.engine, self.rng, schedule.growth, grow=True)

    def _report(self, progress: float, elapsed_s: float) -> None:
        level = self.preset.schedule.level(progress)
        view = self.data.train[0].view
        message = f"Training at {view.width // level}x{view.height // level} pixels"
        eta_s = round(elapsed_s / progress * (1 - progress), 1) if progress > 0.02 else None
        if self._by_time(elapsed_s) and not self.at.cooling_from:
            self.job.progress(int(elapsed_s), int(self.preset.budget_s), "s", message, eta_s=eta_s)
        else:
            left = self.at.iteration * (1 - progress) / progress if progress > 0 else self.preset.max_iterations
            self.job.progress(self.at.iteration, self.at.iteration + round(left), "steps", message, eta_s=eta_s)

    def _by_time(self, elapsed_s: float) -> bool:
        """Whether the time budget will end the training rather than the number of steps."""
        return elapsed_s / self.preset.budget_s > self.at.iteration / self.preset.max_iterations

    def _check_loss(self) -> None:
        loss = self.engine.mean_loss() if self._unchecked else 0.0
        self._unchecked = 0
        if not np.isfinite(loss) or not self.engine.is_finite():
            raise StageError(
                "TRAINING_DIVERGED",
                f"The model is no longer made of numbers at iteration {self.at.iteration} (loss {loss}). "
                "Start the scene again; if it happens twice, check the photos for extreme exposure differences.",
            )

    def _evaluate(self, progress: float) -> None:
        """A point of the curve (test photos) and the stop rule (validation photos)."""
        self.clock.pause()
        degree = self.preset.schedule.sh_degree(progress, self.preset.sh_degree)
        point = {
            "iteration": self.at.iteration,
            "seconds": round(self.clock.elapsed_s(), 2),
            "psnr": mean_psnr(self.engine, spread(self.data.test, CURVE_PHOTOS), degree),
            "gaussians": self.engine.count(),
        }
        self.at.curve.append(point)
        self.job.log("evaluated", **point, level=self.preset.schedule.level(progress))
        if self.data.validation and self.preset.schedule.level(progress) == 1 and not self.at.cooling_from:
            value = mean_psnr(self.engine, self.data.validation, degree)
            if self._best is None or value > self._best[0]:
                self._best = (value, self.engine.gaussians())
            if self.plateau.update(value) and self.preset.stop_on_plateau:
                self.at.cooling_from = [progress, self.clock.elapsed_s()]
                self.job.log("plateau", validation_psnr=value, best=self.plateau.best_db)
        self.clock.go_on()

    def _finish(self, reason: str) -> Result:
        self._check_loss()
        seconds = self.clock.elapsed_s()
        final = self.engine.gaussians()
        if self.data.validation and self._best is not None:
            value = mean_psnr(self.engine, self.data.validation, self.preset.sh_degree)
            if value < self._best[0] - PLATEAU_LOSS_DB:
                self.job.log("using the best model", final_psnr=value, best_psnr=self._best[0])
                final = self._best[1]
                self.engine.load(final)
        return Result(final, self.at.iteration, seconds, reason, self.at.curve)
