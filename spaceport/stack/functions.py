"""CloudFormation's intrinsic functions, names and ARNs (CloudFormation user guide, "Intrinsic function reference").

What is not known here is an error that names the resource and the path.
"""

from __future__ import annotations

import re
from typing import Any


class TemplateError(Exception):
    """The template says something that cannot be resolved or played; the text names resource and path."""


class _NoValue:
    """Result of Ref AWS::NoValue: the property is as if it had not been written."""


NO_VALUE = _NoValue()


class Resolver:
    """Resolves the intrinsic functions of one transformed template. ``resolve`` raises TemplateError with the path."""

    def __init__(
        self, template: dict[str, Any], parameters: dict[str, str], stack_name: str, region: str, account_id: str
    ) -> None:
        self.template = template
        self.resources: dict[str, Any] = template["Resources"]
        self.parameters = parameters
        self.stack_name = stack_name
        self.region = region
        self.account_id = account_id
        self.pseudo: dict[str, Any] = {
            "AWS::Region": region,
            "AWS::AccountId": account_id,
            "AWS::Partition": "aws",
            "AWS::URLSuffix": "amazonaws.com",
            "AWS::StackName": stack_name,
            "AWS::StackId": f"arn:aws:cloudformation:{region}:{account_id}:stack/{stack_name}/local",
            "AWS::NoValue": NO_VALUE,
        }

    def is_created(self, logical_id: str) -> bool:
        return self.condition(self.resources[logical_id].get("Condition"), f"{logical_id}.Condition")

    def condition(self, name: str | None, path: str) -> bool:
        if name is None:
            return True
        conditions = self.template.get("Conditions", {})
        if name not in conditions:
            raise TemplateError(f"{path}: there is no condition {name}")
        return bool(self.resolve(conditions[name], f"Conditions.{name}"))

    def properties(self, logical_id: str) -> dict[str, Any]:
        raw = self.resources[logical_id].get("Properties", {})
        return self.resolve(raw, f"{logical_id}.Properties")

    def resolve(self, value: Any, path: str) -> Any:
        """``value`` without intrinsic functions; ``path`` is only for messages."""
        if isinstance(value, list):
            items = [self.resolve(item, f"{path}[{i}]") for i, item in enumerate(value)]
            return [item for item in items if item is not NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            key, argument = next(iter(value.items()))
            if key == "Ref":
                return self.ref(argument, path)
            if key == "Condition" and isinstance(argument, str):
                return self.condition(argument, path)
            if key.startswith("Fn::"):
                function = getattr(self, f"_fn_{key[4:].lower()}", None)
                if function is None:
                    raise TemplateError(f"{path}: {key} is not supported")
                return function(argument, f"{path}.{key}")
        resolved = {key: self.resolve(item, f"{path}.{key}") for key, item in value.items()}
        return {key: item for key, item in resolved.items() if item is not NO_VALUE}

    def ref(self, name: str, path: str) -> Any:
        if name in self.pseudo:
            return self.pseudo[name]
        if name in self.parameters:
            declared = self.template.get("Parameters", {}).get(name, {})
            value = self.parameters[name]
            return value.split(",") if declared.get("Type") == "CommaDelimitedList" else value
        if name not in self.resources:
            raise TemplateError(f"{path}: Ref {name} is neither a parameter nor a resource")
        kind = self.resources[name]["Type"]
        if kind in REF_IS_ARN:
            return self.arn(name, path)
        return self.physical_name(name)

    def physical_name(self, logical_id: str) -> str:
        """The name given in the template, or one made of the stack's name and the logical id."""
        resource = self.resources[logical_id]
        for key in NAME_PROPERTIES.get(resource["Type"], ()):
            if key in resource.get("Properties", {}):
                name = self.resolve(resource["Properties"][key], f"{logical_id}.Properties.{key}")
                if name is not NO_VALUE:
                    return name
        name = f"{self.stack_name}-{logical_id}"
        return f"{name}-{self.account_id}".lower() if resource["Type"] == "AWS::S3::Bucket" else name

    def arn(self, logical_id: str, path: str) -> str:
        kind = self.resources[logical_id]["Type"]
        if kind not in ARN_FORMATS:
            raise TemplateError(f"{path}: the ARN of a {kind} ({logical_id}) is not known")
        return ARN_FORMATS[kind].format(
            name=self.physical_name(logical_id), region=self.region, account=self.account_id
        )

    def _fn_getatt(self, argument: Any, path: str) -> Any:
        logical_id, attribute = argument.split(".", 1) if isinstance(argument, str) else argument
        if logical_id not in self.resources:
            raise TemplateError(f"{path}: {logical_id} is not a resource")
        kind = self.resources[logical_id]["Type"]
        name = self.physical_name(logical_id)
        if attribute in ("Arn", "TopicArn", "LogGroupArn"):
            return self.arn(logical_id, path)
        if attribute in NAME_ATTRIBUTES.get(kind, ()):
            return name
        if kind == "AWS::CloudFront::Distribution" and attribute == "DomainName":
            return f"{name}.cloudfront.invalid".lower()
        if kind == "AWS::S3::Bucket" and attribute in ("DomainName", "RegionalDomainName"):
            region = f".{self.region}" if attribute == "RegionalDomainName" else ""
            return f"{name}.s3{region}.amazonaws.com"
        raise TemplateError(f"{path}: attribute {attribute} of {kind} {logical_id} is not known")

    def _fn_sub(self, argument: Any, path: str) -> str:
        text, variables = argument if isinstance(argument, list) else (argument, {})

        def replace(match: re.Match[str]) -> str:
            name = match.group(1)
            if name.startswith("!"):
                return "${" + name[1:] + "}"
            if name in variables:
                return str(self.resolve(variables[name], f"{path}.{name}"))
            if name in self.pseudo or name in self.parameters or "." not in name:
                return str(self.ref(name, path))
            return str(self._fn_getatt(name, path))

        return re.sub(r"\$\{([^}]+)\}", replace, text)

    def _fn_join(self, argument: Any, path: str) -> str:
        separator, items = argument
        return separator.join(str(item) for item in self.resolve(items, path))

    def _fn_if(self, argument: Any, path: str) -> Any:
        name, yes, no = argument
        return self.resolve(yes if self.condition(name, path) else no, path)

    def _fn_equals(self, argument: Any, path: str) -> bool:
        left, right = self.resolve(argument, path)
        return str(left) == str(right)

    def _fn_not(self, argument: Any, path: str) -> bool:
        return not self.resolve(argument, path)[0]

    def _fn_and(self, argument: Any, path: str) -> bool:
        return all(self.resolve(argument, path))

    def _fn_or(self, argument: Any, path: str) -> bool:
        return any(self.resolve(argument, path))

    def _fn_select(self, argument: Any, path: str) -> Any:
        index, items = self.resolve(argument, path)
        if not 0 <= int(index) < len(items):
            raise TemplateError(f"{path}: index {index} of a list of {len(items)}")
        return items[int(index)]

    def _fn_split(self, argument: Any, path: str) -> list[str]:
        separator, text = self.resolve(argument, path)
        return text.split(separator)

    def _fn_findinmap(self, argument: Any, path: str) -> Any:
        name, first, second = self.resolve(argument, path)
        try:
            return self.template["Mappings"][name][first][second]
        except KeyError as error:
            raise TemplateError(f"{path}: the mapping {name} has no {first}.{second}") from error


REF_IS_ARN = {"AWS::SNS::Topic", "AWS::StepFunctions::StateMachine", "AWS::Lambda::LayerVersion"}
NAME_PROPERTIES = {
    "AWS::S3::Bucket": ("BucketName",),
    "AWS::DynamoDB::Table": ("TableName",),
    "AWS::SNS::Topic": ("TopicName",),
    "AWS::Lambda::Function": ("FunctionName",),
    "AWS::Events::Rule": ("Name",),
    "AWS::StepFunctions::StateMachine": ("StateMachineName",),
    "AWS::IAM::Role": ("RoleName",),
    "AWS::SQS::Queue": ("QueueName",),
    "AWS::Logs::LogGroup": ("LogGroupName",),
    "AWS::CloudWatch::Alarm": ("AlarmName",),
    "AWS::CloudWatch::Dashboard": ("DashboardName",),
    "AWS::ECR::Repository": ("RepositoryName",),
}
NAME_ATTRIBUTES = {
    "AWS::SNS::Topic": ("TopicName",),
    "AWS::StepFunctions::StateMachine": ("Name",),
    "AWS::SQS::Queue": ("QueueName",),
}
ARN_FORMATS = {
    "AWS::S3::Bucket": "arn:aws:s3:::{name}",
    "AWS::DynamoDB::Table": "arn:aws:dynamodb:{region}:{account}:table/{name}",
    "AWS::SNS::Topic": "arn:aws:sns:{region}:{account}:{name}",
    "AWS::Lambda::Function": "arn:aws:lambda:{region}:{account}:function:{name}",
    "AWS::Lambda::LayerVersion": "arn:aws:lambda:{region}:{account}:layer:{name}:1",
    "AWS::Events::Rule": "arn:aws:events:{region}:{account}:rule/{name}",
    "AWS::StepFunctions::StateMachine": "arn:aws:states:{region}:{account}:stateMachine:{name}",
    "AWS::IAM::Role": "arn:aws:iam::{account}:role/{name}",
    "AWS::SQS::Queue": "arn:aws:sqs:{region}:{account}:{name}",
    "AWS::Logs::LogGroup": "arn:aws:logs:{region}:{account}:log-group:{name}:*",
    "AWS::CloudWatch::Alarm": "arn:aws:cloudwatch:{region}:{account}:alarm:{name}",
    "AWS::ECR::Repository": "arn:aws:ecr:{region}:{account}:repository/{name}",
    "AWS::KMS::Key": "arn:aws:kms:{region}:{account}:key/{name}",
}
