"""Copies between directories and S3."""

from pathlib import Path

import boto3
import pytest

from runner.authoring import DAG, Context
from runner.authoring.operators import CopyOperator
from runner.storage import MissingError, Storage


@pytest.fixture
def bucket(aws: str, tmp_path: Path) -> str:
    name = f"copies-{abs(hash(tmp_path))}"
    boto3.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    return f"s3://{name}"


def test_a_file_goes_to_s3_and_back(bucket: str, tmp_path: Path, context: Context) -> None:
    (tmp_path / "a b.csv").write_bytes(b"1,2\n")
    with DAG("copies") as d:
        up = CopyOperator(
            "up", source=f"file://{tmp_path}/a%20b.csv", target=f"{bucket}/in/{{{{ logical_date | ds }}}}/"
        )
        CopyOperator("down", source=up, target="local.csv")
    done = d.test(context.logical_date, storage_url=context.storage_url)
    assert done["up"] == [f"{bucket}/in/2026-03-01/a b.csv"]
    assert done["down"] == [context.storage.url_of("local.csv")]
    assert context.storage.get("local.csv") == b"1,2\n"


def test_a_folder_goes_with_everything_in_it(bucket: str, tmp_path: Path, context: Context) -> None:
    # Given a folder in a bucket, and a file beside it
    lake = Storage.open(bucket)
    for n in range(20):
        lake.put(f"day/{n % 3}/%41 {n}.csv", str(n).encode())
    lake.put("day2/x", b"")
    # When it is copied to a directory, and moved within the bucket
    written = CopyOperator("c", source=f"{bucket}/day/", target=f"file://{tmp_path}/out/").execute(context)
    CopyOperator("m", source=f"{bucket}/day/", target=f"{bucket}/done/day/", delete_source=True).execute(context)
    # Then each file is where it was inside it, by the same name
    assert len(written) == 20
    assert {str(p.relative_to(tmp_path / "out")): p.read_text() for p in (tmp_path / "out").rglob("*.csv")} == {
        f"{n % 3}/%41 {n}.csv": str(n) for n in range(20)
    }
    assert [s.key.split("/")[0] for s in lake.list()] == ["day2"] + ["done"] * 20


def test_what_cannot_be_copied_is_said(bucket: str, context: Context) -> None:
    context.storage.put("a", b"1")
    context.storage.put("b", b"2")
    with pytest.raises(MissingError, match="there is no gone"):
        CopyOperator("c", source=["a", "gone"], target="d/").execute(context)
    with pytest.raises(MissingError, match=f"there is nothing in {bucket}/none/"):
        CopyOperator("c", source=f"{bucket}/none/", target="d/").execute(context)
    with pytest.raises(ValueError, match="target 'd' must be a folder"):
        CopyOperator("c", source=["a", "b"], target="d").execute(context)
    # a move onto itself loses nothing
    CopyOperator("c", source="a", target="a", delete_source=True).execute(context)
    assert context.storage.get("a") == b"1"
