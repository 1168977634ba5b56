"""Where moto's interpreter does otherwise on the pipeline: one entry is one row of docs/asl-differences.md.

Each says how moto understands an answer, or what it does to the trace, so that the test can tell exactly what moto will
do from what ours does: an entry that explains nothing, and anything that no entry explains, fail.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.state_machine.second_opinion.interpreters import run_ours
from tests.state_machine.second_opinion.script import STAGES, Answer, Case, Trace, raises

PAGE = Path(__file__).resolve().parents[3] / "docs/asl-differences.md"
# Written instead of what our interpreter would not take, and replaced in what it made of that.
NULL = "the text that moto writes as null"
CAUGHT_LIMIT = "the States.DataLimitExceeded that moto catches"
DATA_LIMIT_BYTES = 262_144


@dataclass(frozen=True)
class Difference:
    """``answer(state, answer)`` is the answer as moto takes it, ``trace`` changes what came of it."""

    here: str
    moto: str
    reason: str
    answer: Callable[[str, Answer], Answer] = lambda state, answer: answer
    trace: Callable[[Trace], Trace] = lambda trace: trace


def _refused(state: str, answer: Answer) -> Answer:
    direct = state in ("Settle", "Validate", "Notify", "NotifyFailure")
    return replace(answer, kind="raises", error="Exception") if direct and answer.kind == "refused" else answer


def _too_large(state: str, answer: Answer) -> Answer:
    if answer.kind != "ok" or len(json.dumps(answer.value)) <= DATA_LIMIT_BYTES:
        return answer
    cause = (
        f"The state/task 'arn:aws:lambda:us-east-1:123456789012:function:{state.removesuffix('Failure')}' returned a "
        "result with a size exceeding the maximum number of bytes service limit."
    )
    return replace(raises(CAUGHT_LIMIT), cause=cause)


def _no_cause(state: str, answer: Answer) -> Answer:
    return replace(answer, cause=NULL) if answer.kind == "failure" and answer.cause is None else answer


def _no_error(state: str, answer: Answer) -> Answer:
    return replace(answer, error=NULL) if answer.kind == "failure" and answer.error is None else answer


def _timed_out(state: str, answer: Answer) -> Answer:
    waits_for_beats = answer.kind == "silent" and state in STAGES.values()
    if answer.kind == "beats" or (answer.kind == "silent" and not waits_for_beats):
        return Answer("raises", error="States.Timeout", cause="")
    return answer


def _heart_stopped(state: str, answer: Answer) -> Answer:
    if answer.kind == "silent" and state in STAGES.values():
        return Answer("raises", error="States.Timeout", cause="")
    return answer


def _one_token(trace: Trace) -> Trace:
    """All attempts of a state have the token of the first."""
    first: dict[str, int] = {}
    for state, _ in trace.calls:
        if state in STAGES.values():
            first.setdefault(state, len(first) + 1)
    return replace(
        trace,
        calls=[
            (state, {**parameters, "task_token": first[state]} if state in first else parameters)
            for state, parameters in trace.calls
        ],
    )


def _no_reason(trace: Trace) -> Trace:
    return replace(trace, end={"status": trace.end["status"]})


def _stopped_token(trace: Trace) -> Trace:
    return replace(trace, end={"status": "FAILED", "error": "States.Timeout"})


DIFFERENCES = {
    "function-refused": Difference(
        "`Lambda.TooManyRequestsException`, which `Retry` names",
        "`Exception`, which no `Retry` names: the job fails at once",
        "developer guide, Error names, and Handling errors: errors of the service itself begin with `Lambda.`",
        answer=_refused,
    ),
    "answer-too-large": Difference(
        "`States.DataLimitExceeded` ends the execution",
        "`States.ALL` catches it",
        "developer guide, Error names: `States.ALL` does not catch `States.DataLimitExceeded`",
        answer=_too_large,
    ),
    "failure-without-cause": Difference(
        "no `Cause`",
        '`"Cause": null`',
        "spec, Errors, Error Output: `Cause` is a string",
        answer=_no_cause,
    ),
    "failure-without-error": Difference(
        '`"Error": ""`',
        '`"Error": null`',
        "spec, Errors, Error Output: `Error` is a string",
        answer=_no_error,
    ),
    "timeout-cause": Difference(
        "no `Cause`",
        '`"Cause": ""`',
        "spec, Errors, Error Output: `Cause` SHOULD be there. Both are allowed; the definition reads neither, and what "
        "holds without the field holds with it",
        answer=_timed_out,
    ),
    "heartbeat-missed": Difference(
        "`States.HeartbeatTimeout`",
        "`States.Timeout`",
        "spec, Appendix A: `States.HeartbeatTimeout` is the name for a missed heartbeat",
        answer=_heart_stopped,
    ),
    "token-of-a-retry": Difference(
        "each attempt has a token of its own",
        "all attempts share one, and the answer to the last attempt is taken for the next one's",
        "developer guide, Wait for a Callback with Task Token: a new token is made when a task is started again; spec, "
        "Retry: the state is executed again",
        trace=_one_token,
    ),
    "reason-of-a-stop": Difference(
        "DescribeExecution has the `error` and `cause` given to StopExecution",
        "they are lost",
        "API reference, DescribeExecution: `error` and `cause` of an execution that was aborted",
        trace=_no_reason,
    ),
    "stop-of-a-waiting-task": Difference(
        "`ABORTED`",
        "`FAILED` with `States.Timeout`",
        "API reference, StopExecution; developer guide, execution statuses: a stopped execution is `ABORTED`",
        trace=_stopped_token,
    ),
}


def as_moto(case: Case, names: tuple[str, ...]) -> Trace:
    """What moto does in this case, from our interpreter and the differences ``names``."""
    answers = {}
    for state, given in case.answers.items():
        answers[state] = list(given)
        for name in names:
            answers[state] = [DIFFERENCES[name].answer(state, answer) for answer in answers[state]]
    trace = run_ours(replace(case, answers=answers))
    for name in names:
        trace = DIFFERENCES[name].trace(trace)
    text = json.dumps([trace.steps, trace.calls]).replace(CAUGHT_LIMIT, "States.DataLimitExceeded")
    steps, calls = json.loads(text.replace(f'\\"{NULL}\\"', "null").replace(f'"{NULL}"', "null"))
    return replace(trace, steps=[tuple(step) for step in steps], calls=[tuple(call) for call in calls])


def table() -> str:
    """The rows for docs/asl-differences.md."""
    lines = ["| name | here | moto | reason |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {d.here} | {d.moto} | {d.reason} |" for name, d in DIFFERENCES.items()]
    return "\n".join(lines) + "\n"
