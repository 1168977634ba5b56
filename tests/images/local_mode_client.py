"""Runs in the SDK's own environment: gives one request to the SageMaker SDK's local mode.

    python local_mode_client.py OPERATION REQUEST.json ROOT

Prints one JSON line, ``{"ended": "Completed" | "Failed", "error": text}``; what the container prints comes before it.
"""

import json
import sys
from pathlib import Path

import boto3
from sagemaker.core.local import LocalSession  # type: ignore[import-not-found]

HARDENING = {
    "read_only": True,
    "tmpfs": ["/tmp:exec", "/opt/ml"],  # local mode mounts folders below /opt/ml, not all of it
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "mem_limit": "4g",
    "pids_limit": 4096,
}


def main(operation: str, request_file: str, root: str) -> None:
    session = LocalSession(boto_session=boto3.Session())
    session.config = {"local": {"container_root": root, "container_config": HARDENING}}
    request = json.loads(Path(request_file).read_text())
    try:
        getattr(session.sagemaker_client, operation)(**request)
    except RuntimeError as error:
        answer = {"ended": "Failed", "error": str(error)}
    else:
        answer = {"ended": "Completed", "error": ""}
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
