from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runner.deployctl import messages
from runner.deployctl.messages import Diagnostic
from runner.settings import SluiceError

LOG = Path("apply.log")
LOCKED = """Error message: operation error S3: PutObject, https response error StatusCode: 412
Lock Info:
  ID:        7a4efaf9-1489-70c6-f949-efbae4cbab4c
  Path:      bucket/prod/data.tfstate
  Operation: OperationTypeApply
  Who:       ann@laptop
  Version:   1.11.4
  Created:   2026-11-22 01:09:39.199084318 +0000 UTC
  Info:


Terraform acquires a state lock to protect the state from being written
by multiple users at the same time."""


def test_a_hook_message_tells_resource_action_and_time() -> None:
    line = json.dumps(
        {
            "@message": "aws_vpc.this: Creation complete after 3s",
            "type": "apply_complete",
            "hook": {"resource": {"addr": "module.n.aws_vpc.this"}, "action": "create", "elapsed_seconds": 3},
            "something_new": {},
        }
    )
    message = messages.parse(line)
    assert message is not None
    assert (message.kind, message.address, message.action, message.seconds) == (
        "apply_complete",
        "module.n.aws_vpc.this",
        "create",
        3.0,
    )


@pytest.mark.parametrize("line", ["", "panic: runtime error", "{not json", "[1]", '{"a": 1}'])
def test_what_is_no_message_is_none(line: str) -> None:
    assert messages.parse(line) is None


def test_an_unknown_kind_is_kept_and_an_unknown_major_version_refused() -> None:
    kept = messages.parse('{"@message": "x", "type": "brand_new"}')
    assert kept is not None and kept.kind == "brand_new"
    assert messages.parse('{"@message": "x", "type": "version", "ui": "1.7"}') is not None
    with pytest.raises(SluiceError, match=r"speaks -json format 2\.0"):
        messages.parse('{"@message": "x", "type": "version", "ui": "2.0"}')


def test_a_failure_is_its_first_resource_in_one_line() -> None:
    errors = [
        Diagnostic("error", "execution halted"),
        Diagnostic("error", "creating RDS DB Instance (x):\n  InvalidParameter", "", "aws_db_instance.this"),
        Diagnostic("error", "creating S3 Bucket (y): taken", "", "aws_s3_bucket.b"),
    ]
    error = messages.failure(errors, "", 1, LOG)
    assert error.message == "aws_db_instance.this: creating RDS DB Instance (x): InvalidParameter (and 1 more)"
    assert error.hint == "all of it: apply.log"
    assert error.exit_code == 1


def test_a_bad_value_says_why_and_is_the_callers_mistake() -> None:
    detail = "workers must not be below zero.\n\nThis was checked by the rule at main.tf:8,3-13."
    error = messages.failure([Diagnostic("error", "Invalid value for variable", detail, place="main.tf:8")], "", 1, LOG)
    assert error.message == "main.tf:8: Invalid value for variable: workers must not be below zero."
    assert error.exit_code == 2


def test_a_value_that_cannot_be_read_names_its_variable() -> None:
    error = messages.failure(
        [
            Diagnostic(
                "error", "Variables not allowed", "Variables may not be used here.", place="<value for var.workers>:1"
            )
        ],
        "",
        1,
        LOG,
    )
    assert error.message == (
        "the value given for workers cannot be read: Variables not allowed. Variables may not be used here"
    )
    assert error.exit_code == 2 and "quotes" in error.hint


def test_a_lock_given_back_before_it_could_be_read_is_told_as_a_lock() -> None:
    detail = "operation error S3: PutObject, api error PreconditionFailed: unable to retrieve file from S3 bucket"
    error = messages.Diagnostic("error", "Error acquiring the state lock", detail)
    found = messages.failure([error], "", 1, Path("plan.log"))
    assert found.message == "the state is locked by a run that has just ended" and found.hint == "run it again"


def test_a_held_lock_says_who_and_since_when() -> None:
    errors = [Diagnostic("error", "Error acquiring the state lock", LOCKED)]
    error = messages.failure(errors, "", 1, LOG)
    assert isinstance(error, messages.LockedError)
    assert error.lock.id == "7a4efaf9-1489-70c6-f949-efbae4cbab4c"
    now = datetime(2026, 11, 22, 1, 15, tzinfo=UTC)
    assert error.lock.line(now) == "ann@laptop (apply) since 2026-11-22 01:09:39 UTC, 5 min ago"
    assert error.message.startswith("the state is locked by ann@laptop (apply) since 2026-11-22 01:09:39 UTC")
    assert error.lock.id in error.hint


def test_a_crash_without_diagnostics_gives_its_error_line() -> None:
    box = "\x1b[31m╷\x1b[0m\n\x1b[31m│\x1b[0m \x1b[1mError: \x1b[0mFailed to query providers\n│\n│ more\n╵\n"
    assert messages.failure([], box, 1, LOG).message == "Failed to query providers"
    assert messages.failure([], "", -9, LOG).message == "terraform exited with status -9"
