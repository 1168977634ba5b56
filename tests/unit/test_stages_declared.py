"""Each stage of base/stages.py stands everywhere where a stage has to stand, and leaving out any place is seen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from base.settings import StageSettings
from base.stages import STAGE_NAMES, STAGES, UPLOAD, WHOLE_OUTPUT, Stage, StageName
from spaceport.stack import stages as stack_stages
from uploads.options import JobOptions

ROOT = Path(__file__).parents[2]
MESH = replace(STAGES[-1], name="mesh", state="Mesh", title="Make a mesh")  # type: ignore[arg-type]


def places(stage: Stage) -> dict[tuple[str, str], str]:
    """What must stand in which file: the name of the place, the file and a regular expression."""
    name, title = stage.name, stage.name.capitalize()
    template = {
        **{f"parameter {suffix}": rf"^  {title}{suffix}:$" for suffix in ("ImageUri", "InstanceType", "VolumeGb")},
        "run time": rf"^  {title}MaxRuntimeSeconds:$",
        **{f"variable {field}": rf"^        {name.upper()}_{field.upper()}: " for field in StageSettings.model_fields},
        "role": rf"^  {title}Role:$",
        "role that may be passed": rf"Resource: \[.*!GetAtt {title}Role\.Arn.*\]",
        "repository": rf"^  {title}Repository:$",
        "repository that images are pushed to": rf"Resource: \[.*!GetAtt {title}Repository\.Arn.*\]",
        "alarm": rf"^  {title}SlowAlarm:$",
        "dashboard": rf'"metrics": .*"StageSeconds".*"{name}"',
        "its own folder": rf"Bucket\.Arn}}/work/\*/{name}/",
        "its progress": rf"Bucket\.Arn}}/work/\*/({name}/checkpoints|progress/{name})/",
    }
    kind = f"JobKind.{stage.kind.upper()}"
    return {
        **{(place, "template.yaml"): pattern for place, pattern in template.items()},
        ("state", "statemachine/pipeline.asl.json"): rf'"{stage.state}": \{{\s+"Type": "Task"',
        ("stage of the state", "statemachine/pipeline.asl.json"): rf'"stage": "{name}"',
        ("image", "containers/Dockerfile"): rf"^FROM \S+ AS {name}$",
        ("code in the image", "containers/Dockerfile"): rf"^COPY --chmod=0755 {name} /opt/spaceport/{name}$",
        ("self-check", "containers/Dockerfile"): rf'"-m", "{name}", "--selfcheck"',
        ("build context", "containers/.dockerignore"): rf"^!{name}$",
        ("packages", f"containers/requirements/{name}.in"): "-r job.in",
        ("pinned packages", f"containers/requirements/{name}.txt"): "==",
        ("entry point", f"containers/{name}/__main__.py"): rf'run_stage\("{name}", {kind}, "{name}\.stage"\)',
        ("program", f"containers/{name}/stage.py"): r"^OUTPUTS = ",
        ("written table", "statemachine/stages.json"): rf'"name": "{name}",\s+"state": "{stage.state}"',
    }


def read(name: str) -> str:
    return (ROOT / name).read_text() if (ROOT / name).is_file() else ""


def missing(stage: Stage, text_of: Callable[[str], str] = read) -> set[tuple[str, str]]:
    return {
        place for place, pattern in places(stage).items() if not re.search(pattern, text_of(place[1]), re.MULTILINE)
    }


@pytest.mark.parametrize("stage", STAGES, ids=STAGE_NAMES)
def test_every_place_has_the_stage(stage):
    assert missing(stage) == set()


@pytest.mark.parametrize("place", places(MESH), ids=" ".join)
def test_a_stage_that_is_left_out_of_one_place_is_seen(place):
    what, file = place
    assert place in missing(MESH), "a fourth stage is asked for here too"
    for stage in STAGES:
        its_file = file.replace("mesh", stage.name)
        pattern = places(stage)[what, its_file]
        spoilt = re.sub(pattern, "", read(its_file), flags=re.MULTILINE)
        texts = {its_file: spoilt}
        assert (what, its_file) in missing(stage, lambda name, texts=texts: texts.get(name, read(name)))


def test_the_states_run_in_the_order_of_the_table():
    states = json.loads(read("statemachine/pipeline.asl.json"))["States"]
    at, order = STAGES[0].state, []
    while at in {stage.state for stage in STAGES}:
        order.append((states[at]["Parameters"]["Payload"]["stage"], at))
        at = states[at]["Next"]
    assert order == [(stage.name, stage.state) for stage in STAGES]
    assert at == "Notify"
    starts = [
        choice["StringEquals"] for state in states.values() for choice in _choices(state) if "StringEquals" in choice
    ]
    assert sorted(starts) == sorted(STAGE_NAMES), "StartAt? leads to each of them"


def _choices(state):
    for choice in state.get("Choices", []):
        yield choice
        yield from choice.get("And", [])


def test_names_kinds_inputs_and_prices_fit_each_other():
    assert get_args(StageName) == STAGE_NAMES == stack_stages.STAGE_NAMES
    presets = set(get_args(JobOptions.model_fields["preset"].annotation))
    for number, stage in enumerate(STAGES):
        assert set(stage.reads) <= {UPLOAD, *STAGE_NAMES[:number]}, "data only moves forward"
        assert set(stage.seconds_per_job) == presets
        assert set(stage.seconds_per_photo) in (presets, set())
        for name in {*stage.writes, *stage.publishes} - {WHOLE_OUTPUT}:
            assert f'"{name}"' in read(f"containers/{stage.name}/stage.py").partition("OUTPUTS = ")[2], name
    assert [stage.is_training for stage in STAGES] == [stage.is_training for stage in stack_stages.STAGES]
