"""What the stage is told about its job: who it is for, and what it has cost so far."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def or_none(text: object) -> object:
    """An empty option is a missing one."""
    return (text.strip() or None) if isinstance(text, str) else text


def iso_time(text: object) -> object:
    """ISO 8601; UTC when it names no zone. Raises ValueError."""
    if not isinstance(text, str):
        return text
    when = datetime.fromisoformat(text.strip()) if text.strip() else datetime.now(UTC)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


Usd = Annotated[Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, BeforeValidator(or_none)]
Line = Annotated[str, Field(default=""), BeforeValidator(lambda text: str(text).strip())]


class ReportOptions(BaseModel):
    """Options come as strings; those of other stages are passed by."""

    model_config = ConfigDict(extra="ignore")

    job_id: Line
    scene: Line
    title: Line
    cost_basis: Line
    created_at: Annotated[datetime, BeforeValidator(iso_time)] = Field(default_factory=lambda: datetime.now(UTC))
    estimated_usd: Usd = None
    spent_usd: Usd = None
    price_usd_per_hour: Usd = None

    @property
    def headline(self) -> str:
        return self.title or self.scene or "Scene"
