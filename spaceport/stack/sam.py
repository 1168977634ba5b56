"""From a SAM template to the CloudFormation template that AWS would make of it, with checked parameters.

The transform is AWS's own (aws-sam-translator).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spaceport.stack.functions import TemplateError

LOCAL_CODE_BUCKET = "local-code"  # stands in for the bucket that `sam package` uploads to; the key is the local path


def read_template(template: Path) -> dict[str, Any]:
    from samtranslator.yaml_helper import yaml_parse

    try:
        document = yaml_parse(template.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TemplateError(f"{template} is not there") from error
    if not isinstance(document, dict) or "Resources" not in document:
        raise TemplateError(f"{template} has no Resources")
    return json.loads(json.dumps(document, default=str))


def parameter_values(document: dict[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """Every parameter of the template with its value as CloudFormation checks it."""
    declared = document.get("Parameters", {})
    unknown = sorted(set(given) - set(declared))
    if unknown:
        raise TemplateError(f"parameters {', '.join(unknown)} are not in the template; it has {', '.join(declared)}")
    values = {}
    for name, rules in declared.items():
        if name not in given and "Default" not in rules:
            raise TemplateError(f"parameter {name} has no default and was not given")
        value = str(given.get(name, rules.get("Default")))
        allowed = [str(v) for v in rules.get("AllowedValues", [])]
        if allowed and value not in allowed:
            raise TemplateError(f"parameter {name} is {value!r}; allowed are {', '.join(allowed)}")
        pattern = rules.get("AllowedPattern")
        if pattern and not re.fullmatch(pattern, value):
            raise TemplateError(f"parameter {name} is {value!r}, which does not match {pattern}")
        if rules["Type"] == "Number":
            _check_number(name, value, rules)
        values[name] = value
    return values


def _check_number(name: str, value: str, rules: dict[str, Any]) -> None:
    try:
        number = float(value)
    except ValueError as error:
        raise TemplateError(f"parameter {name} is {value!r}, which is not a number") from error
    if number < float(rules.get("MinValue", "-inf")) or number > float(rules.get("MaxValue", "inf")):
        raise TemplateError(f"parameter {name} is {value}, outside {rules.get('MinValue')}..{rules.get('MaxValue')}")


def transform(document: dict[str, Any], values: dict[str, str], folder: Path, region: str) -> dict[str, Any]:
    """The plain CloudFormation template that AWS would make of a SAM template; local paths are kept as S3 keys."""
    from samtranslator.public.exceptions import InvalidDocumentException
    from samtranslator.translator.transform import transform as sam_transform

    _localize(document, folder)
    with _without_user_configuration(region):
        try:
            return sam_transform(document, dict(values), _NoManagedPolicies())
        except InvalidDocumentException as error:
            causes = "; ".join(cause.message for cause in error.causes)
            raise TemplateError(f"the SAM transform refused the template: {causes}") from error


class _NoManagedPolicies:
    def load(self) -> dict[str, str]:
        return {}


@contextlib.contextmanager
def _without_user_configuration(region: str) -> Iterator[None]:
    """The transform asks boto3 for a region; the user's profile and files have no part in it."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("AWS_")}
    own = {
        "AWS_DEFAULT_REGION": region,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]
        os.environ.update(before)


def _localize(document: dict[str, Any], folder: Path) -> None:
    """Do what ``sam package`` does, without S3: definitions go inline, code paths become keys of a stand-in bucket."""
    defaults = document.get("Globals", {}).get("Function", {})
    if isinstance(defaults.get("CodeUri"), str):
        defaults["CodeUri"] = f"s3://{LOCAL_CODE_BUCKET}/{defaults['CodeUri']}"
    for resource in document["Resources"].values():
        properties = resource.get("Properties", {})
        for name in ("CodeUri", "ContentUri"):
            if isinstance(properties.get(name), str) and not properties[name].startswith("s3://"):
                properties[name] = f"s3://{LOCAL_CODE_BUCKET}/{properties[name]}"
        uri = properties.get("DefinitionUri")
        if resource["Type"] == "AWS::Serverless::StateMachine" and isinstance(uri, str):
            del properties["DefinitionUri"]
            properties["Definition"] = json.loads((folder / uri).read_text(encoding="utf-8"))
