"""The `spaceport` command itself: signals, exit statuses and what it prints; the runs behind it are stand-ins."""

import os
import signal

import pytest
import typer

from spaceport import cli, local_run, view


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def follow(outcome, out, open_page=False):
    """cli.follow with a run that ends with ``outcome``, or does what it says."""
    cli.follow(lambda listener: outcome() if callable(outcome) else outcome, out, open_page)


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_the_page_of_open_ends_at_the_first_ctrl_c(monkeypatch, out):
    before, seen = handlers(), []
    monkeypatch.setattr(view, "show", lambda folder: seen.append((folder, handlers())))
    follow(local_run.Outcome("SUCCEEDED", "job"), out, open_page=True)
    assert seen == [(out, before)]


def test_signal_handlers_are_put_back_after_an_error_too(out):
    before = handlers()

    def fail():
        assert handlers() != before
        raise local_run.LocalRunError("no disk")

    with pytest.raises(typer.Exit) as caught:
        follow(fail, out)
    assert caught.value.exit_code == 2 and handlers() == before


@pytest.mark.parametrize(("status", "exit_status"), [("STOPPED", cli.INTERRUPTED_EXIT_STATUS), ("SUCCEEDED", 0)])
def test_ctrl_c_stops_the_run_unless_it_was_just_over(monkeypatch, out, capsys, status, exit_status):
    stopped = []
    monkeypatch.setattr(local_run, "stop", lambda: stopped.append(1))
    monkeypatch.setattr(view, "show", lambda folder: pytest.fail("nobody waits for the page any more"))

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        return local_run.Outcome(status, "job")

    if exit_status:
        with pytest.raises(typer.Exit) as caught:
            follow(interrupted, out, open_page=True)
        assert caught.value.exit_code == exit_status
    else:
        follow(interrupted, out, open_page=True)
    assert stopped == [1]
    assert ("spaceport resume" in capsys.readouterr().out) == (status == "STOPPED")
