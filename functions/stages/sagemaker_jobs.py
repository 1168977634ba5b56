"""Requests that create, describe and stop the SageMaker job of a stage (docs/contracts.md, "Stage programs")."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

from botocore.exceptions import ClientError

from base import aws, layout
from base.failures import failure, transient
from base.settings import Settings, StageSettings
from base.stages import UPLOAD, StageName, find_stage
from stages import prices
from stages.verdicts import JobDescription
from table.rows import JobRow
from uploads.options import JobOptions, StageValues, names_for

if TYPE_CHECKING:
    from mypy_boto3_sagemaker.literals import ProcessingInstanceTypeType, TrainingInstanceTypeType
    from mypy_boto3_sagemaker.type_defs import (
        CreateProcessingJobRequestTypeDef,
        CreateTrainingJobRequestTypeDef,
        OutputDataConfigTypeDef,
        ProcessingClusterConfigTypeDef,
        ProcessingInputTypeDef,
        ProcessingOutputConfigTypeDef,
        ProcessingOutputTypeDef,
        ResourceConfigTypeDef,
        StoppingConditionTypeDef,
        TagTypeDef,
    )

# Limits of the API (CreateTrainingJob, CreateProcessingJob).
PROCESSING_VALUE_LIMIT = 256
HYPERPARAMETER_LIMIT = 2500
OPTION_PREFIX = "SPACEPORT_OPTION_"
PROCESSING = "/opt/ml/processing"
OWN_DISK = ("ml.g4dn.", "ml.g5.", "ml.g6.")  # machine families with local NVMe storage
TRY_AGAIN = {
    "ResourceLimitExceeded": "QUOTA_EXCEEDED",
    "ThrottlingException": "NO_CAPACITY",
    "Throttling": "NO_CAPACITY",
    "TooManyRequestsException": "NO_CAPACITY",
    "ServiceUnavailable": "SAGEMAKER_INTERNAL",
    "ServiceUnavailableException": "SAGEMAKER_INTERNAL",
    "InternalFailure": "SAGEMAKER_INTERNAL",
    "InternalServerError": "SAGEMAKER_INTERNAL",
}
CLOCK_SKEW_S = 60
SAME_NAME = ("already exists", "must be unique", "already in use")


def request(
    stage: StageName, job: JobRow, name: str, settings: Settings
) -> CreateTrainingJobRequestTypeDef | CreateProcessingJobRequestTypeDef:
    """Arguments of create_training_job or create_processing_job for a row of the job table."""
    if find_stage(stage).is_training:
        return _training_request(stage, job, name, settings)
    return _processing_request(stage, job, name, settings)


def stage_options(stage: StageName, job: JobRow, settings: Settings) -> dict[str, str]:
    """Options by lower-case name, as text.

    Raises BAD_OPTION where one is longer than SageMaker takes, COST_LIMIT where no money is left for training.
    """
    given = JobOptions.model_validate(job["options"])
    values: dict[str, Callable[[], object]] = {
        "job_id": lambda: job["job_id"],
        "scene": lambda: job["scene"],
        "created_at": lambda: job["created_at"],
        "price_usd_per_hour": lambda: prices.price_usd_per_hour(settings, settings.stage(stage).instance_type),
        "max_training_usd": lambda: _usd(prices.training_usd(settings, given, job)),
        "spent_usd": lambda: _usd(prices.spent_usd(job)),
        "estimated_usd": lambda: job["estimated_usd"],
        "cost_basis": lambda: prices.basis(settings),
    }
    found = {name: values[name]() for name in names_for(stage, StageValues) if name in values}
    options = {name: str(value) for name, value in found.items() if value is not None} | given.for_stage(stage)
    limit = HYPERPARAMETER_LIMIT if find_stage(stage).is_training else PROCESSING_VALUE_LIMIT
    for name, value in options.items():
        if len(value) > limit:
            raise failure("BAD_OPTION", f"the option '{name}' has {len(value)} characters; {limit} are allowed")
    return options


def _usd(amount: float | None) -> str | None:
    return None if amount is None else f"{amount:.6f}"


def _processing_request(
    stage: StageName, job: JobRow, name: str, settings: Settings
) -> CreateProcessingJobRequestTypeDef:
    machine = settings.stage(stage)
    bucket, job_id = job["bucket"], job["job_id"]
    options = stage_options(stage, job, settings)
    cluster: ProcessingClusterConfigTypeDef = {
        "InstanceCount": 1,
        "InstanceType": cast("ProcessingInstanceTypeType", machine.instance_type),
        "VolumeSizeInGB": machine.volume_gb,
    }
    if _volume_key(machine, settings):
        cluster["VolumeKmsKeyId"] = _volume_key(machine, settings)
    outputs: ProcessingOutputConfigTypeDef = {
        "Outputs": [
            _processing_output("output", layout.output_prefix(job_id, stage, name), "EndOfJob", bucket),
            _processing_output("progress", layout.progress_prefix(job_id, stage), "Continuous", bucket),
        ]
    }
    if settings.kms_key_arn:
        outputs["KmsKeyId"] = settings.kms_key_arn
    return {
        "ProcessingJobName": name,
        "RoleArn": machine.role_arn,
        "AppSpecification": {"ImageUri": machine.image_uri, "ContainerEntrypoint": _entrypoint(stage)},
        "Environment": {OPTION_PREFIX + option.upper(): value for option, value in options.items()},
        "ProcessingInputs": [_processing_input(job, channel) for channel in find_stage(stage).reads],
        "ProcessingOutputConfig": outputs,
        "ProcessingResources": {"ClusterConfig": cluster},
        "StoppingCondition": {"MaxRuntimeInSeconds": machine.max_runtime_s},
        "NetworkConfig": {"EnableNetworkIsolation": True},
        "Tags": _tags(job, stage),
    }


def _training_request(stage: StageName, job: JobRow, name: str, settings: Settings) -> CreateTrainingJobRequestTypeDef:
    machine = settings.stage(stage)
    bucket, job_id = job["bucket"], job["job_id"]
    stopping: StoppingConditionTypeDef = {"MaxRuntimeInSeconds": machine.max_runtime_s}
    if settings.use_spot:
        stopping["MaxWaitTimeInSeconds"] = machine.max_runtime_s + settings.spot_wait_s
    cluster: ResourceConfigTypeDef = {
        "InstanceCount": 1,
        "InstanceType": cast("TrainingInstanceTypeType", machine.instance_type),
        "VolumeSizeInGB": machine.volume_gb,
    }
    if _volume_key(machine, settings):
        cluster["VolumeKmsKeyId"] = _volume_key(machine, settings)
    # SageMaker adds <job name>/output/model/; uncompressed, so that nobody has to unpack an archive.
    output: OutputDataConfigTypeDef = {
        "S3OutputPath": layout.uri(bucket, f"work/{job_id}/{stage}/"),
        "CompressionType": "NONE",
    }
    if settings.kms_key_arn:
        output["KmsKeyId"] = settings.kms_key_arn
    return {
        "TrainingJobName": name,
        "RoleArn": machine.role_arn,
        "AlgorithmSpecification": {
            "TrainingImage": machine.image_uri,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": _entrypoint(stage),
        },
        "HyperParameters": stage_options(stage, job, settings),
        "InputDataConfig": [
            {
                "ChannelName": channel,
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": _source(job, channel).kind,
                        "S3Uri": _source(job, channel).uri,
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            }
            for channel in find_stage(stage).reads
        ],
        "OutputDataConfig": output,
        "ResourceConfig": cluster,
        "StoppingCondition": stopping,
        "CheckpointConfig": {
            "S3Uri": layout.uri(bucket, layout.checkpoints_prefix(job_id)),
            "LocalPath": "/opt/ml/checkpoints",
        },
        "EnableManagedSpotTraining": settings.use_spot,
        "EnableNetworkIsolation": True,
        "Tags": _tags(job, stage),
    }


def _volume_key(machine: StageSettings, settings: Settings) -> str:
    """The key for the machine's volume; empty for disks that encrypt themselves, for which SageMaker refuses a key."""
    return "" if machine.instance_type.startswith(OWN_DISK) else settings.kms_key_arn


