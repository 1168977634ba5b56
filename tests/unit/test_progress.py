"""What a person sees while a job runs, on a clock that the test moves."""

import io
import itertools
import json

import pytest
from rich.console import Console

from spaceport.asl.journal import FileJournal
from spaceport.jobs.runner import Exit
from spaceport.progress import TICK_S, Display, Work, duration
from tests.unit.test_engine_in_memory import deploy, executions, upload


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


class Log(io.StringIO):
    """A plain log that notes when each line came."""

    def __init__(self, now_s):
        super().__init__()
        self.now_s = now_s
        self.lines = []

    def write(self, text):
        self.lines += [(self.now_s(), line) for line in text.splitlines() if line.strip()]
        return len(text)

    @property
    def last(self):
        return self.lines[-1][1]


class Bench:
    def __init__(self, plain=True):
        self.clock = Clock()
        self.log = Log(self.clock)
        self.display = Display(Console(file=self.log, width=200), plain, self.clock)

    def tell(self, kind, state="SfM", **fields):
        self.display({"type": kind, "time": 0.0, "state": state, "execution": "e", **fields})

    def progress(self, step, total, eta_s, message="", unit="photos"):
        self.tell("progress", step=step, total=total, eta_s=eta_s, message=message, unit=unit, stage="sfm", job_name="")

    def wait(self, seconds):
        for _ in range(round(seconds / TICK_S)):
            self.clock.seconds += TICK_S
            self.display.log.tick()


@pytest.fixture
def bench():
    return Bench()


def shown(bench):
    """The live table as text."""
    console = Console(file=io.StringIO(), width=200)
    console.print(bench.display.render())
    return console.file.getvalue()


def test_the_time_left_is_the_programs_and_runs_down(bench):
    bench.tell("state_entered")
    bench.clock.seconds += 2
    bench.progress(3, 24, 42.0, "Matching")
    assert bench.log.last == "SfM: Matching 3/24 photos (2 s, 42 s left)"
    bench.wait(10)
    assert bench.log.last == "SfM: Matching 3/24 photos (10 s, 34 s left)"
    assert "12 s  32 s left" in shown(bench) and "3/24 photos  Matching" in shown(bench)
    bench.wait(60)
    assert bench.log.last.endswith(", 0 s left)"), "a program that takes longer than it said is not negative"
    bench.progress(4, 24, None, "Matching")
    bench.wait(5)
    assert "left" not in bench.log.last


def test_a_state_that_is_entered_again_runs_again(bench):
    bench.tell("state_entered", "Settle")
    bench.clock.seconds += 1
    bench.tell("state_exited", "Settle", failed=False)
    assert bench.log.last == "Settle: done in 1 s" and "✓" in shown(bench)
    bench.wait(5)
    assert bench.log.last == "waiting for the next step"
    bench.tell("state_entered", "Settle")
    assert "✓" not in shown(bench)
    bench.wait(5)
    assert bench.log.last == "Settle: running (10 s)"  # since the first time
    bench.tell("state_exited", "Settle", failed=True)
    assert "✗" in shown(bench)


def test_waiting_for_a_retry_is_not_called_running(bench):
    bench.tell("state_entered")
    bench.tell("task_started")
    bench.progress(20, 24, 5.0, "Matching")
    bench.clock.seconds += 3
    bench.tell("retry_waited_for", error="Spaceport.Transient", wait_s=60.0)
    assert bench.log.last == "SfM: failed (Spaceport.Transient), waiting for the next try (3 s, 1 min 0 s left)"
    bench.wait(20)
    assert "waiting for the next try" in bench.log.last and bench.log.last.endswith(", 40 s left)")
    assert "waiting for the next try" in shown(bench) and "20/24" not in shown(bench)
    bench.clock.seconds += 40
    bench.tell("task_started")
    assert bench.log.last == "SfM: trying again"
    bench.wait(5)
    assert bench.log.last.startswith("SfM: running (1 min ")


