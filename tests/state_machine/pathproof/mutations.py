"""The real pipeline, broken on purpose: each mutation makes one mistake and names the finding that must report it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

Definition = dict[str, Any]
Edit = Callable[[dict[str, Any]], None]  # changes "States" in place


class Expected(NamedTuple):
    rule: str
    state: str
    path: str | None = None  # None: whatever it is about


class Mutation(NamedTuple):
    name: str
    edit: Edit
    expected: Expected


def apply(definition: Definition, edit: Edit) -> Definition:
    """A changed copy."""
    changed = copy.deepcopy(definition)
    edit(changed["States"])
    return changed


def put(state: str, *keys: str | int, value: Any) -> Edit:
    """Set the field at ``keys``."""

    def edit(states: dict[str, Any]) -> None:
        holder = states[state]
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = value

    return edit


def drop(state: str, *keys: str | int) -> Edit:
    """Remove the field at ``keys``."""

    def edit(states: dict[str, Any]) -> None:
        holder = states[state]
        for key in keys[:-1]:
            holder = holder[key]
        del holder[keys[-1]]

    return edit


def both(*edits: Edit) -> Edit:
    def edit(states: dict[str, Any]) -> None:
        for one in edits:
            one(states)

    return edit


def insert(after: str, name: str, body: dict[str, Any]) -> Edit:
    """A new state between ``after`` and what follows it."""

    def edit(states: dict[str, Any]) -> None:
        states[name] = {**body, "Next": states[after]["Next"]}
        states[after]["Next"] = name

    return edit


def guards(state: str, choice: int, keep: Callable[[list[dict[str, Any]]], Any], operator: str = "And") -> Edit:
    """Replace the And of a choice rule by ``operator`` of ``keep(its tests)``."""

    def edit(states: dict[str, Any]) -> None:
        rule = states[state]["Choices"][choice]
        rule[operator] = keep(rule.pop("And"))

    return edit


def without(test: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda tests: [part for part in tests if test not in part]


def _never_complete(states: dict[str, Any]) -> None:
    states["UploadComplete?"]["Choices"].pop(0)
    states["UploadComplete?"]["Default"] = "QuietPeriod"


def _skip_malformed_answer(states: dict[str, Any]) -> None:
    for state in ("UploadComplete?", "StartAt?"):
        states[state]["Default"] = "RecordFailure"


def _rename(old: str, new: str) -> Edit:
    def edit(states: dict[str, Any]) -> None:
        states[new] = states.pop(old)
        for body in states.values():
            for holder in (body, *body.get("Choices", []), *body.get("Catch", [])):
                for field in ("Next", "Default"):
                    if holder.get(field) == old:
                        holder[field] = new

    return edit


REREAD_CAUSE = "States.StringToJson($.error.Cause)"
PASS = {"Type": "Pass"}
EACH_REJECTED = {
    "Type": "Map",
    "ItemsPath": "$.validate.rejected",
    "ItemProcessor": {"StartAt": "One", "States": {"One": {"Type": "Pass", "End": True}}},
    "ResultPath": None,
    "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "RecordFailure"}],
}
ALSO = {
    "Type": "Parallel",
    "Branches": [
        {
            "StartAt": "Look",
            "States": {"Look": {"Type": "Pass", "Parameters": {"uri.$": "$.sfm.output_uri"}, "End": True}},
        }
    ],
    "ResultPath": None,
    "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "RecordFailure"}],
}
HISTORY = {
    "job_id.$": "$.job_id",
    "scene.$": "$.scene",
    "bucket.$": "$.bucket",
    "settle.$": "$.settle",
    "history.$": "$",
}
CATCH_ALL = {"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "RecordFailure"}

MUTATIONS = [
    # Fields that a route does not have
    Mutation(
        "notifier_reads_the_cause",
        put("NotifyFailure", "Parameters", "reason.$", value="$.error.Cause"),
        Expected("path", "NotifyFailure", "$.error.Cause"),
    ),
    Mutation(
        "notifier_parses_the_cause",
        put("NotifyFailure", "Parameters", "reason.$", value=REREAD_CAUSE),
        Expected("intrinsic", "NotifyFailure", "States.StringToJson"),
    ),
    Mutation(
        "fail_state_reads_the_cause",
        both(drop("Failed", "Cause"), put("Failed", "CausePath", value="$.error.Cause")),
        Expected("path", "Failed", "$.error.Cause"),
    ),
    Mutation(
        "error_is_not_a_text",
        both(drop("Failed", "Error"), put("Failed", "ErrorPath", value="$.error")),
        Expected("type", "Failed", "$.error"),
    ),
    Mutation(
        "catch_writes_elsewhere",
        put("Train", "Catch", 0, "ResultPath", value="$.failure"),
        Expected("path", "RecordFailure", "$.error"),
    ),
    Mutation(
        "catch_replaces_everything", drop("SfM", "Catch", 0, "ResultPath"), Expected("path", "RecordFailure", "$.error")
    ),
    Mutation(
        "catch_discards_the_error",
        put("Compress", "Catch", 0, "ResultPath", value=None),
        Expected("path", "RecordFailure", "$.error"),
    ),
    Mutation(
        "default_skips_the_error",
        put("UploadComplete?", "Default", value="RecordFailure"),
        Expected("path", "RecordFailure", "$.error"),
    ),
    Mutation("state_that_nothing_leads_to", _skip_malformed_answer, Expected("unreachable", "MalformedAnswer")),
    Mutation(
        "stage_that_was_skipped",
        put("Compress", "Parameters", "Payload", "sfm.$", value="$.sfm.output_uri"),
        Expected("path", "Compress", "$.sfm.output_uri"),
    ),
    Mutation(
        "answer_is_taken_for_granted",
        put("Notify", "ResultSelector", value={"id.$": "$.message_id"}),
        Expected("path", "Notify", "$.message_id"),
    ),
    Mutation(
        "wait_for_another_field",
        put("QuietPeriod", "SecondsPath", value="$.settle.quiet_s"),
        Expected("path", "QuietPeriod", "$.settle.quiet_s"),
    ),
    Mutation(
        "timeout_from_the_answer",
        both(drop("SfM", "TimeoutSeconds"), put("SfM", "TimeoutSecondsPath", value="$.validate.limit_s")),
        Expected("path", "SfM", "$.validate.limit_s"),
    ),
    Mutation(
        "heartbeat_from_the_answer",
        both(drop("SfM", "HeartbeatSeconds"), put("SfM", "HeartbeatSecondsPath", value="$.validate.beat_s")),
        Expected("path", "SfM", "$.validate.beat_s"),
    ),
    Mutation(
        "input_path_to_the_answer",
        put("Train", "InputPath", value="$.validate.options"),
        Expected("path", "Train", "$.validate.options"),
    ),
    Mutation(
        "output_path_to_nothing",
        put("Settle", "OutputPath", value="$.settle.state"),
        Expected("path", "Settle", "$.settle.state"),
    ),
    Mutation(
        "output_path_drops_the_state",
        put("Train", "OutputPath", value="$.train"),
        Expected("result-path", "Compress", "$.compress"),
    ),
    Mutation(
        "path_that_may_select_nothing",
        put("Notify", "Parameters", "uris.$", value="$..output_uri"),
        Expected("path", "Notify", "$..output_uri"),
    ),
    Mutation("map_over_an_answer", insert("SfM", "EachRejected", EACH_REJECTED), Expected("path", "EachRejected")),
    Mutation("branch_reads_a_skipped_stage", insert("Train", "Also", ALSO), Expected("path", "Look")),
    # Guards of a Choice
    Mutation(
        "guard_removed",
        guards("UploadComplete?", 0, without("IsPresent")),
        Expected("path", "UploadComplete?", "$.settle.complete"),
    ),
    Mutation(
        "guard_comes_last",
        guards("StartAt?", 1, lambda tests: list(reversed(tests))),
        Expected("path", "StartAt?", "$.validate.start_at"),
    ),
    Mutation(
        "guard_is_one_of_two",
        guards("UploadComplete?", 1, lambda tests: tests, "Or"),
        Expected("path", "UploadComplete?", "$.settle.wait_s"),
    ),
    Mutation(
        "guard_is_turned_round",
        guards("UploadComplete?", 1, lambda tests: {"And": tests}, "Not"),
        Expected("path", "WholeSeconds", "$.settle.wait_s"),
    ),
    Mutation(
        "guard_of_the_type_removed",
        guards("UploadComplete?", 1, lambda tests: tests[:1]),
        Expected("type", "QuietPeriod", "$.settle.wait_s"),
    ),
    Mutation(
        "guard_of_the_bound_removed",
        guards("UploadComplete?", 1, without("NumericGreaterThan")),
        Expected("type", "QuietPeriod", "$.settle.wait_s"),
    ),
    Mutation(
        "compared_with_a_missing_field",
        put("StartAt?", "Choices", 0, "And", 2, value={"Variable": "$.scene", "StringEqualsPath": "$.title"}),
        Expected("path", "StartAt?", "$.title"),
    ),
    Mutation("choice_without_default", drop("StartAt?", "Default"), Expected("choice-default", "StartAt?")),
    # Context Object and intrinsic functions
    Mutation(
        "token_of_a_task_without_one",
        put("Notify", "Parameters", "token.$", value="$$.Task.Token"),
        Expected("context", "Notify", "$$.Task.Token"),
    ),
    Mutation(
        "misspelt_context",
        put("Notify", "Parameters", "job_id.$", value="$$.Execution.name"),
        Expected("context", "Notify", "$$.Execution.name"),
    ),
    Mutation(
        "input_that_is_not_given",
        put("Notify", "Parameters", "email.$", value="$$.Execution.Input.email"),
        Expected("context", "Notify", "$$.Execution.Input.email"),
    ),
    Mutation(
        "item_outside_of_a_map",
        put("Notify", "Parameters", "item.$", value="$$.Map.Item.Value"),
        Expected("context", "Notify", "$$.Map.Item.Value"),
    ),
    Mutation(
        "format_of_an_object",
        put("NotifyFailure", "Parameters", "text.$", value="States.Format('{}', $.error)"),
        Expected("intrinsic", "NotifyFailure", "States.Format"),
    ),
    Mutation(
        "sum_of_anything",
        put("Notify", "Parameters", "photos.$", value="States.MathAdd($.validate, 1)"),
        Expected("intrinsic", "Notify", "States.MathAdd"),
    ),
    # ResultPath
    Mutation(
        "result_into_a_text",
        put("Validate", "ResultPath", value="$.job_id.validate"),
        Expected("result-path", "Validate", "$.job_id.validate"),
    ),
    Mutation(
        "result_into_an_answer",
        put("Train", "ResultPath", value="$.sfm.train"),
        Expected("result-path", "Train", "$.sfm.train"),
    ),
    Mutation(
        "error_into_an_answer",
        put("Notify", "Catch", 0, "ResultPath", value="$.compress.error"),
        Expected("result-path", "Notify", "$.compress.error"),
    ),
    Mutation(
        "result_replaces_the_state",
        drop("Validate", "ResultPath"),
        Expected("result-path", "MalformedAnswer", "$.error"),
    ),
    # The graph
    Mutation("next_to_nowhere", put("Compress", "Next", value="Publish"), Expected("next", "Compress", "Publish")),
    Mutation(
        "default_to_nowhere", put("StartAt?", "Default", value="Malformed"), Expected("next", "StartAt?", "Malformed")
    ),
    Mutation(
        "catch_to_nowhere",
        put("Train", "Catch", 0, "Next", value="RecordFailures"),
        Expected("next", "Train", "RecordFailures"),
    ),
    Mutation("no_way_on", drop("QuietPeriod", "Next"), Expected("next", "QuietPeriod")),
    Mutation("loop_without_a_way_out", _never_complete, Expected("no-end", "Settle")),
    # Limits and tokens
    Mutation("task_without_timeout", drop("Validate", "TimeoutSeconds"), Expected("timeout", "Validate")),
    Mutation("callback_without_heartbeat", drop("SfM", "HeartbeatSeconds"), Expected("heartbeat", "SfM")),
    Mutation(
        "heartbeat_as_long_as_the_timeout",
        put("Train", "HeartbeatSeconds", value=345600),
        Expected("heartbeat", "Train"),
    ),
    Mutation(
        "token_not_passed_on", drop("Compress", "Parameters", "Payload", "task_token.$"), Expected("token", "Compress")
    ),
    # Retry and Catch
    Mutation("task_without_catch", drop("Notify", "Catch"), Expected("catch", "Notify")),
    Mutation(
        "catch_of_one_error",
        put("SfM", "Catch", 0, "ErrorEquals", value=["States.TaskFailed"]),
        Expected("catch", "SfM"),
    ),
    Mutation(
        "failure_ends_as_success",
        both(drop("NotifyFailure", "Next"), put("NotifyFailure", "End", value=True)),
        Expected("failure-route", "Train", "RecordFailure"),
    ),
    Mutation(
        "all_before_another",
        put("SfM", "Catch", value=[CATCH_ALL, {**CATCH_ALL, "ErrorEquals": ["States.Timeout"]}]),
        Expected("states-all", "SfM"),
    ),
    Mutation(
        "all_beside_another",
        put("Train", "Catch", 0, "ErrorEquals", value=["States.Timeout", "States.ALL"]),
        Expected("states-all", "Train"),
    ),
    Mutation(
        "retry_of_what_will_fail_again",
        put("Train", "Retry", 0, "ErrorEquals", value=["Spaceport.Transient", "States.TaskFailed"]),
        Expected("retry", "Train", "States.TaskFailed"),
    ),
    Mutation(
        "runtime_errors_are_not_caught",
        put("Compress", "Catch", value=[{**CATCH_ALL, "ErrorEquals": ["States.Runtime"]}, CATCH_ALL]),
        Expected("states-runtime", "Compress"),
    ),
    # Size
    Mutation(
        "state_is_sent_twice",
        put("NotifyFailure", "Parameters", "again.$", value="$"),
        Expected("size", "NotifyFailure"),
    ),
    Mutation(
        "history_grows_in_the_loop",
        insert("QuietPeriod", "Remember", {**PASS, "Parameters": HISTORY}),
        Expected("size", "Remember"),
    ),
    Mutation("answer_without_a_bound", _rename("Validate", "Check"), Expected("size", "Check")),
    # What the language does not know
    Mutation("misspelt_field", put("QuietPeriod", "Second", value=5), Expected("definition", "QuietPeriod")),
    Mutation("exception_that_nothing_needs", drop("RecordFailure", "Retry"), Expected("exception", "RecordFailure")),
]
