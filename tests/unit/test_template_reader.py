"""Parameters and intrinsic functions of the template reader, and the project's own template."""

import json
from pathlib import Path

import pytest

from spaceport.stack.template import Target, TemplateError, load_stack

ROOT = Path(__file__).resolve().parents[2]

TEMPLATE = """
Transform: AWS::Serverless-2016-10-31
Parameters:
  Mode: {Type: String, Default: small, AllowedValues: [small, large]}
  Count: {Type: Number, Default: 3, MinValue: 1, MaxValue: 9}
  Email: {Type: String, Default: '', AllowedPattern: '([^@]+@[^@]+)?'}
Conditions:
  IsLarge: !Equals [!Ref Mode, large]
  IsSmall: !Not [!Condition IsLarge]
  Both: !And [!Condition IsSmall, !Equals [!Ref Count, '3']]
  Either: !Or [!Condition IsLarge, !Condition IsSmall]
  HasEmail: !Not [!Equals [!Ref Email, '']]
Globals:
  Function:
    Runtime: python3.13
    CodeUri: code/
    Timeout: 7
    Environment: {Variables: {BUCKET: !Ref Bucket}}
Resources:
  Bucket: {Type: AWS::S3::Bucket, Properties: {NotificationConfiguration: {EventBridgeConfiguration: {}}}}
  Plain: {Type: AWS::S3::Bucket, Properties: {BucketName: !Join ['-', [plain, !Ref 'AWS::AccountId']]}}
  Topic: {Type: AWS::SNS::Topic, Properties: {Subscription: [{Protocol: email, Endpoint: a@b.c}]}}
  Subscription:
    Type: AWS::SNS::Subscription
    Condition: HasEmail
    Properties: {TopicArn: !Ref Topic, Protocol: email, Endpoint: !Ref Email}
  Big: {Type: AWS::SNS::Topic, Condition: IsLarge}
  Work:
    Type: AWS::Serverless::Function
    Properties:
      Handler: app.handler
      EventInvokeConfig: {MaximumRetryAttempts: 1}
      Environment:
        Variables:
          SIZE: !If [IsLarge, 10, 1]
          BOTH: !If [Both, 'yes', 'no']
          EITHER: !If [Either, true, false]
          PATH_: !Sub 'a/${Bucket}/${!literal}/${AWS::Region}/${Topic.TopicName}'
          VARS: !Sub ['${x}-${Count}', {x: !Select [1, !Split [',', 'p,q']]}]
          ARN: !GetAtt Bucket.Arn
          GONE: !If [IsLarge, here, !Ref 'AWS::NoValue']
      Events:
        Object:
          Type: EventBridgeRule
          Properties: {Pattern: {source: [aws.s3], detail: {bucket: {name: [!Ref Bucket]}}}}
        Often: {Type: Schedule, Properties: {Schedule: rate(5 minutes), Input: '{"sweep": true}'}}
  Machine:
    Type: AWS::Serverless::StateMachine
    Properties:
      DefinitionUri: machine.asl.json
      DefinitionSubstitutions: {WorkArn: !GetAtt Work.Arn}
Outputs:
  Name: {Value: !Ref Bucket}
"""


@pytest.fixture
def template(tmp_path):
    (tmp_path / "template.yaml").write_text(TEMPLATE)
    machine = {"StartAt": "A", "States": {"A": {"Type": "Task", "Resource": "${WorkArn}", "End": True}}}
    (tmp_path / "machine.asl.json").write_text(json.dumps(machine))
    return tmp_path / "template.yaml"


def test_values_are_resolved(template):
    stack = load_stack(template, {"Count": "3"})
    bucket, plain = stack.buckets
    assert (bucket.eventbridge, plain.eventbridge, plain.name) == (True, False, "plain-123456789012")
    (work,) = stack.functions
    assert work.environment == {
        "BUCKET": bucket.name,
        "SIZE": "1",
        "BOTH": "yes",
        "EITHER": "true",
        "PATH_": f"a/{bucket.name}/${{literal}}/us-east-1/spaceport-Topic",
        "VARS": "q-3",
        "ARN": f"arn:aws:s3:::{bucket.name}",
    }
    assert (work.handler, work.timeout_s, work.async_retries) == ("app.handler", 7.0, 1)
    assert work.code == (template.parent / "code").resolve()
    assert [topic.logical_id for topic in stack.topics] == ["Topic"]
    assert stack.topics[0].emails == ("a@b.c",)
    assert stack.state_machines[0].definition["States"]["A"]["Resource"] == work.arn
    assert stack.outputs == {"Name": bucket.name}
    rules = {rule.schedule: rule for rule in stack.rules}
    assert rules[None].pattern["detail"] == {"bucket": {"name": [bucket.name]}}
    assert rules["rate(5 minutes)"].targets == (Target(work.arn, {"sweep": True}),)


def test_conditions_follow_parameters(template):
    stack = load_stack(template, {"Mode": "large", "Email": "x@y"})
    assert [topic.logical_id for topic in stack.topics] == ["Topic", "Big"]
    assert stack.topics[0].emails == ("a@b.c", "x@y")
    assert stack.functions[0].environment["SIZE"] == "10"
    assert stack.functions[0].environment["GONE"] == "here"


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"Unknown": "1"}, "Unknown"),
        ({"Mode": "huge"}, "Mode.*small, large"),
        ({"Count": "10"}, "Count.*1..9"),
        ({"Count": "many"}, "not a number"),
        ({"Email": "nobody"}, "Email"),
    ],
)
def test_wrong_parameters_are_named(template, parameters, text):
    with pytest.raises(TemplateError, match=text):
        load_stack(template, parameters)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("!GetAtt Bucket.Arn", "!GetAtt Bucket.Colour", r"Work.*ARN.*Colour"),
        ("!Join ['-', [plain, !Ref 'AWS::AccountId']]", "!Base64 x", r"Plain.*Base64"),
        ("{Type: AWS::SNS::Topic, Condition: IsLarge}", "{Type: AWS::EC2::Instance}", "Big.*AWS::EC2::Instance"),
        ("{WorkArn: !GetAtt Work.Arn}", "{Other: x}", r"Machine.*WorkArn"),
        ("!Ref Mode, large", "!Ref Nothing, large", "Nothing"),
        ("Protocol: email, Endpoint: !Ref Email", "Protocol: sms, Endpoint: '1'", "Subscription.*sms"),
    ],
)
def test_what_cannot_be_resolved_names_resource_and_path(template, old, new, text):
    template.write_text(TEMPLATE.replace(old, new))
    with pytest.raises(TemplateError, match=text):
        load_stack(template, {"Email": "x@y"})


def test_the_projects_own_template():
    stack = load_stack(ROOT / "template.yaml", {"NotificationEmail": "a@example.org", "ResultBaseUrl": "file:///x"})
    assert len(stack.buckets) == len(stack.tables) == len(stack.state_machines) == 1
    assert stack.buckets[0].eventbridge
    assert stack.topics[0].emails == ("a@example.org",)
    arns = {function.arn for function in stack.functions}
    assert all(target.function_arn in arns for rule in stack.rules for target in rule.targets)
    assert "${" not in json.dumps(stack.state_machines[0].definition)
    for function in stack.functions:
        assert (function.code / f"{function.handler.split('.')[0]}.py").is_file()
