"""The training loop, for any engine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from job import Job, StageError, StopRequested
from splat.model import Gaussians
from splat.spread import spread
from train import checkpoint
from train.checkpoint import Checkpoint, Fingerprint, Position
from train.dataset import Dataset, scene_extent, trainable
from train.engine import Engine
from train.evaluate import Score, mean_psnr, score
from train.presets import TrainingPreset
from train.relocation import refine
from train.stopping import Stopwatch

CHECKPOINT_EVERY_S, CHECKPOINT_LATEST_S = 20.0, 60.0
CHECKPOINT_SHARE = 0.05  # of the time at most, as long as the latest time allows
LOSS_CHECK_EVERY = 100  # photos
MOST_ROLLBACKS = 3
SLOWER = 0.5  # factor of the step size after a rollback
EVALUATIONS = 10  # points of the curve
STOP_EVALUATIONS = 20  # the same, when the stop rule is in use
SCORE_LEVEL = 4  # photos are shrunk by this to tell where the error is
CURVE_PHOTOS = 8
COOL_DOWN_FROM = 0.9  # progress, without a plateau
COOL_DOWN = 0.1  # of the steps so far, after a plateau
PLATEAU_LOSS_DB = 0.02  # a model that is worse than the best by more than this is not cooled down


@dataclass
class TrainingResult:
    gaussians: Gaussians
    iterations: int
    seconds: float
    saved_s: float  # by the stop rule, against the whole budget at the mean pace
    stop_reason: str  # time_budget, max_iterations, plateau
    curve: list[dict[str, float]]
    validation: list[Score]  # just before these photos joined the training
    rollbacks: int


class Trainer:
    """Runs ``engine`` over ``data`` as ``preset`` says; saves to ``job.checkpoints`` and goes on from there.

    The engine's photos must be ``trainable(data)``, compensated. Decisions (when to stop, which model is best) look at
    the validation photos alone; from the cool-down on these are trained too, and no decision is left to make.
    """

    def __init__(self, job: Job, engine: Engine, preset: TrainingPreset, data: Dataset, threads: int) -> None:
        self.job, self.engine, self.preset, self.data = job, engine, preset, data
        self.extent = scene_extent([photo.view for photo in trainable(data)])
        self.rng = np.random.default_rng(engine.setup.seed)
        self.at, self.threads = Position(), threads
        self.stopwatch = Stopwatch(0.0, threads)
        self._saved_at, self._save_every_s = time.monotonic(), CHECKPOINT_EVERY_S
        self.stops = preset.stop_on_plateau and bool(data.validation)
        self.evaluations = STOP_EVALUATIONS if self.stops else EVALUATIONS
        self._unchecked = 0  # photos since the last look at the loss
        self._start: Gaussians | None = None
        self._best: Gaussians | None = None
        self._best_db = float("-inf")

    def start(self, gaussians: Gaussians) -> None:
        self._start = gaussians
        self.engine.load(gaussians)

    def resume(self) -> bool:
        """Go on from the checkpoint if there is one of the same training; False when there is none."""
        saved = checkpoint.load(self.job.checkpoints)
        if saved is None or saved.fingerprint != self.fingerprint():
            return False
        self.engine.restore(saved.engine)
        self._best, self._best_db = None, float("-inf")
        if saved.best and len(saved.best) <= self.engine.setup.max_gaussians:  # less may fit now than when it was saved
            self._best, self._best_db = saved.best, saved.best_db
        self.at = saved.position
        self.rng.bit_generator.state = saved.random
        return True

    def fingerprint(self) -> Fingerprint:
        return checkpoint.fingerprint(self.engine, self.data)

    def save(self) -> None:
        """Write a checkpoint; a model with parameters that are no numbers never becomes one."""
        if not self.engine.is_finite():
            return
        began = time.monotonic()
        self.at.elapsed_s = self.stopwatch.elapsed_s()
        random = self.rng.bit_generator.state
        checkpoint.save(
            self.job.checkpoints,
            Checkpoint(self.fingerprint(), self.engine.state(), self.at, random, self._best, self._best_db),
        )
        self._saved_at = time.monotonic()
        self._save_every_s = checkpoint_interval_s(self._saved_at - began)

    def run(self) -> TrainingResult:
        """Train to the end. Raises StopRequested after SIGTERM (with a checkpoint) and StageError TRAINING_DIVERGED."""
        self.stopwatch = Stopwatch(self.at.elapsed_s, self.threads)
        self._saved_at, self._save_every_s = time.monotonic(), CHECKPOINT_EVERY_S
        while True:
            if self.job.stop_requested:
                self.save()
                raise StopRequested
            elapsed_s = self.stopwatch.elapsed_s()
            progress, reason = self._progress(elapsed_s)
            if progress >= COOL_DOWN_FROM and not self.at.cooling:
                self._cool_down()
            if progress >= 1.0:
                if not self._diverged():
                    return self._finish(reason, elapsed_s)
                self._roll_back()
                if self._progress(elapsed_s)[0] >= 1.0:
                    return self._finish(reason, elapsed_s)
                continue
            self._step(progress)
            self._report(progress, elapsed_s)
            if self.at.iteration % LOSS_CHECK_EVERY < self.engine.views and self._diverged():
                self._roll_back()
                continue
            if progress * self.evaluations >= self.at.evaluated + 1:
                self.at.evaluated = int(progress * self.evaluations)
                self._evaluate(progress)
            if time.monotonic() - self._saved_at >= self._save_every_s:
                self.save()

    def _progress(self, elapsed_s: float) -> tuple[float, str]:
        """(0..1, why it would end). Before the first step 0: the microseconds until then would show in its rates."""
        if self.at.iteration == 0:
            return 0.0, "max_iterations"
        by_time, by_steps = elapsed_s / self.preset.budget_s, self.at.iteration / self.preset.max_iterations
        progress, reason = (by_time, "time_budget") if by_time > by_steps else (by_steps, "max_iterations")
        if self.at.plateau_at:
            start, since = self.at.plateau_at
            cooled = start + (1 - start) * (self.at.iteration - since) / max(COOL_DOWN * since, 1.0)
            if cooled >= progress:
                return cooled, "plateau"
        return progress, reason

    def _step(self, progress: float) -> None:
        schedule, at = self.preset.schedule, self.at
        views = self.engine.views
        sh_degree = schedule.sh_degree(progress, self.preset.sh_degree)
        rates = schedule.rates(progress, self.extent).slower(SLOWER**at.rollbacks)
        self.engine.step([self._next_photo() for _ in range(views)], schedule.level(progress), sh_degree, rates)
        at.iteration += views
        self._unchecked += views
        if at.iteration % schedule.refine_every < views and progress < schedule.refine_until:
            weights, most = self._error_per_gaussian(progress, sh_degree), self._most(progress)
            refine(self.engine, self.rng, schedule.growth, weights, most)

    def _most(self, progress: float) -> int:
        """Gaussians that photos of this resolution can hold in place."""
        level, photos, view = self._level(progress), len(self.data.train), self.data.train[0].view
        if level == 1 or not self.preset.schedule.pixels_per_gaussian:
            return self.engine.setup.max_gaussians
        return int(photos * view.width * view.height / level**2 / self.preset.schedule.pixels_per_gaussian)

    def _next_photo(self) -> int:
        if not self.at.order:
            photos = trainable(self.data) if self.at.cooling else self.data.train
            self.at.order = self.rng.permutation(len(photos)).tolist()
        return self.at.order.pop()

    def _error_per_gaussian(self, progress: float, sh_degree: int) -> NDArray[np.float32] | None:
        """[N] the error that is each Gaussian's, over a few training photos; None when nobody asks."""
        count = min(self.preset.schedule.error_photos, len(self.data.train))
        if count == 0:
            return None
        level = max(SCORE_LEVEL, self._level(progress))
        photos = self.rng.choice(len(self.data.train), count, replace=False).tolist()
        return np.sum([self.engine.error_per_gaussian(photo, level, sh_degree) for photo in photos], axis=0)

    def _cool_down(self) -> None:
        """Go back to the best model, note how good it is on the validation photos, and let them join."""
        self.stopwatch.pause()
        at, degree = self.at, self.preset.sh_degree
        if self._best is not None and mean_psnr(self.engine, self.data.validation, degree) < (
            self._best_db - PLATEAU_LOSS_DB
        ):
            self.job.log("back to the best model", validation_psnr=self._best_db)
            self.engine.load(self._best)
        at.validation = score(self.engine, self.data.validation, degree)
        at.cooling, at.order, self._best = True, [], None
        self.stopwatch.go_on()

    def _report(self, progress: float, elapsed_s: float) -> None:
        level = self.preset.schedule.level(progress)
        view = self.data.train[0].view
        message = f"Training at {view.width // level}x{view.height // level} pixels"
        eta_s = round(elapsed_s / progress * (1 - progress), 1) if progress > 0.02 else None
        if self._by_time(elapsed_s) and not self.at.plateau_at:
            self.job.progress(int(elapsed_s), int(self.preset.budget_s), "s", message, eta_s=eta_s)
        else:
            left = self.at.iteration * (1 - progress) / progress if progress > 0 else self.preset.max_iterations
            self.job.progress(self.at.iteration, self.at.iteration + round(left), "steps", message, eta_s=eta_s)

    def _by_time(self, elapsed_s: float) -> bool:
        """Whether the time budget will end the training rather than the number of steps."""
        return elapsed_s / self.preset.budget_s > self.at.iteration / self.preset.max_iterations

    def _diverged(self) -> bool:
        """Whether the loss since the last look, or a parameter, is no longer a number. Waits for the device."""
        loss = self.engine.mean_loss() if self._unchecked else 0.0
        self._unchecked = 0
        return not (np.isfinite(loss) and self.engine.is_finite())

    def _roll_back(self) -> None:
        """Go on from the last good state with shorter steps. Raises StageError TRAINING_DIVERGED when in vain."""
        iteration, rollbacks, elapsed_s = self.at.iteration, self.at.rollbacks + 1, self.stopwatch.elapsed_s()
        over = elapsed_s >= self.preset.budget_s
        restored = rollbacks <= MOST_ROLLBACKS and self.resume()
        if rollbacks > MOST_ROLLBACKS or (not restored and (over or self._start is None)):
            raise StageError(
                "TRAINING_DIVERGED",
                f"The model is no longer made of numbers at iteration {iteration}, and shorter steps did not help. "
                "Start the scene again; if it happens twice, check the photos for extreme exposure differences.",
            )
        if not restored and self._start is not None:
            self.at = Position()
            self._best, self._best_db = None, float("-inf")
            self.engine.load(self._start)
        self.at.rollbacks = rollbacks
        self.engine.mean_loss()  # forget the loss of the steps that are undone
        self.job.log("rolled_back", diverged_at=iteration, back_at=self.at.iteration, times=rollbacks)

    def _evaluate(self, progress: float) -> None:
        """A point of the curve (test photos, or validation photos until they join) and the stop rule."""
        self.stopwatch.pause()
        degree, level = self.preset.schedule.sh_degree(progress, self.preset.sh_degree), self._level(progress)
        shown = self.data.test or ([] if self.at.cooling else self.data.validation)
        if shown:
            point = {
                "iteration": self.at.iteration,
                "seconds": round(self.stopwatch.elapsed_s(), 2),
                "psnr": mean_psnr(self.engine, spread(shown, CURVE_PHOTOS), degree),
                "gaussians": self.engine.count(),
            }
            self.at.curve.append(point)
            self.job.log("evaluated", **point, level=level)
        if self.stops and level == 1 and not self.at.cooling:
            self._look_for_plateau(progress, degree)
        self.stopwatch.go_on()

    def _look_for_plateau(self, progress: float, degree: int) -> None:
        value = mean_psnr(self.engine, self.data.validation, degree)
        if value > self._best_db:
            self._best_db, self._best = value, self.engine.gaussians()
        if self.at.plateau.update(value):
            self.job.log("plateau", validation_psnr=value, best=self._best_db)
            self.at.plateau_at = [progress, self.at.iteration]
            self._cool_down()

    def _level(self, progress: float) -> int:
        return self.preset.schedule.level(progress)

    def _finish(self, reason: str, seconds: float) -> TrainingResult:
        self.stopwatch.pause()  # a checkpoint that is saved later, while the model is measured, is of this moment
        at = self.at
        planned_s = min(self.preset.budget_s, self.preset.max_iterations * seconds / max(at.iteration, 1))
        saved_s = max(0.0, planned_s - seconds) if reason == "plateau" else 0.0
        return TrainingResult(
            self.engine.gaussians(), at.iteration, seconds, saved_s, reason, at.curve, at.validation, at.rollbacks
        )


def checkpoint_interval_s(last_took_s: float) -> float:
    """Time between checkpoints: a small share of the training, but never more than a minute is lost."""
    return min(CHECKPOINT_LATEST_S, max(CHECKPOINT_EVERY_S, last_took_s / CHECKPOINT_SHARE))
