"""`make vulnerabilities` never passes by not looking."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.images import vulnerabilities
from deploy.images.vulnerabilities import NoReport, scan, summary


@pytest.fixture
def bill(tmp_path: Path) -> Path:
    path = tmp_path / "train.cdx.json"
    path.write_text("{}")
    (tmp_path / "train.vulnerabilities.json").write_text("of an earlier day")
    return path


def put_scanner(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "grype").write_text("#!/bin/sh\n" + program)
    (folder / "grype").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_no_scanner(bill: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bill.parent))
    with pytest.raises(NoReport, match="not on PATH"):
        scan(bill)


def test_no_bill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulnerabilities, "LOGS", tmp_path)
    with pytest.raises(NoReport, match="images-test"):
        vulnerabilities.main()


@pytest.mark.parametrize("end", [1, 0])
def test_scanner_without_its_database(end: int, bill: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_scanner(bill.parent, f"echo failed to load vulnerability db >&2; exit {end}\n", monkeypatch)
    with pytest.raises(NoReport, match="failed to load vulnerability db"):
        scan(bill)
    assert not (bill.parent / "train.vulnerabilities.json").exists()


def test_report(bill: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scanner is asked for JSON on this bill; its findings are counted by severity."""
    found = '{"matches": [{"vulnerability": {"id": "CVE-2026-1", "severity": "High"}}]}'
    put_scanner(bill.parent, f"[ $1 = sbom:{bill} ] && echo '{found}' > ${{3#json=}}\n", monkeypatch)
    report = scan(bill)
    assert report == bill.parent / "train.vulnerabilities.json"
    assert summary(report) == f"{report}: 1 High"
