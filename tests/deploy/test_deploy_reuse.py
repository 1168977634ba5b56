"""deploy/push_images.py: images of the same sources are built once, and deployed ones outlive newer ones."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws

from deploy import push_images as images
from deploy import sources
from tests.deploy.environments import ROOT
from tests.unit.cloud import load_template

REGISTRY = "123456789012.dkr.ecr.us-east-1.amazonaws.com"


def expired(rules, images_):
    """Digests that a repository's rules expire, by ECR's guide; ``images_`` are (digest, tags), oldest first.

    An image that a rule of a higher priority selects by its tag is left to that rule.
    """
    gone, taken = set(), set()
    for rule in sorted(rules, key=lambda rule: rule["rulePriority"]):
        selection = rule["selection"]
        assert selection["countType"] == "imageCountMoreThan"
        prefixes = tuple(selection.get("tagPrefixList", [""]))
        assert selection["tagStatus"] == ("tagged" if "tagPrefixList" in selection else "any")
        chosen = [digest for digest, tags in images_ if any(tag.startswith(prefixes) for tag in tags)]
        gone |= {digest for digest in chosen[: max(0, len(chosen) - selection["countNumber"])] if digest not in taken}
        taken |= set(chosen)
    return gone


@pytest.fixture
def push(monkeypatch):
    """ECR with the stack's repositories; a function that pushes one image of each stage under a tag."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        ecr = images.boto3.client("ecr")
        for stage in images.STAGE_NAMES:
            ecr.create_repository(repositoryName=f"spaceport-{stage}")

        def push(tag):
            for stage in images.STAGE_NAMES:
                config = {"mediaType": "application/json", "size": 1, "digest": f"sha256:{stage}-{tag}"}
                image = {"schemaVersion": 2, "mediaType": images.MANIFESTS[0], "config": config, "layers": []}
                body = json.dumps(image)
                digest = f"sha256:{hashlib.sha256(body.encode()).hexdigest()}"
                named = {"repositoryName": f"spaceport-{stage}", "imageTag": tag, "imageDigest": digest}
                ecr.put_image(imageManifest=body, **named)

        yield push


@pytest.mark.parametrize("stage", images.STAGE_NAMES)
def test_what_is_deployed_outlives_any_number_of_newer_images(push, stage):
    repository = load_template()["Resources"][f"{stage.capitalize()}Repository"]["Properties"]
    rules = json.loads(repository["LifecyclePolicy"]["LifecyclePolicyText"])["rules"]
    newer = [(f"sha256:{number}", [f"commit-{number}"]) for number in range(30)]
    push("commit")
    deployed = images.digests(REGISTRY, "spaceport", "commit")
    for _ in range(2):  # again, and nothing changes
        images.keep_deployed(REGISTRY, deployed)
    (kept,) = images.boto3.client("ecr").describe_images(repositoryName=f"spaceport-{stage}")["imageDetails"]
    digest = deployed[images.PARAMETERS[stage]].partition("@")[2]
    assert kept["imageDigest"] == digest
    assert len(kept["imageTags"]) == 2
    assert digest in expired(rules, [(digest, ["commit"]), *newer]), "without its tag it would go"
    gone = expired(rules, [(digest, kept["imageTags"]), *newer])
    assert digest not in gone
    assert len(gone) >= 20, "newer ones that nobody deployed go as before"


def test_images_from_elsewhere_and_lost_ones_keep_nobody_from_pushing(push, capsys):
    lost = f"{REGISTRY}/spaceport-sfm@sha256:{'0' * 64}"
    images.keep_deployed(
        REGISTRY, {"SfmImageUri": lost, "TrainImageUri": "example.org/train@sha256:1", "JobPrefix": "p"}
    )
    assert "SfmImageUri of the stack names sha256:0000" in capsys.readouterr().out


@pytest.fixture
def deployment(push, monkeypatch, tmp_path):
    """What `main` reads and writes: a samconfig.toml, a stack, a build in the account that pushes, and its tags."""
    built = []
    config = tmp_path / "samconfig.toml"
    config.write_text('[dev.deploy.parameters]\nstack_name = "spaceport"\n')
    outputs = {"ImageRegistry": REGISTRY, "BucketName": "b", "ImageBuildProject": "p"}
    monkeypatch.setattr(images, "CONFIG", config)
    monkeypatch.setattr(images, "describe_stack", lambda name: (outputs, {"JobPrefix": name}))
    monkeypatch.setattr(images, "build_in_account", lambda bucket, project, tag, engine: (built.append(tag), push(tag)))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["push_images", "cloud", "--env", "dev", *arguments])
        images.main()
        return tomllib.loads(config.read_text())["dev"]["deploy"]["parameters"].get("parameter_overrides", "")

    return run, built


