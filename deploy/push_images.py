"""Bring the images of the stages to the registry of a stack, and write their digests into samconfig.toml.

    python -m deploy.push_images push  --env default     build and check here, push   (needs a container engine)
    python -m deploy.push_images cloud --env default     build in the account with the stack's CodeBuild project
    python -m deploy.push_images cloud --reuse           the same, unless the registry has them already
    python -m deploy.push_images ready --env default     say whether the stack is there; exit status 1 if not

The stack exists already: it has the repositories. The next `sam deploy` uses the images.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import shlex
import subprocess
import sys
import time
import tomllib
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from deploy.sources import (
    ROOT,
    STAGE_NAMES,
    SourcesError,
    archive,
    commit,
    content_hash,
    revision,
    version,
)

CONFIG = ROOT / "samconfig.toml"
PARAMETERS = {stage: f"{stage.capitalize()}ImageUri" for stage in STAGE_NAMES}
SOURCE_KEY = "image-sources/source.zip"
DEPLOYED_TAG = "deployed-"  # rules of the repositories count images with this tag apart (template.yaml)
POLL_S = 20
# One image for one platform, in Docker's words and in OCI's.
MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
)


class DeployError(Exception):
    """What was wrong and what to do."""


def deployed_stack(env: str) -> str:
    """Name of the stack that samconfig.toml names for this environment."""
    config = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
    try:
        return str(config[env]["deploy"]["parameters"]["stack_name"])
    except KeyError as error:
        raise DeployError(f"samconfig.toml has no stack_name for the environment {env!r}") from error


def describe_stack(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """(outputs, parameters) of the stack."""
    try:
        (stack,) = boto3.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        raise DeployError(f"the stack {name} cannot be read ({error}): deploy it first with `sam deploy`") from error
    outputs = {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}
    if "ImageRegistry" not in outputs:  # the first deployment has failed, or only its change set was made
        raise DeployError(
            f"the stack {name} is {stack['StackStatus']} and has no registry: deploy it with `sam deploy`"
        )
    parameters = {one["ParameterKey"]: one["ParameterValue"] for one in stack.get("Parameters", [])}
    return outputs, parameters


def new_tag(revision: str) -> str:
    """A tag that was never used: tags in the repositories cannot be moved. The commit, then the time."""
    commit, *dirty = revision.split("-")
    return "-".join([commit[:12], *dirty, time.strftime("%Y%m%d%H%M%S", time.gmtime())])


def content_tag(train_engine: str) -> str:
    """Tag that all images of the same sources have, whatever else has changed."""
    return f"sources-{content_hash()[:16]}-{train_engine}"


def keep_deployed(registry: str, parameters: dict[str, str]) -> None:
    """Tag the images that the stack runs with now, so that no number of newer ones makes the registry expire them."""
    ecr = boto3.client("ecr")
    for name in PARAMETERS.values():
        host, _, rest = parameters.get(name, "").partition("/")
        repository, _, digest = rest.partition("@")
        if host != registry or not digest:
            continue
        named = [{"imageDigest": digest}]  # as it was pushed: another form of its manifest has another digest
        ask = {"repositoryName": repository, "imageIds": named, "acceptedMediaTypes": [*MANIFESTS]}
        found = ecr.batch_get_image(**ask)["images"]
        if not found:
            print(f"warning: {name} of the stack names {digest}, which {repository} does not have: jobs cannot start")
            continue
        try:
            ecr.put_image(
                repositoryName=repository,
                imageManifest=found[0]["imageManifest"],
                imageManifestMediaType=found[0]["imageManifestMediaType"],
                imageTag=DEPLOYED_TAG + digest.removeprefix("sha256:")[:16],
                imageDigest=digest,
            )
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("ImageAlreadyExistsException", "ImageTagAlreadyExistsException"):
                raise  # these two say that it has the tag


def push(registry: str, prefix: str, tag: str, train_engine: str) -> None:
    """Build the images here (each checks itself while it is built), and push them."""
    from deploy.images.build import RELEASE_PLATFORM, build, release_base
    from deploy.images.docker import NoEngine, running_engine

    try:
        with running_engine() as engine:
            log_in(engine, registry)
            base = release_base(engine)
            for stage in STAGE_NAMES:
                name = f"{registry}/{prefix}-{stage}:{tag}"
                variant = train_engine if stage == "train" else "cpu"
                built = build(engine, stage, name, base, variant, platform=RELEASE_PLATFORM)
                print(f"{name}: {built.size_bytes / 1e6:.0f} MB, built in {built.seconds:.0f} s")
                engine.docker("push", "--quiet", name, timeout_s=3600)
    except NoEngine as problem:
        raise DeployError(f"{problem}. `make images-cloud` builds the images in your account instead") from problem


def log_in(engine: Any, registry: str) -> None:
    """The password goes through standard input: it must not be seen in the list of processes."""
    (token,) = boto3.client("ecr").get_authorization_token()["authorizationData"]
    user, _, password = base64.b64decode(token["authorizationToken"]).decode().partition(":")
    done = subprocess.run(
        [engine.client, "login", "--username", user, "--password-stdin", registry],
        env=engine.environment,
        input=password,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DeployError(f"the registry {registry} refused the login: {done.stderr.strip()}")


def build_in_account(bucket: str, project: str, tag: str, train_engine: str) -> None:
    """Send the sources to the stack's CodeBuild project and wait until the images are pushed."""
    boto3.client("s3").upload_fileobj(io.BytesIO(archive()), bucket, SOURCE_KEY)
    codebuild = boto3.client("codebuild")
    values = {"IMAGE_TAG": tag, "TRAIN_ENGINE": train_engine, "VERSION": version(), "REVISION": commit()}
    values["STAGES"] = " ".join(STAGE_NAMES)
    variables = [{"name": name, "value": value, "type": "PLAINTEXT"} for name, value in values.items()]
    build = codebuild.start_build(projectName=project, environmentVariablesOverride=variables)["build"]
    print(f"building {build['id']}; this takes minutes with the CPU engine, about an hour with the GPU engine")
    while build["buildStatus"] == "IN_PROGRESS":
        time.sleep(POLL_S)
        (build,) = codebuild.batch_get_builds(ids=[build["id"]])["builds"]
    if build["buildStatus"] != "SUCCEEDED":
        log = build["logs"].get("deepLink", "none")
        raise DeployError(f"the build ended as {build['buildStatus']}; its log: {log}")


