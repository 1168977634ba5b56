"""Logger, tracer and metrics of all handlers.

Service and namespace come from the POWERTOOLS_ variables in template.yaml.
"""

from __future__ import annotations

from aws_lambda_powertools import Logger, Metrics, Tracer, single_metric
from aws_lambda_powertools.metrics import MetricUnit

logger = Logger()
tracer = Tracer()
metrics = Metrics()


def count_by(dimension: str, value: str, name: str, unit: MetricUnit, amount: float) -> None:
    """A metric with one dimension more than the service, such as the stage or the code of a failure."""
    with single_metric(name=name, unit=unit, value=amount, default_dimensions={dimension: value}) as metric:
        metric.add_dimension("service", metrics.provider.service)