def test_progress_of_a_resumed_state_is_shown(bench):
    bench.tell("state_resumed", "Train")
    bench.tell("progress", "Train", step=7, total=9, eta_s=None, message="Training", unit="iterations")
    assert bench.log.last == "Train: Training 7/9 iterations (0 s)"


def test_what_belongs_to_no_row_is_passed_by(bench):
    for kind, fields in (
        ("state_entered", {}),
        ("state_exited", {"failed": False}),
        ("task_started", {}),
        ("retry_waited_for", {"error": "", "wait_s": 1.0}),
    ):
        bench.tell(kind, "StartAt?", **fields)
    bench.display({"type": "log", "time": 0.0, "text": "a line of the engine"})
    assert bench.log.lines == [] and bench.display.rows == {}


def test_a_whole_run_with_a_retry_never_leaves_more_than_five_seconds_without_a_line():
    """Half an hour of programs that report nothing, and a minute's wait for a second try."""
    engine, stages, events = deploy()
    stages.outcomes["sfm", 0] = Exit(143)

    def now_s():
        return engine.clock.now().timestamp()

    log = Log(now_s)
    display = Display(Console(file=log, width=200), plain=True, now_s=now_s)
    engine.listener = lambda event: (events.append(event), display(event))

    def tick():
        display.log.tick()
        engine.clock.call_later(TICK_S, tick)

    with engine:
        started = now_s()
        tick()
        upload(engine)
        engine.clock.advance(3600)
        (execution,) = executions(engine)
        assert execution["status"] == "SUCCEEDED"
    times = [started, *(at for at, _ in log.lines), now_s()]
    assert max(after - before for before, after in itertools.pairwise(times)) <= 5.0
    lines = [line for _, line in log.lines]
    assert any(line.startswith("SfM: failed (Spaceport.Transient), waiting") for line in lines)
    assert lines.count("SfM: trying again") == 1
    kinds = [event["type"] for event in events if event.get("state") == "SfM"]
    assert kinds == ["state_entered", "task_started", "retry_waited_for", "task_started", "state_exited"]


def test_an_engine_that_takes_over_says_where_the_execution_is(tmp_path):
    """From the journal alone: inside SfM, whose first try has failed, with the next one due in 45 seconds."""
    engine, _, events = deploy()
    with engine:
        frame = {"frame": "0/1", "state": "SfM", "kind": "Task", "resource": "r"}
        records = [
            {"type": "started", "execution_arn": "arn"},
            {"type": "entered", "frame": "0/0", "state": "Validate"},
            {"type": "exited", "frame": "0/0", "state": "Validate"},
            {"type": "entered", **frame},
            {"type": "scheduled", **frame},
            {"type": "failed", "error": "Spaceport.Transient", **frame},
            {"type": "retry", "due_at": 1060.0, **frame},
        ]
        (tmp_path / "journal").write_text("".join(json.dumps({**record, "at": 1000.0}) + "\n" for record in records))
        journal = engine._watched(FileJournal(tmp_path / "journal"))
        events.clear()
        journal.tell_where_it_is(1015.0)
    assert [(event["type"], event["state"]) for event in events] == [
        ("state_resumed", "SfM"),
        ("retry_waited_for", "SfM"),
    ]
    assert (events[1]["error"], events[1]["wait_s"]) == ("Spaceport.Transient", 45.0)


@pytest.mark.parametrize("steps", [True, False])
def test_work_outside_of_a_run_is_never_silent_for_long(steps):
    clock = Clock()
    log = Log(clock)
    work = Work(Console(file=log, width=200), "Rendering", now_s=clock)
    for second in range(40):
        if steps and second > 30:  # the first step comes late, after compiling
            work(second - 30, 24)
        for _ in range(2):
            clock.seconds += TICK_S
            work.log.tick()
    times = [100.0, *(at for at, _ in log.lines), clock.seconds]
    assert max(after - before for before, after in itertools.pairwise(times)) <= 5.0
    assert log.lines[0][1] == "Rendering: (4 s)"
    assert log.last == ("Rendering: 9/24 (40 s)" if steps else "Rendering: (40 s)")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (80, "1 min 20 s"), (3599.6, "1 h 0 min"), (7500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
