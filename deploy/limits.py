"""Write the time limits of the state machine, which follow from template.yaml.

    python -m deploy.limits            write them into statemachine/pipeline.asl.json
    python -m deploy.limits --check    say which are out of date; exit status 1 if any is

CloudFormation cannot add, and a placeholder for a number makes the definition invalid JSON, so the sums stand in the
file (docs/decisions/0002). The largest values that the parameters allow count: the limits hold for every deployment.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from spaceport.stack.sam import read_template
from spaceport.stack.stages import STAGES, StageEntry

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "template.yaml"
DEFINITION = ROOT / "statemachine/pipeline.asl.json"
STAGES_BY_STATE = {stage.state: stage for stage in STAGES}

START_AND_STOP_S = 7200  # of a job, beyond its run time: machine, image, inputs, results, and the sweep that sees it
CALL_MARGIN_S = 60  # a function's own limit comes first, so that its error has a name
SERVICE_CALL_S = 60  # a call of DynamoDB
SWEEPS_PER_HEARTBEAT = 6  # the sweep sends the heartbeats; so many may fail in a row
UPLOAD_S = 2 * 86_400  # the longest upload (functions/settle.py) and the longest wait after it
START_CALL_ERRORS = ("Lambda.", "Sandbox.", "Runtime.")  # a stage that fails with these has not started its job
DAY_S = 86_400


def longest_job_s(template: dict[str, Any], stage: StageEntry) -> int:
    """The longest that SageMaker lets the job of a stage run, waiting for a machine included."""
    parameters = template["Parameters"]
    run_s = int(parameters[stage.parameter("MaxRuntimeSeconds")]["MaxValue"])
    return run_s + (int(parameters["SpotWaitSeconds"]["MaxValue"]) if stage.is_training else 0)


def function_timeout_s(template: dict[str, Any], function: str) -> int:
    properties = template["Resources"][function]["Properties"]
    return int(properties.get("Timeout", template["Globals"]["Function"]["Timeout"]))


def sweep_period_s(template: dict[str, Any]) -> int:
    """Seconds between two sweeps of the open tasks."""
    events = template["Resources"]["CheckStatusFunction"]["Properties"]["Events"]
    match = re.fullmatch(r"rate\((\d+) minutes?\)", events["Sweep"]["Properties"]["Schedule"])
    if match is None:
        raise ValueError("the sweep of CheckStatusFunction has no schedule in minutes")
    return 60 * int(match[1])


def limits(template: dict[str, Any], definition: dict[str, Any]) -> dict[str, dict[str, int]]:
    """TimeoutSeconds and HeartbeatSeconds by state, those of the machine under an empty name.

    Raises KeyError where the template lacks a source, ValueError for a task whose limit follows from nothing.
    """
    found: dict[str, dict[str, int]] = {}
    for name, state in definition["States"].items():
        if state["Type"] == "Task":
            found[name] = _task_limits(template, name, state)
    waiting_s = sum(longest_s(template, definition["States"][name], own) for name, own in found.items())
    # Each task counts once: the only one that is in a loop is Settle, for as long as an upload lasts.
    return {"": {"TimeoutSeconds": DAY_S * math.ceil((UPLOAD_S + waiting_s) / DAY_S)}, **found}


def _task_limits(template: dict[str, Any], name: str, state: dict[str, Any]) -> dict[str, int]:
    function = re.fullmatch(r"\$\{(\w+)Arn\}", state["Resource"])
    if function:
        return {"TimeoutSeconds": function_timeout_s(template, function[1]) + CALL_MARGIN_S}
    if name in STAGES_BY_STATE:
        return {
            "TimeoutSeconds": longest_job_s(template, STAGES_BY_STATE[name]) + START_AND_STOP_S,
            "HeartbeatSeconds": SWEEPS_PER_HEARTBEAT * sweep_period_s(template),
        }
    if ":dynamodb:" in state["Resource"]:
        return {"TimeoutSeconds": SERVICE_CALL_S}
    raise ValueError(f"{name}: say in deploy/limits.py what its limit follows from")


def longest_s(template: dict[str, Any], state: dict[str, Any], own: dict[str, int]) -> int:
    """The longest that a task may take with all its tries and the waits before them."""
    seconds = own["TimeoutSeconds"]
    start_call_s = function_timeout_s(template, "StartJobFunction") + CALL_MARGIN_S
    for retrier in state.get("Retry", []):
        tries, wait_s, rate = (
            retrier.get(k, d) for k, d in (("MaxAttempts", 3), ("IntervalSeconds", 1), ("BackoffRate", 2))
        )
        at_start = "HeartbeatSeconds" in own and all(e.startswith(START_CALL_ERRORS) for e in retrier["ErrorEquals"])
        seconds += tries * (start_call_s if at_start else own["TimeoutSeconds"])
        seconds += math.ceil(sum(wait_s * rate**number for number in range(tries)))
    return seconds


def apply(text: str, wanted: dict[str, dict[str, int]]) -> str:
    """The definition's text with these limits; everything else keeps its form. Raises ValueError for one it lacks."""
    for name, fields in wanted.items():
        start = f'"{re.escape(name)}": {{' if name else r"\A\{"
        for field, seconds in fields.items():
            text, count = re.subn(rf'({start}.*?"{field}": )\d+', rf"\g<1>{seconds}", text, count=1, flags=re.DOTALL)
            if not count:
                raise ValueError(f"{name or 'the machine'} has no {field} to replace")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    text = DEFINITION.read_text(encoding="utf-8")
    definition = json.loads(text)
    wanted = limits(read_template(TEMPLATE), definition)
    for name, fields in wanted.items():
        for field, seconds in fields.items():
            now = (definition["States"][name] if name else definition).get(field)
            if now != seconds:
                print(f"{name or 'the machine'}: {field} {now} -> {seconds}")
    current = apply(text, wanted)
    if not check:
        DEFINITION.write_text(current, encoding="utf-8")
    return int(check and current != text)


if __name__ == "__main__":
    sys.exit(main())
