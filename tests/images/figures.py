"""What the image tests saw, as docs/images.md: the table of cases, build times and sizes, licences."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from deploy.images.build import Built

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass
class Case:
    stage: str
    case: str
    exit_status: int
    text: str  # what the user is told, or what was seen
    seconds: float


@dataclass
class Figures:
    base: str = ""
    builds: dict[str, tuple[Built, Built]] = field(default_factory=dict)  # first and second build
    cases: list[Case] = field(default_factory=list)

    def add(self, stage: str, case: str, exit_status: int, text: str, seconds: float) -> None:
        self.cases.append(Case(stage, case, exit_status, " ".join(text.split()), seconds))

    def markdown(self) -> str:
        lines = [
            BEGIN,
            f"Measured {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, by `make images-test`. Base: {self.base}.",
            "",
        ]
        lines += ["| image | build | of which layers from cache | again | size |", "| --- | --- | --- | --- | --- |"]
        for stage, (first, again) in sorted(self.builds.items()):
            cached = f"{first.steps_cached} of {first.steps + first.steps_cached}"
            size = f"{first.size_bytes / 1e6:.0f} MB"
            lines.append(f"| {stage} | {first.seconds:.1f} s | {cached} | {again.seconds:.1f} s | {size} |")
        lines += ["", "| image | case | exit code | message | time |", "| --- | --- | --- | --- | --- |"]
        for case in sorted(self.cases, key=lambda case: (case.stage, case.case)):
            text = case.text.replace("|", "\\|")
            lines.append(f"| {case.stage} | {case.case} | {case.exit_status} | {text} | {case.seconds:.1f} s |")
        return "\n".join([*lines, END])

    def write(self, root: Path, whole: bool) -> str:
        """The tables alone to build/images/; into docs/images.md when asked for and ``whole``: every test has passed.

        Returns what is wrong with the page, or nothing: cases that it lacks, and if ``whole`` those that are no more.
        """
        target = root / "build" / "images" / "images.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self.markdown() + "\n", encoding="utf-8")
        page = root / "docs" / "images.md"
        head, rest = page.read_text(encoding="utf-8").split(BEGIN)
        measured, tail = rest.split(END)
        if os.environ.get("SPACEPORT_WRITE_DOCS") == "1":
            if not whole:
                return f"{page} was not written: some tests were left out, or have not passed"
            page.write_text(head + self.markdown() + tail, encoding="utf-8")
            return ""
        shown, seen = cases_of(measured), cases_of(self.markdown())
        wrong = [
            *(f"lacks {case}" for case in seen - shown),
            *(f"has {case} too much" for case in shown - seen if whole),
        ]
        write = "SPACEPORT_WRITE_DOCS=1 make images-test writes it anew"
        return f"{page} {', '.join(sorted(wrong))}; {write}" if wrong else ""


def cases_of(text: str) -> set[tuple[str, str]]:
    """(image, case) of each row of the table of cases."""
    return {(stage, case) for stage, case in re.findall(r"^\| ([^|]+) \| ([^|]+) \| -?\d+ \|", text, re.MULTILINE)}
