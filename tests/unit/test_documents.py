"""What the pages name is there: links, paths, tests, make targets and benchmarks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import ROOT, benchmarks

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FOLDERS = "benchmarks|containers|deploy|docs|events|functions|requirements|spaceport|statemachine|tests"
SUFFIXES = "py|md|json|yaml|cu|h|in|txt|mk|lock|jpg|toml|j2"
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w/.$-])(?:{FOLDERS})/[\w./*-]*[\w*/]")
TEST_FILE = re.compile(r"\btest_\w+\.py\b")
TEST_NAME = re.compile(r"(?<![/\w])test_\w+\b(?!\.|/)")
TARGET = re.compile(r"(?:^|`|\$ )make ((?:[a-z][a-z-]*))", re.MULTILINE)
BENCHMARK = re.compile(r"python -m benchmarks (\w+)")
# "path": "where it comes from", of what no checkout has. An example in extending.md makes its own files.
MADE = {"containers/compress/viewer/node_modules": "npm"}


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of the headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for link in LINK.findall(text):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)
    return broken


def missing_paths(text: str) -> list[str]:
    """Paths from the repository's root; a pattern needs at least one file."""
    found = {match.rstrip(".") for match in PATH.findall(text)}
    found = {path for path in found if path.endswith("/") or re.search(rf"\.(?:{SUFFIXES})$", path)}
    return sorted(path for path in found - MADE.keys() if not any(ROOT.glob(path.rstrip("/"))))


def missing_tests(text: str, files: set[str], functions: set[str]) -> list[str]:
    missing = set(TEST_FILE.findall(text)) - files
    return sorted(missing | {name for name in TEST_NAME.findall(text) if name not in functions | TOKENS})


TOKENS = {"test_photos", "test_splat", "test_dir"}  # words that begin like a test: an option


@pytest.fixture(scope="module")
def test_sources() -> tuple[set[str], set[str]]:
    """(names of the test files, names of the test functions)."""
    files = [*(ROOT / "tests").rglob("test_*.py")]
    functions = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))}
    return {file.name for file in files}, functions | {file.stem for file in files}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_all_that_a_page_names_is_there(page: Path, test_sources: tuple[set[str], set[str]]) -> None:
    text = page.read_text(encoding="utf-8")
    own = text if page.name != "extending.md" else ""  # its examples make files; a test of their own performs them
    assert not broken_links(page, text)
    assert not missing_paths(own)
    assert not missing_tests(own, *test_sources)
    assert not set(TARGET.findall(text)) - targets()
    assert not set(BENCHMARK.findall(text)) - benchmarks().keys() - {"NAME"}


def targets() -> set[str]:
    rules = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "deploy.mk"))
    return set(" ".join(re.findall(r"^([a-z][a-z -]*):", rules, re.MULTILINE)).split())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see [x](nowhere.md)", ["nowhere.md"]),
        ("see [x](contracts.md#no-such-heading)", ["contracts.md#no-such-heading"]),
        ("see [x](contracts.md#state-machine) and [y](https://example.org/z)", []),
    ],
)
def test_a_broken_link_is_found(text: str, found: list[str]) -> None:
    assert broken_links(ROOT / "docs/page.md", text) == found


def test_a_missing_name_is_found() -> None:
    assert missing_paths("`functions/nothing.py`, `tests/unit/test_documents.py`, `spaceport/asl/`, `tests/none/`") == [
        "functions/nothing.py",
        "tests/none/",
    ]
    text = "`tests/unit/test_gone.py`, `test_documents.py`, `test_that_was_renamed`"
    assert missing_tests(text, {"test_documents.py"}, set()) == ["test_gone.py", "test_that_was_renamed"]
