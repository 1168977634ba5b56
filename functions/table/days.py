"""Rows DAY#: what the jobs of one day may cost."""

from __future__ import annotations

from base import aws
from table import store
from table.rows import DayRow

DAY_DAYS = 30


def reserve_cost(job_id: str, usd: float, limit_usd: float) -> bool:
    """Count the job's estimate (USD) towards today's (UTC); False when the sum would pass the limit.

    The row holds the jobs that it counts, so a repeated call counts once. A job that then fails stays counted: the
    limit is for what may be spent, and the estimate is above what a job costs.
    """
    key = {"pk": f"DAY#{aws.timestamp()[:10]}"}
    if usd > limit_usd:
        return False
    if store.update(
        key,
        "SET expires_at = :expires ADD reserved_usd :usd, job_ids :job",
        {
            ":expires": store.expires_at(DAY_DAYS),
            ":usd": store.to_dynamo(usd),
            ":job": {job_id},
            ":job_id": job_id,
            ":left": store.to_dynamo(round(limit_usd - usd, 6)),
        },
        "attribute_not_exists(pk) OR (reserved_usd <= :left AND NOT contains(job_ids, :job_id))",
    ):
        return True
    day: DayRow | None = store.get(key)
    return day is not None and job_id in day["job_ids"]
