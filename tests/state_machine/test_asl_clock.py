"""The two clocks: order, cancelling, threads, and errors that are not swallowed."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from spaceport.asl.stepfunctions import StepFunctions
from spaceport.asl.tasks import TaskOk
from spaceport.base.clock import RealClock, VirtualClock

START = datetime(2026, 1, 1, tzinfo=UTC)


def fail():
    raise ZeroDivisionError


def test_virtual_clock_runs_by_time_and_then_by_order():
    clock, seen = VirtualClock(START), []

    def first():
        seen.append("1")
        clock.call_soon(lambda: seen.append("soon"))

    clock.call_later(5, lambda: seen.append("5a"))
    clock.call_later(1, first)
    clock.call_later(5, lambda: seen.append("5b"))
    clock.call_soon(lambda: seen.append("0"))
    clock.call_later(-3, lambda: seen.append("past"))
    assert clock.next_due() == START
    assert clock.run_until_idle() == 6
    assert seen == ["0", "past", "1", "soon", "5a", "5b"]
    assert clock.now() == START + timedelta(seconds=5)
    assert clock.next_due() is None


def test_virtual_clock_advances_exactly_and_skips_cancelled_timers():
    clock, seen = VirtualClock(START), []
    timer = clock.call_later(10, lambda: seen.append("cancelled"))
    clock.call_later(20, lambda: seen.append("20"))
    timer.cancel()
    timer.cancel()
    assert clock.next_due() == START + timedelta(seconds=20)
    assert clock.advance(19.5) == 0
    assert clock.now() == START + timedelta(seconds=19.5)
    assert clock.advance(0.5) == 1
    assert seen == ["20"]


def test_virtual_clock_keeps_what_is_left_after_an_exception_and_ends_endless_loops():
    clock, seen = VirtualClock(START), []
    clock.call_soon(fail)
    clock.call_soon(lambda: seen.append(1))
    with pytest.raises(ZeroDivisionError):
        clock.run_until_idle()
    clock.run_until_idle()
    assert seen == [1]

    def again():
        clock.call_soon(again)

    again()
    with pytest.raises(RuntimeError, match="still busy after 100"):
        clock.run_until_idle(max_callbacks=100)


def test_virtual_clock_wants_a_time_zone():
    with pytest.raises(ValueError, match="time zone"):
        VirtualClock(datetime(2026, 1, 1))


def test_real_clock_runs_callbacks_of_many_threads_on_one():
    ran_on, done = set(), threading.Event()
    count = iter(range(1, 101))

    def callback():
        ran_on.add(threading.current_thread().name)
        if next(count) == 100:
            done.set()

    with RealClock() as clock:
        threads = [threading.Thread(target=lambda: [clock.call_soon(callback) for _ in range(10)]) for _ in range(10)]
        for thread in threads:
            thread.start()
        assert done.wait(10)
    assert ran_on == {"spaceport-clock"}


def test_real_clock_keeps_the_order_of_timers_and_cancels():
    seen, done = [], threading.Event()
    with RealClock() as clock:
        clock.call_later(0.05, lambda: seen.append("later"))
        clock.call_later(0.06, done.set)
        clock.call_later(0.01, lambda: seen.append("cancelled")).cancel()
        clock.call_later(0.02, lambda: seen.append("sooner"))
        assert done.wait(10)
    assert seen == ["sooner", "later"]


def test_real_clock_raises_errors_on_stop_and_goes_on_meanwhile(capsys):
    clock, done = RealClock().start(), threading.Event()
    clock.call_soon(fail)
    clock.call_soon(done.set)
    assert done.wait(10)
    with pytest.raises(BaseExceptionGroup) as caught:
        clock.stop()
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_real_clock_hands_errors_to_its_handler():
    errors: list[BaseException] = []
    done = threading.Event()
    with RealClock(on_error=errors.append) as clock:
        clock.call_soon(fail)
        clock.call_soon(done.set)
        assert done.wait(10)
    assert [type(error) for error in errors] == [ZeroDivisionError]


def test_an_execution_on_the_real_clock_with_tasks_on_other_threads():
    class Threads:
        def invoke(self, resource, payload, on_done, timeout_s):
            # The answer of the token comes from another thread, maybe before this call's own answer.
            threading.Thread(target=lambda: sfn.send_task_success(payload["token"], '"done"')).start()
            threading.Thread(target=lambda: on_done(TaskOk(None))).start()

    ended, changes = threading.Event(), []

    def changed(detail):
        changes.append((detail["status"], sfn.describe_execution(detail["executionArn"])["status"]))
        if detail["status"] != "RUNNING":
            ended.set()

    machine = "arn:aws:states:us-east-1:123456789012:stateMachine:m"
    with RealClock() as clock:
        sfn = StepFunctions(clock, Threads(), on_status_change=changed)
        resource = "arn:aws:states:::lambda:invoke.waitForTaskToken"
        state = {"Type": "Task", "Resource": resource, "Parameters": {"token.$": "$$.Task.Token"}, "End": True}
        sfn.create_state_machine(machine, {"StartAt": "A", "States": {"A": state}})
        arn = sfn.start_execution(machine, "run")
        assert ended.wait(10)
    assert sfn.describe_execution(arn)["output"] == '"done"'
    assert [status for status, _ in changes] == ["RUNNING", "SUCCEEDED"]
