"""`python -m benchmarks NAME`: each command can be started, and each kept result has its page and its command."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import runpy
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import pytest

from benchmarks.__main__ import ROOT, benchmarks
from benchmarks.recording import RESULTS

PAGES = ["README.md", *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").glob("*.md")))]


def usage(name: str) -> str:
    """What `python -m benchmarks NAME --help` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), mock.patch.object(sys, "argv", [name, "--help"]):
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        except SystemExit as end:
            return out.getvalue() if end.code in (0, None) else f"exit {end.code}"
    return "it went on after --help"


def test_each_benchmark_says_how_it_is_used() -> None:
    # A pool of processes: a subprocess each would import numba each time. None of them may change this process.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = dict(zip(benchmarks(), pool.map(usage, benchmarks()), strict=True))
    assert not {name: text for name, text in found.items() if not text.startswith("usage: ")}


def test_the_command_sets_the_search_path() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "cost", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout[:6]) == (0, "usage:"), done.stderr


def test_an_unknown_name_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nothing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "there is no benchmark 'nothing'" in done.stderr


@pytest.mark.parametrize("file", sorted(path.name for path in RESULTS.glob("*.json")))
def test_each_result_is_named_by_a_page_and_has_a_command(file: str) -> None:
    assert any(file in (ROOT / page).read_text(encoding="utf-8") for page in PAGES), "no page names it"
    words = json.loads((RESULTS / file).read_text(encoding="utf-8"))["command"].split()
    assert words[:3] == ["python", "-m", "benchmarks"]
    assert words[3] in benchmarks()
