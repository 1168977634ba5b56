"""What `make contracts` writes is up to date."""

from __future__ import annotations

import pytest

from deploy import contracts


def test_written_files_are_current():
    assert contracts.outdated() == [], "run: make contracts"


@pytest.mark.parametrize("name", contracts.contracts())
def test_a_file_that_was_edited_by_hand_is_seen(name, tmp_path):
    for path, text in contracts.contracts().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert contracts.outdated(tmp_path) == []
    (tmp_path / name).write_text(contracts.contracts()[name] + "\n")
    assert contracts.outdated(tmp_path) == [name]