class Source(NamedTuple):
    kind: Literal["ManifestFile", "S3Prefix"]
    uri: str


def _source(job: JobRow, channel: str) -> Source:
    """Where an input channel lies: the accepted photos, or the output of a stage before."""
    if channel == UPLOAD:
        return Source("ManifestFile", layout.uri(job["bucket"], layout.manifest_key(job["job_id"])))
    result = job["results"].get(channel)
    if result is None:
        raise failure("INTERNAL_ERROR", f"The row of job {job['job_id']} has no result of the {channel} stage.")
    return Source("S3Prefix", result["output_uri"])


def _entrypoint(stage: StageName) -> list[str]:
    return ["python3", "-m", stage]


def _processing_input(job: JobRow, channel: str) -> ProcessingInputTypeDef:
    source = _source(job, channel)
    return {
        "InputName": channel,
        "S3Input": {
            "S3DataType": source.kind,
            "S3Uri": source.uri,
            "LocalPath": f"{PROCESSING}/input/{channel}",
            "S3InputMode": "File",
            "S3DataDistributionType": "FullyReplicated",
        },
    }


def _processing_output(
    folder: str, prefix: str, mode: Literal["Continuous", "EndOfJob"], bucket: str
) -> ProcessingOutputTypeDef:
    return {
        "OutputName": folder,
        "S3Output": {
            "S3Uri": layout.uri(bucket, prefix),
            "LocalPath": f"{PROCESSING}/{folder}",
            "S3UploadMode": mode,
        },
    }


