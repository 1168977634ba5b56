"""Say which account and region will be deployed to, before anything is built: python -m deploy.account.

Ends with 1 and says what is missing where there are no credentials, no region, or credentials that AWS refuses.
"""

from __future__ import annotations

import sys

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

QUICK = Config(connect_timeout=10, retries={"total_max_attempts": 2})
NO_CREDENTIALS = (
    "no AWS credentials are set. Run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and "
    "AWS_SESSION_TOKEN), or AWS_PROFILE; they need the rights to make roles, buckets and functions."
)
NO_REGION = "no AWS region is set. Run `aws configure set region eu-central-1`, or set AWS_DEFAULT_REGION."


def main() -> None:
    try:
        session = boto3.Session()
        if session.get_credentials() is None:
            sys.exit(f"error: {NO_CREDENTIALS}")
        if session.region_name is None:
            sys.exit(f"error: {NO_REGION}")
        account = session.client("sts", config=QUICK).get_caller_identity()["Account"]
    except (BotoCoreError, ClientError) as problem:
        sys.exit(f"error: the credentials could not be used: {problem}")
    print(f"deploying to account {account} in {session.region_name}")


if __name__ == "__main__":
    main()
