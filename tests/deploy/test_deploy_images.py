"""deploy/push_images.py: the digests in samconfig.toml, and the build in the account against recorded answers."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

from deploy import push_images as images
from tests.deploy.environments import ROOT
from tests.unit.cloud import load_template

DIGEST = "123456789012.dkr.ecr.us-east-1.amazonaws.com/spaceport-sfm@sha256:" + "a" * 64


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
    base = buildspec["env"]["variables"]["BASE"]
    assert base.startswith("public.ecr.aws/"), "Docker Hub limits how often strangers may pull"
    for needed in ('--build-arg BASE="$base"', '--build-arg VERSION="$VERSION"', '--build-arg REVISION="$REVISION"'):
        assert needed in script
    assert "base=$(docker image inspect --format '{{index .RepoDigests 0}}' \"$BASE\")" in script
    assert "docker build --platform linux/amd64 " in script
    for stage in images.STAGE_NAMES:
        assert f" AS {stage}\n" in (ROOT / "containers/Dockerfile").read_text()


def test_a_failed_build_says_where_its_log_is(monkeypatch):
    class CodeBuild:
        def start_build(self, **arguments):
            assert arguments["projectName"] == "project"
            given = {one["name"]: one["value"] for one in arguments["environmentVariablesOverride"]}
            assert re.fullmatch(r"[0-9a-f]{40}", given["REVISION"]), "the committed sources are built, nothing else"
            assert re.fullmatch(r"\d+\.\d+\.\d+\S*", given["VERSION"])
            assert given["STAGES"].split() == list(images.STAGE_NAMES)
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


def test_tags_tell_of_changes():
    assert re.fullmatch("a{12}-\\d{14}", images.new_tag("a" * 40))
    assert re.fullmatch("a{12}-dirty-\\d{14}", images.new_tag("a" * 40 + "-dirty"))


@pytest.mark.parametrize("kind", [*images.MANIFESTS, "application/vnd.oci.image.index.v1+json", None])
def test_an_index_of_images_is_refused(kind, monkeypatch):
    class Ecr:
        def describe_images(self, repositoryName, imageIds):
            assert imageIds == [{"imageTag": "tag"}]
            named = {"imageManifestMediaType": kind} if kind else {}
            return {"imageDetails": [{"imageDigest": "sha256:" + "a" * 64, **named}]}

    monkeypatch.setattr(images.boto3, "client", lambda name: {"ecr": Ecr()}[name])
    registry = DIGEST.partition("/")[0]
    if kind in images.MANIFESTS:
        assert images.digests(registry, "spaceport", "tag")["SfmImageUri"] == DIGEST
    else:
        with pytest.raises(images.DeployError, match=r"spaceport-sfm:tag is .*not one image"):
            images.digests(registry, "spaceport", "tag")
