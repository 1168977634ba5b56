"""Presets: how large, how long. An option that is given replaces the preset's value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from job.options import TrainOptions
from train.schedule import Schedule


@dataclass(frozen=True)
class TrainingPreset:
    """``budget_s`` and ``max_iterations``: whichever is used up first ends the training."""

    long_side: int  # pixels
    max_gaussians: int
    sh_degree: int
    budget_s: float
    max_iterations: int
    stop_on_plateau: bool
    schedule: Schedule = field(default_factory=Schedule)


# The longer a training, the shorter the steps of the means: with those of "draft", long trainings end worse, and a
# million Gaussians never came to rest (docs/training-measured.md, "Long trainings").
CPU = {
    "draft": TrainingPreset(400, 30_000, 1, 54, 20_000, False),
    "standard": TrainingPreset(640, 60_000, 1, 235, 30_000, False, Schedule(means_rate=5e-4)),
    "high": TrainingPreset(960, 150_000, 2, 1_500, 60_000, True, Schedule(means_rate=3e-4)),
}
_GPU = Schedule(
    half_from=0.1,
    full_from=0.4,
    sh_step=0.0,
    refine_until=0.7,
    scale_reg=0.03,
    rate=1.5,
    error_photos=0,
    gap_share=0,
    pixels_per_gaussian=80.0,
)
_GPU_LONG = replace(_GPU, means_rate=5e-4)
_GPU_LONGEST = replace(_GPU, means_rate=3e-4, growth=0.05)
GPU = {
    "draft": TrainingPreset(1200, 150_000, 2, 120, 5_000, False, _GPU),
    "standard": TrainingPreset(1600, 300_000, 2, 1_200, 10_000, True, _GPU_LONG),
    "high": TrainingPreset(1600, 1_000_000, 3, 3_600, 20_000, True, _GPU_LONGEST),
}


def choose(options: TrainOptions, gpu: bool) -> TrainingPreset:
    """The preset for this device with the options that were given."""
    preset = (GPU if gpu else CPU)[options.preset]
    # What ends a training of the preset: the number of steps on a GPU, time on a CPU.
    asked = options.max_iterations if gpu else options.max_training_seconds
    usual = preset.max_iterations if gpu else preset.budget_s
    return replace(
        lengthened(preset, asked / usual) if asked else preset,
        max_gaussians=options.max_gaussians or preset.max_gaussians,
        max_iterations=options.max_iterations or preset.max_iterations,
        long_side=options.max_image_long_side or preset.long_side,
        sh_degree=preset.sh_degree if options.sh_degree is None else options.sh_degree,
        budget_s=options.max_training_seconds or preset.budget_s,
    )


def lengthened(preset: TrainingPreset, times: float) -> TrainingPreset:
    """With the steps of the means for a training that is so many times as long; as it is for a shorter one."""
    means_rate = preset.schedule.means_rate / max(times, 1.0)
    return replace(preset, schedule=replace(preset.schedule, means_rate=means_rate))
