"""Logger, tracer and metrics of all handlers.

Service and namespace come from the POWERTOOLS_ variables in template.yaml.
"""

from __future__ import annotations

from aws_lambda_powertools import Logger, Metrics, Tracer

logger = Logger()
tracer = Tracer()
metrics = Metrics()
