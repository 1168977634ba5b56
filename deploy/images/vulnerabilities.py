"""Known vulnerabilities of what is in the images: a report beside each bill of materials in build/images/.

    python -m deploy.images.vulnerabilities

The bills come from `make images-test` (the GPU variant's from `make gpu-image`). The scanner is grype, on PATH; its
database comes from the network. Without one of the three there is an error and no report: nothing was looked at.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from deploy.images.build import LOGS

SCANNER = "grype"  # https://github.com/anchore/grype; reads CycloneDX, knows Debian, PyPI and npm
SUFFIX = ".cdx.json"


class NoReport(Exception):
    """The images were not scanned; the text says why."""


def scan(bill: Path) -> Path:
    """The report on one bill of materials. Raises NoReport when the scanner is missing or fails."""
    program = shutil.which(SCANNER)
    if program is None:
        raise NoReport(f"{SCANNER} is not on PATH; install it on a machine that reaches its database")
    report = bill.with_name(bill.name.removesuffix(SUFFIX) + ".vulnerabilities.json")
    report.unlink(missing_ok=True)  # a report of an earlier day must not pass for today's
    command = [program, f"sbom:{bill}", "--output", f"json={report}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    if done.returncode or not report.is_file():
        raise NoReport(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-1500:]}")
    return report


def summary(report: Path) -> str:
    """One line: how many findings of each severity."""
    matches = json.loads(report.read_text(encoding="utf-8"))["matches"]
    found = Counter(match["vulnerability"]["severity"] for match in matches)
    return f"{report}: " + (", ".join(f"{number} {name}" for name, number in found.most_common()) or "none known")


def main() -> None:
    bills = sorted(LOGS.glob(f"*{SUFFIX}"))
    if not bills:
        raise NoReport(f"there is no bill of materials in {LOGS}; run make images-test first")
    for bill in bills:
        print(summary(scan(bill)))


if __name__ == "__main__":
    try:
        main()
    except NoReport as problem:
        sys.exit(f"error: no report on vulnerabilities: {problem}")
