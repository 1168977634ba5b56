"""The real pipeline, broken on purpose: each mutation makes one mistake and names the finding that must report it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

Definition = dict[str, Any]
Edit = Callable[[dict[str, Any]], None]  # changes "States" in place


class Mutation(NamedTuple):
    """A mistake, and what the finding begins with: its rule, state and (where it has one) path."""

    name: str
    finding: str
    edit: Edit


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
        "path NotifyFailure $.error.Cause",
        put("NotifyFailure", "Parameters", "reason.$", value="$.error.Cause"),
    ),
    Mutation(
        "notifier_parses_the_cause",
        "definition NotifyFailure",
        put("NotifyFailure", "Parameters", "reason.$", value="States.StringToJson($.error.Cause)"),
    ),
    Mutation(
        "fail_state_reads_the_cause",
        "definition Failed",
        both(drop("Failed", "Cause"), put("Failed", "CausePath", value="$.error.Cause")),
    ),
    Mutation(
        "error_is_not_a_text",
        "definition Failed",
        both(drop("Failed", "Error"), put("Failed", "ErrorPath", value="$.error")),
    ),
    Mutation(
        "catch_writes_elsewhere",
        "path RecordFailure $.error",
        put("Train", "Catch", 0, "ResultPath", value="$.failure"),
    ),
    Mutation("catch_replaces_everything", "path RecordFailure $.error", drop("SfM", "Catch", 0, "ResultPath")),
    Mutation(
        "catch_discards_the_error", "path RecordFailure $.error", put("Compress", "Catch", 0, "ResultPath", value=None)
    ),
    Mutation(
        "default_skips_the_error",
        "path RecordFailure $.error",
        put("UploadComplete?", "Default", value="RecordFailure"),
    ),
    Mutation("state_that_nothing_leads_to", "unreachable MalformedAnswer", _skip_malformed_answer),
    Mutation(
        "stage_that_was_skipped",
        "path Compress $.sfm.output_uri",
        put("Compress", "Parameters", "Payload", "sfm.$", value="$.sfm.output_uri"),
    ),
    Mutation(
        "answer_is_taken_for_granted",
        "path Notify $.message_id",
        put("Notify", "ResultSelector", value={"id.$": "$.message_id"}),
    ),
    Mutation(
        "wait_for_another_field",
        "path QuietPeriod $.settle.quiet_s",
        put("QuietPeriod", "SecondsPath", value="$.settle.quiet_s"),
    ),
    Mutation(
        "timeout_from_the_answer",
        "definition SfM",
        both(drop("SfM", "TimeoutSeconds"), put("SfM", "TimeoutSecondsPath", value="$.validate.limit_s")),
    ),
    Mutation(
        "heartbeat_from_the_answer",
        "definition SfM",
        both(drop("SfM", "HeartbeatSeconds"), put("SfM", "HeartbeatSecondsPath", value="$.validate.beat_s")),
    ),
    Mutation("input_path_to_the_answer", "definition Train", put("Train", "InputPath", value="$.validate.options")),
    Mutation("output_path_to_nothing", "definition Settle", put("Settle", "OutputPath", value="$.settle.state")),
    Mutation("output_path_drops_the_state", "definition Train", put("Train", "OutputPath", value="$.train")),
    Mutation(
        "path_that_may_select_nothing",
        "definition Notify",
        put("Notify", "Parameters", "uris.$", value="$..output_uri"),
    ),
    Mutation("map_over_an_answer", "path EachRejected", insert("SfM", "EachRejected", EACH_REJECTED)),
    Mutation("branch_reads_a_skipped_stage", "path Look", insert("Train", "Also", ALSO)),
    # Guards of a Choice
    Mutation(
        "guard_removed", "path UploadComplete? $.settle.complete", guards("UploadComplete?", 0, without("IsPresent"))
    ),
    Mutation(
        "guard_comes_last",
        "path StartAt? $.validate.start_at",
        guards("StartAt?", 1, lambda tests: list(reversed(tests))),
    ),
    Mutation(
        "guard_is_one_of_two", "definition UploadComplete?", guards("UploadComplete?", 1, lambda tests: tests, "Or")
    ),
    Mutation(
        "guard_is_turned_round",
        "path WholeSeconds $.settle.wait_s",
        guards("UploadComplete?", 1, lambda tests: {"And": tests}, "Not"),
    ),
    Mutation(
        "guard_of_the_type_removed",
        "type QuietPeriod $.settle.wait_s",
        guards("UploadComplete?", 1, lambda tests: tests[:1]),
    ),
    Mutation(
        "guard_of_the_bound_removed",
        "type QuietPeriod $.settle.wait_s",
        guards("UploadComplete?", 1, without("NumericGreaterThan")),
    ),
    Mutation(
        "compared_with_a_missing_field",
        "definition StartAt?",
        put("StartAt?", "Choices", 0, "And", 2, value={"Variable": "$.scene", "StringEqualsPath": "$.title"}),
    ),
    Mutation("choice_without_default", "choice-default StartAt?", drop("StartAt?", "Default")),
    # Context Object and intrinsic functions
    Mutation(
        "token_of_a_task_without_one",
        "context Notify $$.Task.Token",
        put("Notify", "Parameters", "token.$", value="$$.Task.Token"),
    ),
    Mutation(
        "misspelt_context", "definition Notify", put("Notify", "Parameters", "job_id.$", value="$$.Execution.name")
    ),
    Mutation(
        "input_that_is_not_given",
        "context Notify $$.Execution.Input.email",
        put("Notify", "Parameters", "email.$", value="$$.Execution.Input.email"),
    ),
    Mutation(
        "item_outside_of_a_map",
        "context Notify $$.Map.Item.Value",
        put("Notify", "Parameters", "item.$", value="$$.Map.Item.Value"),
    ),
    Mutation(
        "format_of_an_object",
        "intrinsic NotifyFailure States.Format",
        put("NotifyFailure", "Parameters", "text.$", value="States.Format('{}', $.error)"),
    ),
    Mutation(
        "sum_of_anything",
        "intrinsic Notify States.MathAdd",
        put("Notify", "Parameters", "photos.$", value="States.MathAdd($.validate, 1)"),
    ),
    # ResultPath
    Mutation(
        "result_into_a_text",
        "result-path Validate $.job_id.validate",
        put("Validate", "ResultPath", value="$.job_id.validate"),
    ),
    Mutation("result_into_an_answer", "result-path Train $.sfm.train", put("Train", "ResultPath", value="$.sfm.train")),
    Mutation(
        "error_into_an_answer",
        "result-path Notify $.compress.error",
        put("Notify", "Catch", 0, "ResultPath", value="$.compress.error"),
    ),
    Mutation("result_replaces_the_state", "result-path MalformedAnswer $.error", drop("Validate", "ResultPath")),
    # The graph
    Mutation("next_to_nowhere", "next Compress Publish", put("Compress", "Next", value="Publish")),
    Mutation("default_to_nowhere", "next StartAt? Malformed", put("StartAt?", "Default", value="Malformed")),
    Mutation("catch_to_nowhere", "next Train RecordFailures", put("Train", "Catch", 0, "Next", value="RecordFailures")),
    Mutation("no_way_on", "next QuietPeriod", drop("QuietPeriod", "Next")),
    Mutation("loop_without_a_way_out", "no-end Settle", _never_complete),
    # Limits and tokens
    Mutation("task_without_timeout", "timeout Validate", drop("Validate", "TimeoutSeconds")),
    Mutation("callback_without_heartbeat", "heartbeat SfM", drop("SfM", "HeartbeatSeconds")),
    Mutation("heartbeat_as_long_as_the_timeout", "definition Train", put("Train", "HeartbeatSeconds", value=345600)),
    Mutation("token_not_passed_on", "token Compress", drop("Compress", "Parameters", "Payload", "task_token.$")),
    # Retry and Catch
    Mutation("task_without_catch", "catch Notify", drop("Notify", "Catch")),
    Mutation("catch_of_one_error", "catch SfM", put("SfM", "Catch", 0, "ErrorEquals", value=["States.TaskFailed"])),
    Mutation(
        "failure_ends_as_success",
        "failure-route Train RecordFailure",
        both(drop("NotifyFailure", "Next"), put("NotifyFailure", "End", value=True)),
    ),
    Mutation(
        "all_before_another",
        "states-all SfM",
        put("SfM", "Catch", value=[CATCH_ALL, {**CATCH_ALL, "ErrorEquals": ["States.Timeout"]}]),
    ),
    Mutation(
        "all_beside_another",
        "states-all Train",
        put("Train", "Catch", 0, "ErrorEquals", value=["States.Timeout", "States.ALL"]),
    ),
    Mutation(
        "retry_of_what_will_fail_again",
        "retry Train States.TaskFailed",
        put("Train", "Retry", 0, "ErrorEquals", value=["Spaceport.Transient", "States.TaskFailed"]),
    ),
    Mutation(
        "runtime_errors_are_not_caught",
        "states-runtime Compress",
        put("Compress", "Catch", value=[{**CATCH_ALL, "ErrorEquals": ["States.Runtime"]}, CATCH_ALL]),
    ),
    # Size
    Mutation("state_is_sent_twice", "size NotifyFailure", put("NotifyFailure", "Parameters", "again.$", value="$")),
    Mutation(
        "history_grows_in_the_loop", "size Remember", insert("QuietPeriod", "Remember", {**PASS, "Parameters": HISTORY})
    ),
    Mutation("answer_without_a_bound", "size Check", _rename("Validate", "Check")),
    # What the language does not know
    Mutation("misspelt_field", "definition QuietPeriod", put("QuietPeriod", "Second", value=5)),
    Mutation("exception_that_nothing_needs", "exception RecordFailure", drop("RecordFailure", "Retry")),
]
