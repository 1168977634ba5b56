"""deploy/images.py: the digests in samconfig.toml, and the build in the account against recorded answers."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import tomllib

import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws

from tests.deploy.environments import ROOT
from tests.unit.fn_cloud import load_template

spec = importlib.util.spec_from_file_location("deploy_images", ROOT / "deploy" / "images.py")
images = importlib.util.module_from_spec(spec)
spec.loader.exec_module(images)

DIGEST = "123456789012.dkr.ecr.us-east-1.amazonaws.com/spaceport-sfm@sha256:" + "a" * 64

REGISTRY = "123456789012.dkr.ecr.us-east-1.amazonaws.com"


def overrides(text, env):
    return tomllib.loads(text)[env]["deploy"]["parameters"].get("parameter_overrides")


@pytest.mark.parametrize("env", ["default", "dev", "prod"])
def test_digests_are_written_into_one_environment(env):
    before = (ROOT / "samconfig.toml").read_text()
    after = images.with_parameters(before, env, {"SfmImageUri": DIGEST})
    assert f"SfmImageUri={DIGEST}" in overrides(after, env)
    for other in {"default", "dev", "prod"} - {env}:
        assert overrides(after, other) == overrides(before, other)
    known = overrides(before, env)
    assert known is None or all(pair in overrides(after, env) for pair in known.split())
    assert images.with_parameters(after, env, {"SfmImageUri": DIGEST}) == after, "writing again changes nothing"
    newer = images.with_parameters(after, env, {"SfmImageUri": DIGEST.replace("a" * 64, "b" * 64)})
    assert overrides(newer, env).count("SfmImageUri=") == 1
    assert [line for line in before.splitlines() if line.startswith("#")] == [
        line for line in after.splitlines() if line.startswith("#")
    ], "comments stay"


def test_values_with_spaces_survive():
    text = "[x.deploy.parameters]\nparameter_overrides = \"A=1 'B=two words'\"\n\n[y.deploy.parameters]\n"
    after = images.with_parameters(text, "x", {"C": "3"})
    assert overrides(after, "x") == "A=1 'B=two words' C=3"
    with pytest.raises(images.DeployError, match=r"\[z.deploy.parameters\]"):
        images.with_parameters(text, "z", {})


def test_digests_fit_the_parameters_of_the_template():
    import re

    parameters = load_template()["Parameters"]
    assert set(images.PARAMETERS.values()) <= set(parameters)
    assert re.fullmatch(parameters["SfmImageUri"]["AllowedPattern"], DIGEST)


def test_build_in_the_account_reads_what_the_project_reads():
    project = load_template()["Resources"]["ImageBuild"]["Properties"]
    assert project["Source"]["Location"]["Fn::Sub"] == "${Bucket}/" + images.SOURCE_KEY
    buildspec = yaml.safe_load((ROOT / project["Source"]["BuildSpec"]).read_text())
    script = "\n".join(command for phase in buildspec["phases"].values() for command in phase["commands"])
    variables = {variable["Name"] for variable in project["Environment"]["EnvironmentVariables"]}
    assert {name for name in variables if f"${name}" in script} == variables
    for stage in images.STAGES:
        assert f" AS {stage}\n" in (ROOT / "containers/Dockerfile").read_text()


def test_a_failed_build_says_where_its_log_is(monkeypatch):
    class CodeBuild:
        def start_build(self, **arguments):
            assert arguments["projectName"] == "project"
            return {"build": {"id": "b:1", "buildStatus": "IN_PROGRESS"}}

        def batch_get_builds(self, ids):
            return {"builds": [{"id": "b:1", "buildStatus": "FAILED", "logs": {"deepLink": "https://log"}}]}

    class S3:
        def upload_fileobj(self, file, bucket, key):
            assert file.read(2) == b"PK"
            assert (bucket, key) == ("bucket", "image-sources/source.zip")

    monkeypatch.setattr(images, "POLL_S", 0)
    monkeypatch.setattr(images.boto3, "client", lambda name: {"codebuild": CodeBuild(), "s3": S3()}[name])
    with pytest.raises(images.DeployError, match=r"FAILED.*https://log"):
        images.build_in_account("bucket", "project", "tag", "cpu")


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
        for stage in images.STAGES:
            ecr.create_repository(repositoryName=f"spaceport-{stage}")

        def push(tag):
            for stage in images.STAGES:
                config = {"mediaType": "application/json", "size": 1, "digest": f"sha256:{stage}-{tag}"}
                image = {"schemaVersion": 2, "mediaType": images.MANIFESTS[0], "config": config, "layers": []}
                body = json.dumps(image)
                digest = f"sha256:{hashlib.sha256(body.encode()).hexdigest()}"
                named = {"repositoryName": f"spaceport-{stage}", "imageTag": tag, "imageDigest": digest}
                ecr.put_image(imageManifest=body, **named)

        yield push


@pytest.mark.parametrize("stage", images.STAGES)
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
        monkeypatch.setattr(sys, "argv", ["images.py", "cloud", "--env", "dev", *arguments])
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

    monkeypatch.setattr(images.boto3, "client", lambda name: CloudFormation())
    monkeypatch.setattr(sys, "argv", ["images.py", "ready", "--env", "dev"])
    if words:
        with pytest.raises(images.DeployError, match=words):
            images.main()
    else:
        images.main()


def test_tag_of_the_sources_changes_with_them_alone(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.com", "-C", str(tmp_path)]
    monkeypatch.setattr(images, "ROOT", tmp_path)

    def committed(**files):
        for name, text in files.items():
            file = tmp_path / images.SOURCES[int(name[1])] if name[0] == "s" else tmp_path / name
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
    monkeypatch.setattr(images, "ROOT", tmp_path / "nowhere")
    with pytest.raises(images.DeployError, match="cannot be told"):
        images.content_tag("gpu")


def test_workflow_deploys_the_images_of_its_commit():
    """The repositories first, where the stack is new; then the images; then the stack with their digests."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/deploy-to.yaml").read_text())["jobs"]["deploy"]
    commands = [step["run"] for step in workflow["steps"] if "run" in step]
    deploy, build = commands[-1], commands[-2]
    assert " sam deploy " in deploy.replace("bin/sam", " sam")
    assert commands[-3].endswith(f'images.py ready --env "$ENVIRONMENT" || {deploy}')
    assert "images.py cloud --reuse" in build
    assert '--env "$ENVIRONMENT"' in build, "the digests are written where `sam deploy` reads them"
    assert '--config-env "$ENVIRONMENT"' in deploy
    assert '--config-file "$PWD/samconfig.toml"' in deploy
    (credentials,) = [step["with"] for step in workflow["steps"] if "configure-aws-credentials" in step.get("uses", "")]
    build_s = 60 * load_template()["Resources"]["ImageBuild"]["Properties"]["TimeoutInMinutes"]
    assert build_s < 60 * workflow["timeout-minutes"] <= credentials["role-duration-seconds"]
