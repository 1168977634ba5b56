"""template.yaml, the state machine and the functions fit each other."""

import ast
import json
import re
import sys

import boto3
import pytest
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

from base import settings as settings_module
from base.stages import STAGE_NAMES, STAGES
from spaceport.stack.functions import ARN_FORMATS
from spaceport.stack.template import load_stack
from tests.unit.cloud import EVENTS, ROOT, environment, load_event, load_template, resolve

FUNCTIONS = ROOT / "functions"
HANDLERS = {
    "IngestFunction": "ingest",
    "SettleFunction": "settle",
    "ValidateFunction": "validate",
    "StartJobFunction": "start_job",
    "CheckStatusFunction": "check_status",
    "NotifyFunction": "notify",
}
ASL = json.loads((ROOT / "statemachine/pipeline.asl.json").read_text())  # valid JSON before substitution
STATES = ASL["States"]
HANDLERS_OF_ERRORS = ("FailUnlessDone", "RecordFailure", "NotifyFailure")


def machine_substitutions():
    return load_template()["Resources"]["StateMachine"]["Properties"]["DefinitionSubstitutions"]


# Template ------------------------------------------------------------------------------------------------------------


def test_sections_come_in_the_agreed_order():
    order = [
        "AWSTemplateFormatVersion",
        "Transform",
        "Description",
        "Metadata",
        "Parameters",
        "Conditions",
        "Globals",
        "Resources",
        "Outputs",
    ]
    assert list(load_template()) == order


def test_every_parameter_is_typed_described_and_bounded():
    for name, parameter in load_template()["Parameters"].items():
        assert {"Type", "Default", "Description"} <= set(parameter), name
        constraints = {"AllowedValues", "AllowedPattern", "MinValue", "MaxValue"} & set(parameter)
        assert constraints, f"{name} has no constraint"
        if "AllowedPattern" in parameter:
            assert re.fullmatch(parameter["AllowedPattern"], str(parameter["Default"])), name