def _tags(job: JobRow, stage: StageName) -> list[TagTypeDef]:
    tags = {"spaceport:scene": job["scene"], "spaceport:job": job["job_id"], "spaceport:stage": stage}
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def create(stage: StageName, arguments: CreateTrainingJobRequestTypeDef | CreateProcessingJobRequestTypeDef) -> bool:
    """Create the job; False when a job of this name exists, which is then the same one.

    Raises Spaceport.Transient for quotas, throttling and faults of the service, SAGEMAKER_REJECTED for what
    will not pass the next time either.
    """
    client = aws.sagemaker()
    try:
        if find_stage(stage).is_training:
            client.create_training_job(**cast("CreateTrainingJobRequestTypeDef", arguments))
        else:
            client.create_processing_job(**cast("CreateProcessingJobRequestTypeDef", arguments))
    except ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "ResourceInUse" or any(text in message for text in SAME_NAME):
            return False
        if code in TRY_AGAIN or status >= 500:
            raise transient(TRY_AGAIN.get(code, "SAGEMAKER_INTERNAL"), message or code) from error
        raise failure("SAGEMAKER_REJECTED", f"SageMaker refused the {stage} job ({code}: {message})") from error
    return True


def describe(stage: str, name: str) -> JobDescription | None:
    """SageMaker's description of a job; None when there is no job of this name."""
    client = aws.sagemaker()
    try:
        if find_stage(stage).is_training:
            return cast("JobDescription", client.describe_training_job(TrainingJobName=name))
        return cast("JobDescription", client.describe_processing_job(ProcessingJobName=name))
    except ClientError as error:
        if _is_absent(error):
            return None
        raise


def is_older(stage: str, name: str, than_s: float) -> bool:
    """Whether the job of this name was created before ``than_s`` (seconds since 1970, a minute of clock skew off)."""
    description = describe(stage, name)
    created = description.get("CreationTime") if description else None
    return created is not None and created.timestamp() < than_s - CLOCK_SKEW_S


def stop(stage: str, name: str) -> bool:
    """Stop a job so that it is no longer billed; False when it is absent or has ended already."""
    client = aws.sagemaker()
    try:
        if find_stage(stage).is_training:
            client.stop_training_job(TrainingJobName=name)
        else:
            client.stop_processing_job(ProcessingJobName=name)
    except ClientError as error:
        if _is_absent(error) or error.response["Error"]["Code"] == "ValidationException":
            return False
        raise
    return True


def _is_absent(error: ClientError) -> bool:
    problem = error.response["Error"]
    text = problem.get("Message", "").lower()
    return problem["Code"] in ("ResourceNotFound", "ResourceNotFoundException") or (
        problem["Code"] == "ValidationException" and ("not found" in text or "could not find" in text)
    )
