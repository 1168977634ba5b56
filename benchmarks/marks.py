"""Parts of a page that a program computes: they stand between <!-- mark --> and <!-- /mark -->, lines of their own."""

from __future__ import annotations


def between(page: str, mark: str) -> tuple[str, str, str]:
    """(up to the part, the part, from its end on). Raises ValueError where the page has no such part."""
    start, end = f"<!-- {mark} -->\n", f"\n<!-- /{mark} -->"
    before, found, rest = page.partition(start)
    inside, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the page has no part from {start.strip()} to {end.strip()}")
    return before + start, inside, end + after


def filled(page: str, parts: dict[str, str]) -> str:
    """The page with these parts, by mark. Raises ValueError where one of them has no place."""
    for mark, text in parts.items():
        before, _, after = between(page, mark)
        page = before + text + after
    return page