def test_sam_transforms_the_template(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    template = load_template()
    for resource in template["Resources"].values():  # `sam package` replaces local paths like this
        if resource["Type"] == "AWS::Serverless::StateMachine":
            resource["Properties"]["DefinitionUri"] = "s3://bucket/machine"
        if resource["Type"] == "AWS::Serverless::LayerVersion":
            resource["Properties"]["ContentUri"] = "s3://bucket/layer"
    template["Globals"]["Function"]["CodeUri"] = "s3://bucket/code"
    parameters = {name: p["Default"] for name, p in template["Parameters"].items()}
    translator = Translator({}, Parser(), boto_session=boto3.Session(region_name="us-east-1"))
    resources = translator.translate(template, parameters)["Resources"]
    kinds = [resource["Type"] for resource in resources.values()]
    assert kinds.count("AWS::Lambda::Function") == 6
    assert kinds.count("AWS::Events::Rule") == 6
    assert kinds.count("AWS::Lambda::Permission") == 6
    assert kinds.count("AWS::StepFunctions::StateMachine") == 1
    roles = {
        r["Properties"]["Role"]["Fn::GetAtt"][0] for r in resources.values() if r["Type"] == "AWS::Lambda::Function"
    }
    assert len(roles) == 6, "one role per function"


@pytest.mark.parametrize(("function", "module"), HANDLERS.items())
def test_handler_exists(function, module):
    properties = load_template()["Resources"][function]["Properties"]
    assert properties["Handler"] == f"{module}.handler"
    tree = ast.parse((FUNCTIONS / f"{module}.py").read_text())
    assert "handler" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("function", HANDLERS)
def test_every_variable_that_is_read_is_set_and_the_other_way_round(function):
    given = {name for name in environment(function) if not name.startswith("POWERTOOLS_")}
    fields = settings_module.Settings.model_fields
    required = {name.upper() for name, field in fields.items() if field.is_required()} - {"STAGES"}
    required |= {
        f"{stage}_{name}".upper() for stage in STAGE_NAMES for name in settings_module.StageSettings.model_fields
    }
    assert given - {"STATE_MACHINE_ARN"} == required
    assert ("STATE_MACHINE_ARN" in given) == (function == "IngestFunction")


def test_only_settings_reads_the_environment_and_only_aws_makes_clients():
    for file in FUNCTIONS.rglob("*.py"):
        text = file.read_text()
        assert bool(re.search(r"\bos\.environ|getenv", text)) == (file.name == "settings.py"), file.name
        assert bool(re.search(r"boto3\.(client|resource|Session)", text)) == (file.name == "aws.py"), file.name
        if file.name != "aws.py":
            assert not re.search(r"\btime\.time\(|datetime\.now\(|utcnow\(", text), f"{file.name} reads the clock"


def test_every_setting_is_used():
    text = "\n".join(f.read_text() for f in FUNCTIONS.rglob("*.py") if f.name != "settings.py")
    fields = (settings_module.Settings.model_fields.keys() | settings_module.StageSettings.model_fields.keys()) - {
        "stages"
    }
    for name in fields:
        assert re.search(rf"\.{name}\b", text), name


def test_functions_import_no_other_part_and_nothing_heavy():
    declared = set((FUNCTIONS / "requirements.txt").read_text().split())
    assert declared == {"aws-lambda-powertools[tracer]", "jinja2", "pydantic", "python-ulid"}
    allowed = {
        "aws_lambda_powertools",
        "jinja2",
        "pydantic",
        "typing_extensions",  # of pydantic, which demands its TypedDict on Python 3.11
        "ulid",
        "boto3",
        "botocore",
        "mypy_boto3_dynamodb",
        "mypy_boto3_s3",
        "mypy_boto3_sagemaker",
        "mypy_boto3_sesv2",
        "mypy_boto3_sns",
        "mypy_boto3_stepfunctions",
    }
    own = {file.stem for file in FUNCTIONS.iterdir()}
    for file in FUNCTIONS.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.partition(".")[0]
                assert top in allowed | own | sys.stdlib_module_names, f"{file.name} imports {name}"


# Where the program reads the template itself, or has the word for another reason. Each must occur: a test says so.
REPEATED = {
    "deploy/limits.py": {"StartJobFunction", "CheckStatusFunction"},  # reads their timeouts and schedule
    "containers/sfm/photos.py": {"MIN_PHOTOS"},  # the stage's own floor, for photos that turn out to be unusable
    "functions/stages/prices.py": {
        "ml.c6i.2xlarge",
        "ml.c6i.4xlarge",
        "ml.g4dn.xlarge",
    },  # the price list, by instance type
}
# Formats in braces name no resource: where ARNs are made, the embedded engine takes CloudFormation's part.
ARNS_OF_NO_RESOURCE = {
    "spaceport/asl/definition.py": {"arn:aws:states:::…"},
    "spaceport/asl/tasks.py": {"arn:aws:states:::lambda:invoke``"},
    "spaceport/local_cloud.py": {
        *("arn:aws:states:::", "arn:aws:states:::lambda:invoke", "arn:aws:states:::dynamodb:updateItem."),
        "arn:aws:s3:::{bucket}",
    },
    "spaceport/stack/functions.py": {
        "arn:aws:cloudformation:{region}:{account_id}:stack/{stack_name}/local",
        *(form for form in ARN_FORMATS.values() if form.startswith("arn:aws:")),
    },
    "spaceport/jobs/sagemaker.py": {
        "arn:aws:sagemaker:{self.storage.region}:{self.storage.account_id}:{kind}-job/{name}",
    },
    "spaceport/asl/stepfunctions.py": {
        "arn:aws:iam::{machine_arn.split(",
        *("arn:aws:states:REGION:ACCOUNT:stateMachine:NAME)", "arn:aws:states:REGION:ACCOUNT:execution:MACHINE:NAME."),
    },
    "spaceport/stack/template.py": {"arn:aws:scheduler:{stack.region}:{stack.account_id}:schedule/default/{name}"},
}


def sources():
    """(path below the root, text) of every program, without types of resources, which are CloudFormation's words."""
    for folder in ("functions", "spaceport", "containers", "deploy"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            text = re.sub(r"\bAWS::\w+::\w+", "", file.read_text())
            yield file.relative_to(ROOT).as_posix(), text


def written_in(text, words):
    return {word for word in words if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)}


def test_names_and_variables_are_written_in_the_template_alone():
    """Neither logical ids nor names of resources nor variables and values of the environment are repeated elsewhere."""
    template = load_template()
    # Words of AWS's own APIs, and what Settings reads: each variable as the field of its name in small letters.
    logical = set(template["Resources"]) - {"Bucket", "StateMachine"}
    texts = {str(p["Default"]) for p in template["Parameters"].values() if p["Type"] == "String" and p["Default"]}
    values = texts - {"true", "false", "spaceport"}
    functions = [name for name, r in template["Resources"].items() if r["Type"] == "AWS::Serverless::Function"]
    variables = {v for name in functions for v in environment(name) if not v.startswith("POWERTOOLS_")}
    stack = load_stack(ROOT / "template.yaml")
    resources = [*stack.buckets, *stack.tables, *stack.topics, *stack.functions, *stack.state_machines]
    names = {resource.name for resource in resources}
    assert "spaceport-bucket-123456789012" in names and {"JobTable", "TABLE_NAME"} < logical | variables
    words = logical | values | variables | names
    assert {path: found for path, text in sources() if (found := written_in(text, words))} == REPEATED


def test_no_program_writes_the_arn_of_a_resource():
    arns = {path: set(re.findall(r"arn:aws:[^\"'\s]*", text)) for path, text in sources()}
    assert {path: found for path, found in arns.items() if found} == ARNS_OF_NO_RESOURCE
    asl = (ROOT / "statemachine/pipeline.asl.json").read_text()
    assert set(re.findall(r"arn:aws:[^\"]*", asl)) == {
        "arn:aws:states:::lambda:invoke.waitForTaskToken",
        "arn:aws:states:::dynamodb:updateItem",
    }


def test_the_stages_least_number_of_photos_is_the_templates():
    from sfm.photos import MIN_PHOTOS

    assert load_template()["Parameters"]["MinPhotos"]["Default"] == MIN_PHOTOS


def test_index_that_the_sweep_reads_is_the_declared_one():
    from table import store

    (index,) = load_template()["Resources"]["JobTable"]["Properties"]["GlobalSecondaryIndexes"]
    assert index["IndexName"] == store.OPEN_ROWS_INDEX


def test_roles_have_exact_actions():
    template = load_template()
    del template["Resources"]["DataKey"]["Properties"]["KeyPolicy"]  # kms:* there leaves the rest to the roles
    text = json.dumps(template)
    assert not re.search(r'"(\w+):\*"', text.replace('"s3:*"', "")), "a wildcard action (the bucket's Deny apart)"
    for name, resource in template["Resources"].items():
        for policy in resource.get("Properties", {}).get("Policies", []):
            for statement in policy["PolicyDocument"]["Statement"]:
                if "Fn::If" not in statement and statement["Resource"] == "*":
                    unbound = ("DeliverLogs", "Trace", "WriteTrace", "LogInToRegistry", "MachineMetrics")
                    assert statement["Sid"] in unbound, f"{name}: {statement['Sid']}"


# Events --------------------------------------------------------------------------------------------------------------


def matches(pattern, value):
    """EventBridge's rules that the template uses: nested objects, lists of alternatives, prefixes."""
    if isinstance(pattern, dict):
        return isinstance(value, dict) and all(k in value and matches(p, value[k]) for k, p in pattern.items())
    return any(
        value.startswith(option["prefix"]) if isinstance(option, dict) else value == option
        for option in pattern
        if isinstance(value, str)
    )


RULES = {
    ("IngestFunction", "ObjectCreated"): {"s3-object-created"},
    ("CheckStatusFunction", "TrainingJobChanged"): {
        "sagemaker-training-completed",
        "sagemaker-training-failed",
        "sagemaker-training-stopped",
        "sagemaker-training-in-progress",
    },
    ("CheckStatusFunction", "ProcessingJobChanged"): {"sagemaker-processing-completed", "sagemaker-processing-failed"},
    ("NotifyFunction", "ExecutionEnded"): {"execution-status-change"},
}


@pytest.mark.parametrize(("function", "event"), RULES)
def test_rule_takes_its_own_sample_events_and_no_others(function, event):
    template = load_template()
    pattern = resolve(template, template["Resources"][function]["Properties"]["Events"][event]["Properties"]["Pattern"])
    taken = set()
    for file in EVENTS.glob("*.json"):
        sample = load_event(file.stem)
        if file.stem == "execution-status-change":
            sample["detail"]["stateMachineArn"] = pattern["detail"].get("stateMachineArn", [""])[0]
        if matches(pattern, sample):
            taken.add(file.stem)
    assert taken == RULES[function, event]


# State machine -------------------------------------------------------------------------------------------------------


def test_substitutions_are_exactly_those_of_the_template():
    used = set(re.findall(r"\$\{(\w+)\}", json.dumps(ASL)))
    assert used == set(machine_substitutions())
    assert not re.search(r":\s*\$\{", (ROOT / "statemachine/pipeline.asl.json").read_text())


def test_every_next_exists_and_every_state_is_reached():
    reached, todo = set(), [ASL["StartAt"]]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += followers(STATES[name])
    assert reached == set(STATES)


def followers(state):
    catches = [catch["Next"] for catch in state.get("Catch", [])]
    choices = [choice["Next"] for choice in state.get("Choices", [])]
    return [*catches, *choices, *[state[key] for key in ("Next", "Default") if key in state]]


def test_every_task_has_a_limit_a_catch_and_comes_to_a_true_end():
    assert ASL["TimeoutSeconds"] > sum(
        s.get("TimeoutSeconds", 0) for n, s in STATES.items() if n in {stage.state for stage in STAGES}
    )
    for name, state in STATES.items():
        if state["Type"] != "Task":
            continue
        assert state["TimeoutSeconds"] > 0, name
        *before, catch = state["Catch"]
        # Only the state that looks whether the job has succeeded all the same has another way out.
        assert [c["Next"] for c in before] == (["Succeeded"] if name == "FailUnlessDone" else []), name
        assert catch["ErrorEquals"] == ["States.ALL"], name
        # The handlers of an error keep the error they handle; everything else writes it.
        assert catch["ResultPath"] == (None if name in HANDLERS_OF_ERRORS else "$.error"), name
        if ".waitForTaskToken" in state["Resource"]:
            assert state["HeartbeatSeconds"] >= 2 * 300, "the sweep comes every five minutes"
    assert STATES["Failed"]["Type"] == "Fail"
    assert not {"ErrorPath", "CausePath"} & set(STATES["Failed"])


def test_limits_of_the_machine_are_longer_than_those_of_the_jobs():
    parameters = load_template()["Parameters"]
    for stage in STAGES:
        longest = parameters[f"{stage.name.capitalize()}MaxRuntimeSeconds"]["MaxValue"]
        longest += parameters["SpotWaitSeconds"]["MaxValue"] if stage.is_training else 0
        assert STATES[stage.state]["TimeoutSeconds"] > longest
    for state in ("Settle", "Validate", "Notify", "NotifyFailure"):
        function = load_template()["Resources"][f"{state.removesuffix('Failure')}Function"]["Properties"]
        assert STATES[state]["TimeoutSeconds"] > function.get("Timeout", 60)


def test_stage_payload_is_the_contracts():
    for stage in STAGES:
        assert STATES[stage.state]["Parameters"]["Payload"] == {
            "state.$": "$",
            "stage": stage.name,
            "attempt.$": "$$.State.RetryCount",
            "task_token.$": "$$.Task.Token",
            "execution_arn.$": "$$.Execution.Id",
        }
        assert STATES[stage.state]["ResultPath"] == f"$.{stage.name}"
        assert ["Spaceport.Transient"] in [retry["ErrorEquals"] for retry in STATES[stage.state]["Retry"]]


# Asynchronous calls ---------------------------------------------------------------------------------------------------


def test_every_event_that_is_given_up_lies_in_a_queue_with_an_alarm():
    resources = load_template()["Resources"]
    alarms = [r["Properties"] for r in resources.values() if r["Type"] == "AWS::CloudWatch::Alarm"]
    names = [a["Dimensions"][0]["Value"]["Fn::GetAtt"] for a in alarms if a["Namespace"] == "AWS/SQS"]
    watched = {name if isinstance(name, str) else ".".join(name) for name in names}
    allowed = json.dumps(resources["DeadLettersPolicy"]["Properties"]["PolicyDocument"])
    asynchronous = [name for name in HANDLERS if resources[name]["Properties"].get("Events")]
    assert set(asynchronous) == {"IngestFunction", "CheckStatusFunction", "NotifyFunction"}
    for name in asynchronous:
        queue = name.replace("Function", "DeadLetters")
        properties = resources[name]["Properties"]
        assert resources[queue]["Type"] == "AWS::SQS::Queue"
        destination = properties["EventInvokeConfig"]["DestinationConfig"]["OnFailure"]["Destination"]
        assert queue in json.dumps(destination)
        for event, body in properties["Events"].items():
            assert queue in json.dumps(body["Properties"]["DeadLetterConfig"]), f"{name}.{event}"
        assert queue in allowed
        assert f"{queue}.QueueName" in watched


def test_every_bad_end_of_an_execution_has_an_alarm():
    """Step Functions counts a timeout as such, not as a failure; an abort is somebody's wish."""
    resources = load_template()["Resources"].values()
    alarms = [r["Properties"] for r in resources if r["Type"] == "AWS::CloudWatch::Alarm"]
    watched = {a["MetricName"]: a for a in alarms if a["Namespace"] == "AWS/States"}
    assert set(watched) == {"ExecutionsFailed", "ExecutionsTimedOut"}
    assert all((a["Threshold"], a["ComparisonOperator"]) == (0, "GreaterThanThreshold") for a in watched.values())


def test_a_burst_of_uploads_can_be_limited():
    template = load_template()
    reserved = template["Resources"]["IngestFunction"]["Properties"]["ReservedConcurrentExecutions"]
    assert reserved["Fn::If"][:2] == ["HasIngestLimit", {"Ref": "IngestConcurrency"}]
