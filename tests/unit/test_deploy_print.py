"""`spaceport deploy --print FOLDER`: all that `make deploy` needs, and nothing else, where there is no repository."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import boto3
import pytest
from typer.testing import CliRunner

from base.stages import STAGE_NAMES
from spaceport import cli
from spaceport.stack.root import ROOT
from tests.unit.cloud import load_template

# What Python finds besides the folder in the environment that `make deploy` makes: boto3 and what it imports.
PACKAGES = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six.py", "urllib3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("print") / "to deploy"
    done = CliRunner().invoke(cli.app, ["deploy", "--print", str(target)])
    assert done.exit_code == 0, done.output
    assert done.output.count("\n") == 1
    assert f"cd '{target}' && make deploy" in done.output
    return target


@pytest.fixture(scope="module")
def boto3_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packages = tmp_path_factory.mktemp("packages")
    for name in PACKAGES:
        (packages / name).symlink_to(Path(boto3.__file__).parents[1] / name)
    return packages


def python(folder: Path, packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder with those packages alone, and without git."""
    env = {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1", "PATH": "", "AWS_EC2_METADATA_DISABLED": "true"}
    command = [getattr(sys, "_base_executable", sys.executable), "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def committed(*paths: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", *paths], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_all_that_a_deployment_reads_is_there(folder: Path) -> None:
    wanted = committed("template.yaml", "samconfig.toml", "deploy.mk", "statemachine", "functions", "containers")
    assert {"functions/Makefile", "containers/.dockerignore", "statemachine/stages.json"} <= wanted
    assert wanted <= written(folder)
    for name in wanted:
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes(), name
    for resource in load_template()["Resources"].values():
        properties = resource.get("Properties", {})
        for key in ("CodeUri", "ContentUri", "DefinitionUri"):
            assert (folder / properties.get(key, ".")).exists(), properties.get(key)
        source = properties.get("Source", {})
        if isinstance(source, dict):
            assert (folder / source.get("BuildSpec", ".")).exists()
    assert (folder / "VERSION").read_text() == version("spaceport") + "\n"


def test_nothing_else_is_there(folder: Path) -> None:
    """No caches, nothing that was fetched or built, nothing beside the folder."""
    assert list(folder.parent.iterdir()) == [folder]
    ignored = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=ROOT,
        input="\n".join(written(folder)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ignored.stdout == ""
    assert not [path for path in written(folder) if "__pycache__" in path or "node_modules" in path]
    assert {path.name for path in folder.iterdir()} == {
        *("template.yaml", "samconfig.toml", "deploy.mk", "Makefile", "VERSION"),
        *("statemachine", "functions", "containers", "events", "deploy"),
    }


def test_every_program_of_the_deployment_starts_with_boto3_alone(folder: Path, boto3_alone: Path) -> None:
    modules = [
        path.removesuffix(".py").replace("/", ".")
        for path in written(folder)
        if path.startswith("deploy/") and path.endswith(".py")
    ]
    assert {"deploy.account", "deploy.push_images", "deploy.sources"} <= set(modules)
    for module in modules:
        done = python(folder, boto3_alone, "-c", f"import {module}")
        assert done.returncode == 0, done.stderr
    for missing in ("spaceport", "rich"):
        assert python(folder, boto3_alone, "-c", f"import {missing}").returncode, f"{missing} is on the path as well"
    assert "--train-engine" in python(folder, boto3_alone, "-m", "deploy.push_images", "--help").stdout
    assert "no AWS credentials are set" in python(folder, boto3_alone, "-m", "deploy.account").stderr


def test_images_are_labelled_and_tagged_without_git(folder: Path, boto3_alone: Path) -> None:
    program = """
import io, zipfile
from deploy import push_images, sources
names = zipfile.ZipFile(io.BytesIO(sources.archive())).namelist()
print(sources.version(), sources.revision(), *sources.STAGE_NAMES, push_images.content_tag("cpu"), len(names))
"""
    done = python(folder, boto3_alone, "-c", program)
    assert done.returncode == 0, done.stderr
    release, revision, *stages, tag, number = done.stdout.split()
    assert release == revision == version("spaceport")
    assert tuple(stages) == STAGE_NAMES
    assert tag.startswith("sources-") and tag.endswith("-cpu")
    assert int(number) == len(
        [path for path in written(folder) if path.startswith(("containers/", "deploy/buildspec"))]
    )


def test_make_finds_all_its_files(folder: Path) -> None:
    def make(*arguments: str) -> str:
        done = subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "make deploy" in make()
    commands = make("-n", "deploy", "SAM=build/deploy/sam/bin/sam", "IMAGES=images-cloud")
    places = [
        commands.index(part) for part in ("-r deploy/requirements/sam.txt", "deploy.account", "sam build", "cloud")
    ]
    assert places == sorted(places)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "[mine].txt").write_text("kept")
    for taken in (tmp_path, tmp_path / "[mine].txt"):
        done = CliRunner().invoke(cli.app, ["deploy", "--print", str(taken)])
        assert done.exit_code == 2
        assert done.output == f"{taken} is there already and is not an empty folder. Name a new one.\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]
    (tmp_path / "empty").mkdir()
    assert CliRunner().invoke(cli.app, ["deploy", "--print", str(tmp_path / "empty")]).exit_code == 0


def test_without_print_it_says_how() -> None:
    done = CliRunner().invoke(cli.app, ["deploy"])
    assert done.exit_code == 2
    assert done.output.count("\n") == 1
    assert "spaceport deploy --print FOLDER" in done.output and "make deploy" in done.output
