"""Camera poses and sparse points from features and matches: COLMAP's incremental mapper, once or more."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pycolmap

from job import StageError
from sfm.features import STRONG, SiftSettings, extract, import_photos, look_alike, match, verified_pairs
from sfm.georeference import Positions
from sfm.messages import log, show_progress
from sfm.options import Matcher
from sfm.pairs import choose_pairs, left_out, more_pairs
from sfm.phase import phase
from sfm.request import MapRequest

THOROUGH_BELOW = 0.9  # share of photos registered; below, the mapper runs once more, with its own settings
MIN_REGISTERED, MIN_REGISTERED_SHARE = 5, 0.25
FEW_PARTNERS = 3
SEED = 1
GUIDED_UP_TO_PAIRS = 300  # guided matching costs a second a pair


@dataclass(frozen=True)
class Attempt:
    database: Path
    model: pycolmap.Reconstruction | None  # the one with the most photos
    registered: int


def map_photos(request: MapRequest, gps: Positions, matcher: Matcher, settings: SiftSettings, folder: Path) -> Attempt:
    """Features, matches and poses with one choice of settings; the model with the most photos."""
    photos, prepared = request.photos, request.prepared
    folder.mkdir(parents=True)
    database = folder / "database.db"
    import_photos(database, prepared, photos)
    names = [photo.image for photo in photos]
    with phase("features", log):
        extract(database, prepared, names, settings)
    with phase("pairs", log):
        order = sorted(range(len(photos)), key=lambda k: (photos[k].info.taken_at or "", photos[k].name))
        similarity = look_alike(database, names) if matcher is Matcher.RETRIEVAL else None
        pairs = choose_pairs(matcher, gps.enu_m[:, :2], order, similarity, generous=settings is STRONG)
    guided = settings is STRONG and len(pairs) <= GUIDED_UP_TO_PAIRS
    with phase("matching", log):
        match(database, names, pairs, folder / "pairs.txt", guided)
        if similarity is not None:
            lost = left_out(len(names), verified_pairs(database, names), FEW_PARTNERS)
            more = more_pairs(similarity, set(pairs), lost)
            match(database, names, more, folder / "more.txt", guided)
            pairs += more
    with phase("mapping", log):
        model, models = best_model(database, prepared, folder, len(photos), settings.settle_sooner)
    registered = model.num_reg_images() if model is not None else 0
    log(
        "mapped",
        settings=settings.name,
        matcher=matcher.value,
        pairs=len(pairs),
        registered=registered,
        photos=len(photos),
        models=models,
    )
    return Attempt(database, model, registered)


def best_model(
    database: Path, prepared: Path, folder: Path, photos: int, sooner: bool
) -> tuple[pycolmap.Reconstruction | None, int]:
    """The model with the most photos, or None, and how many were found; ``sooner``: see ``settle_sooner``."""
    models = run_mapper(database, prepared, folder / "models", photos, sooner)
    if sooner and most_registered(models) < THOROUGH_BELOW * photos:
        thorough = run_mapper(database, prepared, folder / "thorough", photos, sooner=False)
        log("mapped_again", before=most_registered(models), now=most_registered(thorough))
        models = max(models, thorough, key=most_registered)
    return max(models, key=lambda m: (m.num_reg_images(), m.num_points3D()), default=None), len(models)


def most_registered(models: list[pycolmap.Reconstruction]) -> int:
    return max((model.num_reg_images() for model in models), default=0)


def run_mapper(
    database: Path, prepared: Path, folder: Path, photos: int, sooner: bool
) -> list[pycolmap.Reconstruction]:
    """Incremental mapping; all models found, perhaps none."""
    folder.mkdir()
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = SEED
    options.min_model_size = min(10, max(3, photos // 4))
    options.max_num_models = 5
    if sooner:
        settle_sooner(options)
    registered = 0

    def start() -> None:
        nonlocal registered
        registered = 2
        show_progress(registered, photos, "photos", "Placing cameras")

    def advance() -> None:
        nonlocal registered
        registered = min(registered + 1, photos)
        show_progress(registered, photos, "photos", "Placing cameras")

    show_progress(0, photos, "photos", "Placing cameras")
    models = pycolmap.incremental_mapping(
        database, prepared, folder, options, initial_image_pair_callback=start, next_image_callback=advance
    )
    return list(models.values())


def settle_sooner(options: pycolmap.IncrementalPipelineOptions) -> None:
    """Adjust the whole model less often, and stop when the cost hardly falls.

    The mapper's own settings adjust after every tenth of growth, up to five times, to full convergence. These need a
    third of the work and move the cameras by less than 0.1 % of the scene's radius (median).
    """
    options.ba_global_frames_ratio = options.ba_global_points_ratio = 1.4
    options.ba_global_max_refinements, options.ba_local_max_refinements = 2, 1
    options.ba_global_function_tolerance = options.ba_local_function_tolerance = 1e-4


def require_enough(registered: int, photos: int) -> None:
    advice = (
        "Take photos that overlap by two thirds with their neighbours, from different positions "
        "(walk, do not only turn), of things with visible texture, sharp and evenly lit."
    )
    if registered == 0:
        raise StageError("NO_MODEL", f"No two of the {photos} photos could be related to each other. {advice}")
    if registered < max(MIN_REGISTERED, MIN_REGISTERED_SHARE * photos):
        raise StageError(
            "TOO_FEW_REGISTERED", f"Only {registered} of {photos} photos could be placed in one scene. {advice}"
        )
