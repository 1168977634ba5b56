"""start_job: one SageMaker job per start."""

import pytest

from base import layout
from base.failures import JobFailure
from base.settings import settings
from stages import sagemaker_jobs
from table import jobs, tasks
from tests.unit.cloud import (
    BUCKET,
    JOB,
    add_job,
    assert_valid,
    client_error,
    cloud,
    row,
)
from tests.unit.stage_calls import NAME, SFM_RESULT, TRAIN, TRAIN_RESULT, start

__all__ = ["cloud"]


# start_job -----------------------------------------------------------------------------------------------------------


def test_no_training_is_started_without_money_for_it(cloud):
    dear = {**SFM_RESULT, "cost_usd": 2}
    add_job(results={"sfm": dear}, options={"preset": "standard", "max_cost_usd": 2})
    with pytest.raises(JobFailure) as raised:
        start(cloud, "train")
    assert (raised.value.code, cloud.sagemaker.requests) == ("COST_LIMIT", {})
    assert "open" not in row(f"TASK#{TRAIN}"), "the sweep need not look for it"


@pytest.mark.parametrize("stage", ["sfm", "train", "compress"])
@pytest.mark.parametrize("spot", ["true", "false"])
def test_requests_keep_the_contract(cloud, monkeypatch, stage, spot):
    cloud.set(monkeypatch, USE_SPOT=spot)
    options = {
        "preset": "high",
        "max_iterations": 500,
        "matcher": "spatial",
        "title": "Haus Ä",
        "email": "a@example.com",
    }
    add_job(results={"sfm": SFM_RESULT, "train": TRAIN_RESULT}, options=options, estimated_usd=1)
    name = start(cloud, stage)["job_name"]
    request = cloud.sagemaker.requests[name]  # validated against the service model by FakeSageMaker
    assert len(name) <= 63
    assert request["EnableNetworkIsolation" if stage == "train" else "NetworkConfig"] in (
        True,
        {"EnableNetworkIsolation": True},
    )
    if stage == "train":
        assert request["AlgorithmSpecification"]["ContainerEntrypoint"] == ["python3", "-m", "train"]
        assert request["HyperParameters"] == {
            "job_id": JOB,
            "scene": "my-house",
            "preset": "high",
            "max_iterations": "500",
            "max_training_usd": f"{5 - 0.816 * 480 / 3600 - 0.736 * 180 / 3600:.6f}",  # MaxUsdPerScene is 5
            "price_usd_per_hour": "0.736",
        }
        assert request["OutputDataConfig"] == {
            "S3OutputPath": f"s3://{BUCKET}/work/{JOB}/train/",
            "CompressionType": "NONE",
        }
        assert request["CheckpointConfig"] == {
            "S3Uri": f"s3://{BUCKET}/work/{JOB}/train/checkpoints/",
            "LocalPath": "/opt/ml/checkpoints",
        }
        channel = request["InputDataConfig"][0]
        assert (channel["ChannelName"], channel["DataSource"]["S3DataSource"]["S3Uri"]) == (
            "sfm",
            SFM_RESULT["output_uri"],
        )
        wait = request["StoppingCondition"].get("MaxWaitTimeInSeconds")
        assert request["EnableManagedSpotTraining"] is (spot == "true")
        assert (wait is not None) == (spot == "true")
        assert wait is None or wait >= request["StoppingCondition"]["MaxRuntimeInSeconds"]
        return
    assert request["AppSpecification"]["ContainerEntrypoint"] == ["python3", "-m", stage]
    inputs = {i["InputName"]: (i["S3Input"]["LocalPath"], i["S3Input"]["S3Uri"]) for i in request["ProcessingInputs"]}
    if stage == "sfm":
        assert inputs == {"photos": ("/opt/ml/processing/input/photos", f"s3://{BUCKET}/work/{JOB}/manifest.json")}
        assert request["ProcessingInputs"][0]["S3Input"]["S3DataType"] == "ManifestFile"
        assert request["Environment"]["SPACEPORT_OPTION_MATCHER"] == "spatial"
    else:
        assert inputs == {
            "sfm": ("/opt/ml/processing/input/sfm", SFM_RESULT["output_uri"]),
            "train": ("/opt/ml/processing/input/train", TRAIN_RESULT["output_uri"]),
        }
        names = [
            "JOB_ID",
            "SCENE",
            "TITLE",
            "CREATED_AT",
            "PRICE_USD_PER_HOUR",
            "SPENT_USD",
            "ESTIMATED_USD",
            "COST_BASIS",
        ]
        assert set(request["Environment"]) == {f"SPACEPORT_OPTION_{name}" for name in names}
        assert request["Environment"]["SPACEPORT_OPTION_TITLE"] == "Haus Ä"
    outputs = {
        o["OutputName"]: (o["S3Output"]["LocalPath"], o["S3Output"]["S3Uri"], o["S3Output"]["S3UploadMode"])
        for o in request["ProcessingOutputConfig"]["Outputs"]
    }
    assert outputs == {
        "output": ("/opt/ml/processing/output", f"s3://{BUCKET}/work/{JOB}/{stage}/", "EndOfJob"),
        "progress": ("/opt/ml/processing/progress", f"s3://{BUCKET}/work/{JOB}/progress/{stage}/", "Continuous"),
    }


