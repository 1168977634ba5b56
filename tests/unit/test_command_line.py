"""The `spaceport` command itself: signals, exit statuses and what it prints; the runs behind it are stand-ins."""

import importlib.metadata
import json
import os
import signal
from typing import NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from spaceport import cli, local_run, machine, view
from spaceport.stack.job_options import local_options
from uploads.options import JobOptions, NotLocal, find_mark, parse_options


class Usage(NamedTuple):
    """What shutil.disk_usage answers, as far as it is read."""

    free: int


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def follow(outcome, out, open_page=False):
    """cli.follow with a run that ends with ``outcome``, or does what it says."""
    cli.follow(lambda listener, stop: outcome(stop) if callable(outcome) else outcome, out, open_page)


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_the_page_of_open_ends_at_the_first_ctrl_c(monkeypatch, out):
    before, seen = handlers(), []
    monkeypatch.setattr(view, "show", lambda folder: seen.append((folder, handlers())))
    follow(local_run.Outcome("SUCCEEDED", "job"), out, open_page=True)
    assert seen == [(out, before)]


def test_signal_handlers_are_put_back_after_an_error_too(out, capsys):
    before = handlers()

    def fail(stop):
        assert handlers() != before
        raise local_run.LocalRunError("no disk for [b]/photos " + "x" * 200)

    with pytest.raises(typer.Exit) as caught:
        follow(fail, out)
    assert caught.value.exit_code == 2 and handlers() == before
    told = "no disk for [b]/photos " + "x" * 200 + "\n"
    assert capsys.readouterr().out == told, "to be copied: neither cut nor styled"


@pytest.mark.parametrize(("status", "exit_status"), [("STOPPED", cli.INTERRUPTED_EXIT_STATUS), ("SUCCEEDED", 0)])
def test_ctrl_c_stops_the_run_unless_it_was_just_over(monkeypatch, out, capsys, status, exit_status):
    stopped = []
    monkeypatch.setattr(view, "show", lambda folder: pytest.fail("nobody waits for the page any more"))

    def interrupted(stop):
        os.kill(os.getpid(), signal.SIGINT)
        stopped.append(stop.is_set())
        return local_run.Outcome(status, "job")

    if exit_status:
        with pytest.raises(typer.Exit) as caught:
            follow(interrupted, out, open_page=True)
        assert caught.value.exit_code == exit_status
    else:
        follow(interrupted, out, open_page=True)
    assert stopped == [True]
    assert ("spaceport resume" in capsys.readouterr().out) == (status == "STOPPED")


@pytest.mark.parametrize(
    ("words", "given"),
    [([], None), (["--test-photos"], True), (["--no-test-photos"], False)],
)
def test_options_of_the_run_are_those_that_were_given(monkeypatch, tmp_path, out, words, given):
    runs = []

    def run(photos, folder, options, listener, jobs_dir, stop):
        runs.append((photos, folder, options))
        return local_run.Outcome("SUCCEEDED", "job")

    monkeypatch.setattr(local_run, "run", run)
    answer = CliRunner().invoke(cli.app, ["run", str(tmp_path), "--out", str(out), "--sh-degree", "2", *words])
    assert answer.exit_code == 0, answer.output
    expected = {"preset": "standard", "sh_degree": 2, **({} if given is None else {"test_photos": given})}
    assert runs == [(tmp_path, out, expected)]
    assert parse_options(json.dumps({**expected, "ready": True}).encode()).test_photos is given


@pytest.mark.parametrize(
    ("words", "flag", "told"),
    [
        (["--max-gaussians", "999"], "--max-gaussians", "1000"),
        (["--max-image-long-side", "319"], "--max-image-long-side", "320"),
        (["--max-training-seconds", "0.5"], "--max-training-seconds", "1"),
        (["--max-cost-usd", "0"], "--max-cost-usd", "minimum of 0"),
        (["--max-cost-usd", "nan"], "--max-cost-usd", "not a number"),
        (["--preset", "best"], "--preset", "draft"),
        (["--matcher", "fancy"], "--matcher", "exhaustive"),
        (["--email", "nobody"], "--email", "'nobody' is not valid"),
        (["--title", "two\nlines"], "--title", "not valid"),
        (["--title", "x" * 121], "--title", "too long"),
        (["--ready"], "--ready", "No such option"),
        (["--start-at", "train"], "--start-at", "No such option"),
    ],
)
def test_an_option_outside_its_limits_is_refused_at_the_door(monkeypatch, tmp_path, out, words, flag, told):
    monkeypatch.setattr(local_run, "run", lambda *_, **__: pytest.fail("it was let in"))
    answer = CliRunner().invoke(cli.app, ["run", str(tmp_path), "--out", str(out), *words], env={"COLUMNS": "400"})
    assert answer.exit_code == 2
    assert flag in answer.output and told in answer.output


