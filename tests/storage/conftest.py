"""The same tests on a directory and on S3."""

from pathlib import Path

import boto3
import pytest

from runner.storage import Storage


@pytest.fixture(params=["file", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "file":
        return Storage.open(f"file://{tmp_path}/a store")
    request.getfixturevalue("aws")
    bucket = f"bucket-{abs(hash(tmp_path))}"
    boto3.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    return Storage.open(f"s3://{bucket}/some/prefix")
