"""`make deploy` against the local endpoint, in a clean clone and in a folder that `spaceport deploy --print` wrote.

Only building and pushing the images is played.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from spaceport.stack.deploy_files import write_deploy_files
from tests.deploy.environments import ROOT, clean_environment, run
from tests.deploy.stack import CERTIFICATE, KEYS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STACK = "spaceport-dev"  # samconfig.toml, environment dev
# Notes each call of a tool and goes on with the real one; what would build images only says what it has built.
TOOL = """#!/bin/sh
echo "{name} $*" >> {log}
case "$2" in deploy.push_images) shift; exec {python} {images} "$@" ;; esac
exec {real} "$@"
"""
IMAGES = """
import os, sys
sys.path.insert(0, os.getcwd())
from deploy import push_images as images
images.push = images.build_in_account = lambda *_: None
images.digests = lambda registry, prefix, tag: {
    name: f"{registry}/{prefix}-{stage}@sha256:" + "d" * 64 for stage, name in images.PARAMETERS.items()
}
sys.argv = sys.argv[1:]
images.main()
"""


@pytest.fixture(params=["a clone", "a printed folder"])
def folder(request, tmp_path, program) -> Path:
    """What is deployed from, with tools that note their calls in calls.log."""
    folder = tmp_path / "spaceport"
    if request.param == "a clone":
        run(["git", "clone", "--quiet", ROOT, folder])
    else:
        write_deploy_files(folder)
    tools, log, images = folder / "build/deploy/sam/bin", folder / "calls.log", tmp_path / "images.py"
    tools.mkdir(parents=True)
    images.write_text(IMAGES)
    python = program("sam", "python")
    for name in ("sam", "python"):
        text = TOOL.format(name=name, log=log, python=python, images=images, real=program("sam", name))
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    os.utime(folder / "deploy/requirements/sam.txt", (0, 0))  # older than what was made of it
    return folder


@pytest.fixture
def client(endpoint) -> Iterator[Callable[[str], Any]]:
    """Clients of the endpoint, which has the stack no more when the test is over."""

    def make(service: str) -> Any:
        access = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        return boto3.client(service, endpoint_url=endpoint, verify=str(CERTIFICATE), **access)

    yield make
    make("cloudformation").delete_stack(StackName=STACK)
    make("cloudformation").get_waiter("stack_delete_complete").wait(StackName=STACK, WaiterConfig={"Delay": 1})


def test_make_deploy_brings_stack_then_images_then_the_stack_with_them(folder, endpoint, client):
    access = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CA_BUNDLE": str(CERTIFICATE),
        "AWS_DEFAULT_REGION": "us-east-1",
        **KEYS,
    }
    env = clean_environment(**access)
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):  # of the make that runs this test: with them it would say more
        env.pop(name, None)
    tools = ("SAM=build/deploy/sam/bin/sam", f"PYTHON={sys.executable}")
    done = run(["make", "deploy", "ENV=dev", *tools], cwd=folder, env=env, timeout_s=500)
    calls = [line.removeprefix("python -m ").split()[:2] for line in (folder / "calls.log").read_text().splitlines()]
    account, stack = ["deploy.account"], [["sam", "build"], ["sam", "deploy"]]
    assert calls[0] == account, "whose account it is comes before anything else"
    assert [call for call in calls if call != account] == [*stack, ["deploy.push_images", "push"], *stack]
    assert done.stdout.startswith("deploying to account 000000000000 in us-east-1\n")
    found = client("cloudformation").list_stack_resources(StackName=STACK)["StackResourceSummaries"]
    (name,) = (one["PhysicalResourceId"] for one in found if one["LogicalResourceId"] == "StartJobFunction")
    variables = client("lambda").get_function_configuration(FunctionName=name)["Environment"]["Variables"]
    assert variables["JOB_PREFIX"] == "spaceportdev", "the environment's own parameters are kept"
    for stage in ("sfm", "train", "compress"):
        assert variables[f"{stage.upper()}_IMAGE_URI"].endswith(f"/spaceportdev-{stage}@sha256:{'d' * 64}")
