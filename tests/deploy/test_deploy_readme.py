"""README's section on deploying, followed literally in a clean clone until an account is needed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.environments import BUILD, ROOT, clean_environment, run
from tests.deploy.stack import CERTIFICATE, KEYS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def commands(readme: str) -> list[str]:
    """Lines of the fenced blocks of the section on AWS, without what follows a #."""
    section = readme.partition("\n## Deploy to AWS\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def clone(tmp_path_factory, program) -> Path:
    """What is committed. Where CI is not true, SAM's environment is the one that the other tests have installed."""
    folder = tmp_path_factory.mktemp("clone") / "spaceport"
    run(["git", "clone", "--quiet", ROOT, folder])
    if os.environ.get("CI") != "true":
        sam = program("sam", "sam").parents[1]
        (folder / "build/deploy").mkdir(parents=True)
        (folder / "build/deploy/sam").symlink_to(sam)
        os.utime(folder / "deploy/requirements/sam.txt", (0, 0))  # older than what was made of it
    return folder


@pytest.fixture(scope="module")
def nobody(tmp_path_factory) -> dict[str, str]:
    """Environment of somebody without an account; pip keeps its cache, so that nothing is fetched twice."""
    pip = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True)
    env = clean_environment(HOME=str(tmp_path_factory.mktemp("home")), PIP_CACHE_DIR=pip.stdout.strip())
    own = Path.home() / ".config/pip/pip.conf"
    if own.is_file():
        env["PIP_CONFIG_FILE"] = str(own)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_DEFAULT_REGION", "VIRTUAL_ENV", "MAKEFLAGS"):
        env.pop(name, None)
    venv = str(ROOT / ".venv/bin")
    env["PATH"] = os.pathsep.join(part for part in env["PATH"].split(os.pathsep) if part != venv)
    return env


def test_commands_lead_to_the_point_where_an_account_is_missing(clone, nobody):
    lines = commands((clone / "README.md").read_text())
    assert lines[0] == "make deploy"
    assert any(line.startswith("aws s3 cp ") for line in lines)
    for line in lines:
        done = subprocess.run(["sh", "-c", line], cwd=clone, env=nobody, capture_output=True, text=True, check=False)
        if done.returncode:
            break
    (BUILD / "readme.log").write_text(f"$ {line}\n{done.stdout}{done.stderr}\n[exit {done.returncode}]\n")
    assert done.returncode, "nothing needed an account"
    assert line == "make deploy", f"{line} failed before the first command that needs an account"
    assert "error: no AWS credentials are set. Run `aws configure`" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (clone / ".aws-sam").exists(), "something was built before it was clear that there is no account"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "no AWS credentials are set"),
        ({**KEYS}, "no AWS region is set"),
        ({"AWS_PROFILE": "nobody"}, "The config profile (nobody) could not be found"),
        (
            {**KEYS, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            'the credentials could not be used: Could not connect to the endpoint URL: "http://127.0.0.1:9/"',
        ),
    ],
)
def test_what_is_missing_is_said(program, nobody, more, words):
    done = account(program, {**nobody, "AWS_EC2_METADATA_DISABLED": "true", **more})
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_account_is_named_before_anything_is_built(program, nobody, endpoint):
    there = {"AWS_ENDPOINT_URL": endpoint, "AWS_CA_BUNDLE": str(CERTIFICATE), "AWS_DEFAULT_REGION": "us-east-1"}
    assert account(program, {**nobody, **there, **KEYS}).stdout == "deploying to account 000000000000 in us-east-1\n"


def account(program, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [program("sam", "python"), "-m", "deploy.account"]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)


def test_variables_of_the_upload_command_are_those_of_the_output(clone):
    """README's second command is the stack's output with the reader's folder."""
    (copy,) = [line for line in commands((clone / "README.md").read_text()) if line.startswith("aws s3 cp ")]
    words = shlex.split(copy)
    assert words[:3] == ["aws", "s3", "cp"]
    assert words[4:] == ["s3://BUCKET/uploads/my-house/", "--recursive"]
    template = (clone / "template.yaml").read_text()
    assert "aws s3 cp ./my-house s3://${Bucket}/uploads/my-house/ --recursive" in template
