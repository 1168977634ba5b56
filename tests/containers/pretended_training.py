"""A trainer with an engine that only pretends: what it renders depends on its steps alone."""

from dataclasses import replace

import numpy as np

from job import Job, JobKind
from splat.cameras import View
from splat.model import Gaussians
from train import presets
from train.dataset import Dataset, trainable
from train.engine import Setup, TrainingPhoto
from train.trainer import Trainer


class PretendedEngine:
    """Renders grey of value ``error(steps)``: against black photos the PSNR is -20 log10 of it."""

    name, device, views = "pretended", "none", 1

    def __init__(self, photos, error=lambda steps: 0.1):
        self.photos, self.error = photos, error
        self.setup = Setup(photos, max_gaussians=8, sh_degree=1, seed=1)
        self.steps, self.offset, self.broken = 0, 0, False
        self.trained, self.rates = [], []
        self.on_step = lambda: None

    def load(self, gaussians):
        self.steps, self.broken = int(gaussians.means[0, 0]), False

    def step(self, photos, level, sh_degree, rates):
        self.steps += len(photos)
        self.trained += [self.photos[photo].view.name for photo in photos]
        self.rates.append(rates)
        self.on_step()

    def mean_loss(self):
        return 0.5

    def is_finite(self):
        return not self.broken

    def error_per_gaussian(self, photo, level, sh_degree):
        return np.zeros(1, np.float32)

    def count(self):
        return 1

    def opacities(self):
        return np.zeros(1, np.float32)  # nothing to relocate

    def render(self, view, sh_degree):
        return np.full((view.height, view.width, 3), self.error(self.steps), np.float32)

    def gaussians(self):
        return model(self.steps)

    def state(self):
        return {"steps": np.array(self.steps)}

    def restore(self, state):
        self.steps, self.broken = int(state["steps"]), False


def model(steps):
    means = np.full((1, 3), steps, np.float32)
    return Gaussians(means, np.zeros((1, 3)), np.ones((1, 4)), np.zeros(1), np.zeros((1, 4, 3)))


def photo(name, grey=0):
    pose = np.eye(4)
    pose[0, 3] = len(name)
    return TrainingPhoto(View(name, 12, 12, np.eye(3), pose), np.full((12, 12, 3), grey, np.uint8))


def make_data(train=6, validation=2, test=2, test_grey=0):
    return Dataset(
        [photo(f"train{i}") for i in range(train)],
        [photo(f"validation{i}") for i in range(validation)],
        [photo(f"test{i}", test_grey) for i in range(test)],
    )


def make_trainer(root, data, error=lambda steps: 0.1, views=1, setup=None, **changes):
    limits = {"budget_s": float("inf"), "max_iterations": 1_000, "stop_on_plateau": True}
    preset = replace(presets.CPU["draft"], **(limits | changes))
    job = Job.open("train", JobKind.TRAINING, root)
    engine = PretendedEngine(trainable(data), error)
    engine.views = views
    engine.setup = replace(engine.setup, **(setup or {}))
    made = Trainer(job, engine, preset, data, threads=1)
    if not made.resume():
        made.start(model(0))
    return made


def better_until(best):
    """Improves up to this step and gets worse from there."""
    return lambda steps: 0.1 * 10 ** (abs(steps - best) / 1_000)
