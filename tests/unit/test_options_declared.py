"""Each option is declared whole and read where it goes, and leaving out any part is seen."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, create_model

from base.stages import STAGE_NAMES
from deploy.option_contracts import fields_for
from job import options as stage_models
from uploads.options import For, JobOptions, Since, StageValues, Unit, find_mark, names_for

CONTAINERS = Path(__file__).parents[2] / "containers"
FOR_THE_LOG = {"job_id", "scene"}  # every stage is given them, and its log begins with them
WITH_UNIT = ("_seconds", "_usd", "_side", "_per_hour")


def incomplete(*models: type[BaseModel]) -> set[str]:
    """What a declaration lacks, as ``option.part``."""
    found = set()
    for model in models:
        for name, field in model.model_fields.items():
            parts = {"For": find_mark(field, For), "description": field.description}
            parts |= {"Since": find_mark(field, Since)} if model is not StageValues else {}
            parts |= {"Unit": find_mark(field, Unit)} if name.endswith(WITH_UNIT) else {}
            found |= {f"{name}.{part}" for part, value in parts.items() if not value}
    return found


def read_in(stage: str) -> set[str]:
    """Names of all attributes that the code of a stage reads."""
    trees = [ast.parse(file.read_text()) for file in (CONTAINERS / stage).rglob("*.py")]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_declaration_is_whole():
    assert incomplete(JobOptions, StageValues) == set()


@pytest.mark.parametrize(
    ("declared", "lacks"),
    [
        (Annotated[int | None, Field(description="x"), Since("0.1")], "new.For"),
        (Annotated[int | None, For("train"), Since("0.1")], "new.description"),
        (Annotated[int | None, Field(description="x"), For("train")], "new.Since"),
    ],
)
def test_an_option_with_a_part_left_out_is_seen(declared: Any, lacks: str):
    assert incomplete(create_model("Planted", new=(declared, None))) == {lacks}


def test_a_unit_that_is_left_out_is_seen():
    declared = Annotated[float | None, Field(description="x"), For("train"), Since("0.1")]
    fields: dict[str, Any] = {"new_seconds": (declared, None)}
    assert incomplete(create_model("Planted", **fields)) == {"new_seconds.Unit"}


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_a_stage_reads_each_option_that_it_is_given(stage):
    assert set(names_for(stage, JobOptions, StageValues)) - FOR_THE_LOG - read_in(stage) == set()


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_an_option_that_no_code_of_its_stage_reads_is_seen(stage):
    declared = Annotated[int | None, Field(description="x"), For(stage), Since("0.1")]
    planted = create_model("Planted", never_read_anywhere=(declared, None))
    assert set(names_for(stage, planted)) - read_in(stage) == {"never_read_anywhere"}


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_a_stage_has_no_option_that_is_not_declared(stage):
    model = getattr(stage_models, f"{stage.capitalize()}Options")
    assert list(model.model_fields) == [name for name, _ in fields_for(stage)], "run: make contracts"
    source = "\n".join(file.read_text() for file in (CONTAINERS / stage).rglob("*.py"))
    assert f"{stage.capitalize()}Options.model_validate(job.options)" in source
    assert source.count("job.options") == source.count("from job.options") + 1, "options are read with the model alone"


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_what_the_service_gives_is_what_the_program_takes(stage):
    """The same limits on both sides: text of every value that job.json allows parses to the same value."""
    options = JobOptions(
        title="Hut", preset="high", max_gaussians=1_000, max_iterations=10, max_image_long_side=320, sh_degree=0,
        max_training_seconds=1.5, test_photos=False, matcher="spatial",
    )  # fmt: skip
    model = getattr(stage_models, f"{stage.capitalize()}Options")
    read = model.model_validate(options.for_stage(stage))
    given = names_for(stage, JobOptions)
    assert {name: getattr(read, name) for name in given} == {name: getattr(options, name) for name in given}