def test_token_is_stored_before_the_job_exists(cloud, monkeypatch):
    add_job()
    seen = []
    create = cloud.sagemaker.create_processing_job

    def recording(**arguments):
        seen.append(row(f"TASK#{NAME}")["task_token"])
        return create(**arguments)

    monkeypatch.setattr(cloud.sagemaker, "create_processing_job", recording)
    start(cloud)
    assert seen == ["token-0"]


def test_repeated_start_is_the_same_job(cloud):
    add_job()
    assert start(cloud) == {"job_name": NAME, "created": True}
    assert start(cloud) == {"job_name": NAME, "created": False}
    assert list(cloud.sagemaker.requests) == [NAME]
    assert cloud.sagemaker.stopped == []


def test_retry_is_a_new_job_and_stops_the_one_before(cloud):
    add_job()
    start(cloud)
    second = start(cloud, attempt=1, token="token-1")
    assert second["job_name"] == NAME[:-1] + "1"
    assert cloud.sagemaker.stopped == [NAME]
    assert "open" in row(f"TASK#{NAME}"), "the call that it belongs to may be creating the job now"


def test_redriven_execution_takes_the_next_free_number(cloud):
    add_job()
    start(cloud)
    cloud.sagemaker.end(NAME, "Failed", FailureReason="AlgorithmError: exit code: 1")
    tasks.close_task(NAME, "FAILED")
    jobs.end_job(JOB, "FAILED")
    again = start(cloud, attempt=0, token="token-after-redrive")
    assert again == {"job_name": NAME[:-1] + "1", "created": True}
    assert row(f"JOB#{JOB}")["status"] == "RUNNING"


@pytest.mark.parametrize(
    ("code", "message", "status", "raised"),
    [
        ("ResourceLimitExceeded", "The account-level service limit is 0", 400, "Spaceport.Transient"),
        ("ThrottlingException", "Rate exceeded", 400, "Spaceport.Transient"),
        ("SomethingNew", "oops", 500, "Spaceport.Transient"),
        ("ValidationException", "RoleArn is wrong", 400, "SAGEMAKER_REJECTED"),
        ("AccessDeniedException", "no", 400, "SAGEMAKER_REJECTED"),
    ],
)
def test_refused_creation(cloud, code, message, status, raised):
    add_job()
    cloud.sagemaker.refuse = client_error(code, message, "CreateProcessingJob", status)
    with pytest.raises(JobFailure) as error:
        start(cloud)
    assert type(error.value).__name__ == raised  # the name that Lambda reports to Step Functions
    assert message in str(error.value)
    assert "open" not in row(f"TASK#{NAME}"), "the sweep has nothing to look after"


def test_name_taken_by_validation_error_is_the_same_job(cloud):
    add_job()
    cloud.sagemaker.refuse = client_error("ValidationException", f"Job {NAME} already exists", "CreateProcessingJob")
    assert start(cloud)["created"] is False


def test_job_without_a_row_or_result_is_refused(cloud):
    with pytest.raises(JobFailure, match="no row of job"):
        start(cloud)
    add_job()
    with pytest.raises(JobFailure, match="no result of the sfm stage"):
        start(cloud, "train")


def test_name_of_a_job_fits_with_the_longest_prefix(cloud):
    assert len(layout.job_name("p" * 20, JOB, "compress", 99)) <= 63
    with pytest.raises(ValueError, match="shorten JobPrefix"):
        layout.job_name("p" * 40, JOB, "compress", 99)


def test_option_longer_than_sagemaker_takes(cloud):
    job = {"job_id": JOB, "scene": "s" * 257, "options": {}, "results": {}}
    with pytest.raises(JobFailure, match="'scene' has 257 characters; 256 are allowed"):
        sagemaker_jobs.stage_options("sfm", job, settings())


@pytest.mark.parametrize("stage", ["Sfm", "Train", "Compress"])
def test_instance_types_of_the_template_exist(stage):
    from tests.unit.cloud import load_template

    for machine in load_template()["Parameters"][f"{stage}InstanceType"]["AllowedValues"]:
        resources = {"InstanceType": machine, "InstanceCount": 1, "VolumeSizeInGB": 10}
        if stage == "Train":
            shape = {
                "TrainingJobName": "a",
                "RoleArn": "arn:aws:iam::123456789012:role/stage",
                "OutputDataConfig": {"S3OutputPath": "s3://b/"},
                "ResourceConfig": resources,
                "StoppingCondition": {},
            }
            assert_valid("sagemaker", "CreateTrainingJob", shape)
        else:
            shape = {
                "ProcessingJobName": "a",
                "RoleArn": "arn:aws:iam::123456789012:role/stage",
                "AppSpecification": {"ImageUri": "i"},
                "ProcessingResources": {"ClusterConfig": resources},
            }
            assert_valid("sagemaker", "CreateProcessingJob", shape)