def digests(registry: str, prefix: str, tag: str) -> dict[str, str]:
    """Value of each image parameter: repository@digest of what was pushed under ``tag``.

    Raises DeployError unless each is one image, not an index of several.
    """
    ecr = boto3.client("ecr")
    found = {}
    for stage in STAGE_NAMES:
        repository = f"{prefix}-{stage}"
        (image,) = ecr.describe_images(repositoryName=repository, imageIds=[{"imageTag": tag}])["imageDetails"]
        kind = image.get("imageManifestMediaType", "of an unknown kind")
        if kind not in MANIFESTS:
            raise DeployError(
                f"{repository}:{tag} is {kind}, which SageMaker may refuse, and not one image. Build it without "
                "attestations and for one platform, as `make images` and `make images-cloud` do"
            )
        found[PARAMETERS[stage]] = f"{registry}/{repository}@{image['imageDigest']}"
    return found


def known_digests(registry: str, prefix: str, tag: str) -> dict[str, str]:
    """Those of the images under ``tag``; empty when one of the stages has none."""
    try:
        return digests(registry, prefix, tag)
    except ClientError as error:
        if error.response["Error"]["Code"] == "ImageNotFoundException":
            return {}
        raise


def with_parameters(config: str, env: str, values: dict[str, str]) -> str:
    """The text of samconfig.toml with ``values`` in the environment's parameter_overrides; the rest stays as it is."""
    section = re.search(rf"^\[{re.escape(env)}\.deploy\.parameters\]\n(?:(?!\[).*\n?)*", config, re.MULTILINE)
    if section is None:
        raise DeployError(f"samconfig.toml has no section [{env}.deploy.parameters]")
    known = tomllib.loads(config)[env]["deploy"]["parameters"].get("parameter_overrides", "")
    pairs = shlex.split(known) if isinstance(known, str) else list(known)
    merged = {**dict(pair.split("=", 1) for pair in pairs), **values}
    text = " ".join(shlex.quote(f"{name}={value}") for name, value in merged.items())
    if '"' in text or "\\" in text:
        raise DeployError(f"a parameter of {env} has a quotation mark or a backslash: write it into the file yourself")
    line = f'parameter_overrides = "{text}"\n'
    old = re.compile(r"^parameter_overrides *= *.*\n?", re.MULTILINE)
    body = section[0].rstrip("\n") + "\n"
    body = old.sub(lambda _: line, body) if old.search(body) else body + line
    trailing = section[0][len(section[0].rstrip("\n")) + 1 :]
    return config[: section.start()] + body + trailing + config[section.end() :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("push", "cloud", "ready"))
    parser.add_argument("--env", default="default", help="environment of samconfig.toml")
    parser.add_argument("--account-region", default="", help="123456789012.eu-central-1: refuse any other account")
    parser.add_argument("--train-engine", choices=("cpu", "gpu"), default="gpu")
    parser.add_argument("--reuse", action="store_true", help="cloud: build only what the registry does not have")
    arguments = parser.parse_args()
    outputs, parameters = describe_stack(deployed_stack(arguments.env))
    registry, prefix = outputs["ImageRegistry"], parameters["JobPrefix"]
    tag = new_tag(revision() if arguments.way == "push" else commit())  # the account builds what is committed
    account, _, _, region, *_ = registry.split(".")  # 123456789012.dkr.ecr.eu-central-1.amazonaws.com
    if arguments.account_region and arguments.account_region != f"{account}.{region}":
        raise DeployError(f"the stack is in {account}.{region}, not in {arguments.account_region}")
    if arguments.way == "ready":
        return
    keep_deployed(registry, parameters)
    values = made(arguments, outputs, registry, prefix, tag)
    CONFIG.write_text(with_parameters(CONFIG.read_text(encoding="utf-8"), arguments.env, values), encoding="utf-8")
    print("\n".join(f"{name} {value}" for name, value in values.items()))


def made(
    arguments: argparse.Namespace, outputs: dict[str, str], registry: str, prefix: str, tag: str
) -> dict[str, str]:
    """Build what is to be built, under ``tag`` unless it can be reused; returns the value of each image parameter."""
    engine = arguments.train_engine
    if arguments.way == "push":
        push(registry, prefix, tag, engine)
        return digests(registry, prefix, tag)
    tag = content_tag(engine) if arguments.reuse else tag
    known = known_digests(registry, prefix, tag) if arguments.reuse else {}
    if not known:
        build_in_account(outputs["BucketName"], outputs["ImageBuildProject"], tag, engine)
    return known or digests(registry, prefix, tag)


if __name__ == "__main__":
    try:
        main()
    except (DeployError, SourcesError, ClientError, BotoCoreError, RuntimeError) as problem:
        sys.exit(f"error: {problem}")
