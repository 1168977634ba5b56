"""What the options of the stage mean where they leave something open."""

from __future__ import annotations

from datetime import UTC, datetime

from job.options import CompressOptions


def headline(options: CompressOptions) -> str:
    return options.title or options.scene or "Scene"


def created_at(options: CompressOptions) -> datetime:
    """When the job began, in UTC where the option names no zone; now where it is not given."""
    when = options.created_at or datetime.now(UTC)
    return when if when.tzinfo else when.replace(tzinfo=UTC)