def test_images_of_the_same_sources_are_built_once(deployment):
    run, built = deployment
    first = run("--reuse")
    assert set(images.PARAMETERS.values()) == {pair.partition("=")[0] for pair in first.split()}
    assert first.count("@sha256:") == 3
    assert run("--reuse") == first
    assert built == [images.content_tag("gpu")]
    assert run("--reuse", "--train-engine", "cpu") != first
    assert built[1:] == [images.content_tag("cpu")]


def test_without_reuse_images_are_built_anew(deployment, monkeypatch):
    run, built = deployment
    first = run("--reuse")
    assert run() != first
    assert len(set(built)) == 2


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        (None, "cannot be read"),
        ({"StackStatus": "ROLLBACK_COMPLETE"}, "is ROLLBACK_COMPLETE and has no registry"),
        ({"StackStatus": "CREATE_COMPLETE", "Outputs": [{"OutputKey": "ImageRegistry", "OutputValue": REGISTRY}]}, ""),
    ],
)
def test_a_stack_is_ready_for_images_once_it_has_their_registry(monkeypatch, stack, words):
    class CloudFormation:
        def describe_stacks(self, StackName):
            if stack is None:
                raise ClientError({"Error": {"Code": "ValidationError", "Message": "no such stack"}}, "DescribeStacks")
            return {"Stacks": [stack]}

    if stack is not None:
        stack = {**stack, "Parameters": [{"ParameterKey": "JobPrefix", "ParameterValue": "spaceport"}]}
    monkeypatch.setattr(images.boto3, "client", lambda name: CloudFormation())
    monkeypatch.setattr(sys, "argv", ["push_images", "ready", "--env", "dev"])
    if words:
        with pytest.raises(images.DeployError, match=words):
            images.main()
    else:
        images.main()


def test_tag_of_the_sources_changes_with_them_alone(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.com", "-C", str(tmp_path)]
    monkeypatch.setattr(sources, "ROOT", tmp_path)

    def committed(**files):
        for name, text in files.items():
            file = tmp_path / sources.SOURCES[int(name[1])] if name[0] == "s" else tmp_path / name
            file = file / "file" if name == "s0" else file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", "c"], check=True)
        return images.content_tag("gpu")

    subprocess.run([*git, "init", "--quiet"], check=True)
    first = committed(s0="1", s1="1")
    assert committed(other="1") == first
    assert len({first, committed(s0="2"), committed(s1="2"), images.content_tag("cpu")}) == 4
    monkeypatch.setattr(sources, "ROOT", tmp_path / "nowhere")
    with pytest.raises(sources.SourcesError, match="cannot be told"):
        images.content_tag("gpu")


def test_sources_of_a_printed_folder_are_its_files(tmp_path, monkeypatch):
    """It has no commit, or one of somebody else's repository around it."""
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    for name in ("VERSION", "containers/sfm/a.py", "deploy/buildspec.yaml", "functions/b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1.2.3\n")
    assert sources.version() == sources.commit() == sources.revision() == "1.2.3"
    with zipfile.ZipFile(io.BytesIO(sources.archive())) as packed:
        assert packed.namelist() == ["containers/sfm/a.py", "deploy/buildspec.yaml"]
    seen = [images.content_tag("gpu")]
    for made in ("containers/sfm/__pycache__/a.pyc", "containers/compress/viewer/node_modules/v.js", "functions/c.py"):
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).write_text("made")
        assert images.content_tag("gpu") == seen[0], f"{made} is no part of an image"
    for changed in ("containers/sfm/a.py", "containers/sfm/new.py", "deploy/buildspec.yaml"):
        (tmp_path / changed).write_text("changed")
        seen.append(images.content_tag("gpu"))
    (tmp_path / "containers/sfm/new.py").rename(tmp_path / "containers/sfm/newer.py")
    seen.append(images.content_tag("gpu"))
    assert len({*seen}) == 5


def test_workflow_deploys_the_images_of_its_commit():
    """The repositories first, where the stack is new; then the images; then the stack with their digests."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/deploy-to.yaml").read_text())["jobs"]["deploy"]
    commands = [step["run"] for step in workflow["steps"] if "run" in step]
    deploy, build = commands[-1], commands[-2]
    assert " sam deploy " in deploy.replace("bin/sam", " sam")
    assert commands[-3].endswith(f'deploy.push_images ready --env "$ENVIRONMENT" || {deploy}')
    assert "deploy.push_images cloud --reuse" in build
    assert '--env "$ENVIRONMENT"' in build, "the digests are written where `sam deploy` reads them"
    assert '--config-env "$ENVIRONMENT"' in deploy
    assert '--config-file "$PWD/samconfig.toml"' in deploy
    (credentials,) = [step["with"] for step in workflow["steps"] if "configure-aws-credentials" in step.get("uses", "")]
    build_s = 60 * load_template()["Resources"]["ImageBuild"]["Properties"]["TimeoutInMinutes"]
    assert build_s < 60 * workflow["timeout-minutes"] <= credentials["role-duration-seconds"]