@pytest.mark.parametrize("option", local_options(), ids=lambda option: option.name)
def test_every_option_of_a_job_is_a_flag_with_its_meaning(option):
    field = JobOptions.model_fields[option.name]
    shown = CliRunner().invoke(cli.app, ["run", "--help"], env={"COLUMNS": "400"}).output
    assert option.flag in shown and field.description in shown
    assert find_mark(field, NotLocal) is None


def test_a_failure_is_printed_as_it_is(capsys):
    cli.report(local_run.Outcome("FAILED", "job", error_code="BAD_OPTION", reason="[red]x is unknown[/]"), None)
    assert capsys.readouterr().out == "FAILED BAD_OPTION: [red]x is unknown[/]\n"


def test_sample_copies_the_photos_and_their_poses(tmp_path):
    answer = CliRunner().invoke(cli.app, ["sample", str(tmp_path / "p")])
    assert "24 photos in" in answer.output
    names = sorted(file.name for file in (tmp_path / "p").iterdir())
    assert names == [*(f"photo_{number:03d}.jpg" for number in range(1, 25)), "truth.json"]


def test_survey_names_what_decides_about_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "memory_gib", lambda: 2.0)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: Usage(free=6 * 2**30))
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    found = {finding.what: finding for finding in machine.survey(tmp_path)}
    assert list(found)[:5] == ["Python", "Processor", "Memory", "Free disk", "GPU"]
    assert f"{machine.cores()} cores" in found["Processor"].value
    assert found["Compiled kernels"].ok and found["Compiled kernels"].value
    assert (found["Memory"].ok, found["Memory"].value) == (False, "2.0 GiB") and "smaller preset" in found[
        "Memory"
    ].advice
    assert (found["Free disk"].ok, found["Free disk"].value, found["Free disk"].advice) == (True, "6.0 GiB", "")
    assert found["GPU"].ok and "training runs on the CPU" in found["GPU"].value
    assert {"numpy", "pycolmap"} <= set(found) and found["numpy"].value == importlib.metadata.version("numpy")


def test_a_small_disk_and_a_gpu_without_its_packages_have_advice(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034 MiB'\n")
    smi.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(smi))
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: Usage(free=2**30))
    found = {finding.what: finding for finding in machine.survey(tmp_path)}
    assert (found["GPU"].ok, found["GPU"].value) == (False, "NVIDIA L4, 23034 MiB")
    assert "torch and gsplat missing" in found["GPU"].advice
    assert not found["Free disk"].ok and found["Free disk"].advice == "free some space"


def test_check_prints_every_finding_with_its_advice(monkeypatch, tmp_path):
    findings = [machine.Finding("Python", "3.11"), machine.Finding("GPU", "none", ok=False, advice="buy one")]
    monkeypatch.setattr(machine, "survey", lambda folder: findings)
    lines = CliRunner().invoke(cli.app, ["check", str(tmp_path)]).output.splitlines()
    assert [line.split() for line in lines] == [["✓", "Python", "3.11"], ["!", "GPU", "none", "buy", "one"]]


def test_check_compile_fails_with_the_programs_own_words(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "compile_kernels", raise_runtime_error)
    answer = CliRunner().invoke(cli.app, ["check", str(tmp_path), "--compile"])
    assert answer.exit_code == 1
    assert answer.output.splitlines() == ["Compiling kernels, once …", "-m train cannot start:", "no [llvm]"]


def raise_runtime_error():
    raise RuntimeError("-m train cannot start:\nno [llvm]")
