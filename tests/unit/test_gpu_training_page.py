"""docs/training-measured.md has the tables that are computed now."""

from benchmarks import training_floor
from benchmarks.marks import filled


def test_the_page_has_the_tables_of_today():
    page = training_floor.PAGE.read_text()
    assert filled(page, training_floor.tables()) == page


def test_a_step_moves_what_its_arrays_weigh():
    """SH and its two moments of 300,000 Gaussians, read and written once, are most of it: 2 * 3 * 57.6 MB."""
    before, after = training_floor.totals()
    assert 345.6e6 < after < before
    # The gradient by SH was set to zero, written and read, and SH was read by two kernels: 4 * 57.6 MB less.
    of_sh = [work for work in training_floor.TRAFFIC if "SH" in work.name and work.of == training_floor.GAUSSIANS]
    saved = sum(4 * ((work.before or 0) - (work.after or 0)) * work.of for work in of_sh)
    assert 0.85 * 4 * 57.6e6 < saved < 4 * 57.6e6
