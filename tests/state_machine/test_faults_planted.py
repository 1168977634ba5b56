"""The simulator finds mistakes: each planted one must be caught."""

import pytest

from tests.state_machine.simulator.planted import BUGS, find


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name.replace(" ", "-") for bug in BUGS])
def test_planted_bug_is_caught(bug):
    assert find(bug), f"nobody notices that {bug.name}"


def test_there_are_at_least_fifteen():
    assert len({bug.edit for bug in BUGS}) == len(BUGS) >= 15
