"""The pattern language. Cases are those of the EventBridge user guide's pages on patterns and comparison operators."""

from datetime import timedelta

import pytest

from spaceport.aws.eventbridge import EventBus, PatternError, compile_pattern, schedule_seconds
from spaceport.base.clock import DEFAULT_START, VirtualClock
from spaceport.stack.template import Rule, Target

EVENT = {
    "source": "aws.ec2",
    "detail": {
        "state": "running",
        "count": 5,
        "ok": True,
        "none": None,
        "empty": "",
        "list": ["a", "b"],
        "no-items": [],
        "people": [{"name": "Ada", "age": 36}, {"name": "Bob", "age": 20}],
    },
}


@pytest.mark.parametrize(
    ("detail", "matches"),
    [
        ({"state": ["running", "stopped"]}, True),
        ({"state": ["stopped"]}, False),
        ({"state": ["Running"]}, False),
        ({"missing": ["x"]}, False),
        ({"count": [5]}, True),
        ({"count": ["5"]}, False),
        ({"ok": [True]}, True),
        ({"ok": [1]}, False),
        ({"none": [None]}, True),
        ({"missing": [None]}, False),
        ({"empty": [""]}, True),
        ({"list": ["b", "z"]}, True),
        ({"list": ["z"]}, False),
        ({"no-items": ["z"]}, False),
        ({"count": [{"prefix": "5"}]}, False),
        ({"list": [{"prefix": "b"}]}, True),
        ({"missing": {"deeper": ["x"]}}, False),
        ({"state": [{"prefix": "run"}]}, True),
        ({"state": [{"prefix": "Run"}]}, False),
        ({"people": {"name": ["Bob"]}}, True),
        ({"people": {"name": ["Eve"]}}, False),
        ({"state": ["running"], "count": [6]}, False),
    ],
)
def test_operators(detail, matches):
    assert compile_pattern({"detail": detail}).matches(EVENT) is matches


@pytest.mark.parametrize(
    "pattern",
    [
        {},
        {"source": "aws.ec2"},
        {"source": []},
        {"source": [["a"]]},
        {"source": [{}]},
        {"source": [{"prefix": "a", "suffix": "b"}]},
        {"source": [{"prefix": ""}]},
        {"source": [{"prefix": 5}]},
        {"source": [{"prefix": {"equals-ignore-case": "a"}}]},
    ],
)
def test_what_is_malformed_is_refused_at_load(pattern):
    with pytest.raises(PatternError, match="Rule1"):
        compile_pattern(pattern, "Rule1")


@pytest.mark.parametrize(
    "operator",
    ["suffix", "equals-ignore-case", "wildcard", "exists", "numeric", "anything-but", "cidr", "regex"],
)
def test_other_operators_are_refused_by_name(operator):
    with pytest.raises(PatternError, match=rf"Rule1\.source: {operator} is not supported by the embedded engine"):
        compile_pattern({"source": [{operator: "a"}]}, "Rule1")


def test_or_is_refused_by_name():
    with pytest.raises(PatternError, match=r"\$or is not supported"):
        compile_pattern({"$or": [{"source": ["a"]}, {"source": ["b"]}]}, "Rule1")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("rate(1 minute)", 60), ("rate(5 minutes)", 300), ("rate(2 hours)", 7200), ("rate(1 day)", 86400)],
)
def test_rates(text, seconds):
    assert schedule_seconds(text, "Rule1") == seconds


@pytest.mark.parametrize(
    "text", ["rate(1 minutes)", "rate(5 minute)", "rate(0 minutes)", "cron(0 12 * * ? *)", "rate(5 s)"]
)
def test_other_schedules_are_refused(text):
    with pytest.raises(PatternError, match="Rule1"):
        schedule_seconds(text, "Rule1")


def bus(rules, **options):
    clock, delivered = VirtualClock(), []
    made = EventBus(
        clock,
        rules,
        lambda target, event: delivered.append((clock.now(), target.function_arn, event)),
        lambda: "id",
        "123456789012",
        "us-east-1",
        **options,
    )
    return clock, made, delivered


def rule(pattern=None, schedule=None, input=None):
    return Rule("R", "r", "arn:rule", pattern, schedule, (Target("arn:f", input),))


def test_an_event_reaches_the_targets_of_matching_rules_once():
    clock, made, delivered = bus([rule({"source": ["x"]}), rule({"source": ["y"]}), rule({"detail": {"a": [1]}})])
    made.put("x", "Thing", {"a": 1}, ["arn:thing"])
    assert delivered == []  # not on the caller's thread
    clock.run_until_idle()
    (_, _, event), (_, _, second) = delivered
    assert event == second and event is not second
    assert event == {
        "version": "0",
        "id": "id",
        "detail-type": "Thing",
        "source": "x",
        "account": "123456789012",
        "time": "2026-01-01T00:00:00Z",
        "region": "us-east-1",
        "resources": ["arn:thing"],
        "detail": {"a": 1},
    }


def test_duplicates_on_request():
    clock, made, delivered = bus([rule({"source": ["x"]})], duplicate_events=True)
    made.put("x", "Thing", {})
    clock.run_until_idle()
    assert len(delivered) == 2 and delivered[0] == delivered[1]


def test_schedules_run_on_the_clock_until_the_bus_is_closed():
    clock, made, delivered = bus([rule(schedule="rate(5 minutes)", input={"sweep": True})])
    made.start_schedules()
    clock.advance(899)
    assert [time - DEFAULT_START for time, _, _ in delivered] == [timedelta(minutes=5), timedelta(minutes=10)]
    assert delivered[0][2] == {"sweep": True}
    made.close()
    clock.advance(3600)
    assert len(delivered) == 2


def test_put_events_answers_as_the_api_does():
    clock, made, delivered = bus([rule({"source": ["spaceport"]})])
    good = {"Source": "spaceport", "DetailType": "SceneFailed", "Detail": '{"job_id": "a"}'}
    answer = made.call(
        "PutEvents",
        {
            "Entries": [
                good,
                {**good, "Source": "aws.s3"},
                {**good, "Detail": "{"},
                {**good, "Detail": "[]"},
                {**good, "DetailType": ""},
                {**good, "EventBusName": "other"},
            ]
        },
    )
    assert answer["FailedEntryCount"] == 5
    assert [entry.get("ErrorCode") for entry in answer["Entries"]] == [
        None,
        "NotAuthorizedForSourceException",
        "MalformedDetail",
        "MalformedDetail",
        "InvalidArgument",
        "InvalidArgument",
    ]
    clock.run_until_idle()
    assert [event["detail"] for _, _, event in delivered] == [{"job_id": "a"}]
