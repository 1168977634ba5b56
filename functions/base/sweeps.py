"""What the two sweeps share: each entry is looked after for itself, and what went wrong is told at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from base.telemetry import logger

TEXT_LIMIT = 2000


def look_after_all(names: Sequence[str], results: Sequence[Callable[[], str]], what: str) -> dict[str, str]:
    """{name: what was done}. One entry that cannot be handled, for whatever reason, must not keep the others from it.

    Raises RuntimeError when all have had their turn, so that the call counts as failed; its cause holds the errors.
    """
    done: dict[str, str] = {}
    errors: list[Exception] = []
    texts: list[str] = []
    for name, result in zip(names, results, strict=True):
        try:
            done[name] = result()
        except Exception as error:  # noqa: BLE001 - raised again below
            logger.exception("could not be looked after", extra={"entry": name})
            errors.append(error)
            texts.append(f"{name}: {type(error).__name__}: {error}")
    if errors:
        summary = f"{len(errors)} of {len(names)} {what}: {'; '.join(texts)[:TEXT_LIMIT]}"
        raise RuntimeError(summary) from ExceptionGroup(what, errors)
    return done
