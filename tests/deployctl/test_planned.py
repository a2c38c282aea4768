from __future__ import annotations

from typing import Any

import pytest

from runner.deployctl import planned
from runner.settings import SluiceError


def resource(address: str, actions: list[str], **change: Any) -> dict[str, Any]:
    return {
        "address": address,
        "mode": "data" if address.startswith("data.") else "managed",
        "type": address.split(".")[-2],
        "change": {"actions": actions, **change},
        "a_key_of_a_later_version": 1,
    }


def show(*resources: dict[str, Any], **more: Any) -> planned.PlanSummary:
    return planned.from_show({"format_version": "1.9", "resource_changes": list(resources), **more})


def test_each_kind_of_change_is_told_apart() -> None:
    summary = show(
        resource("aws_vpc.a", ["create"]),
        resource("aws_vpc.b", ["update"]),
        resource("aws_vpc.c", ["delete", "create"]),
        resource("aws_vpc.d", ["create", "delete"]),
        resource("aws_vpc.e", ["delete"]),
        resource("aws_vpc.f", ["no-op"]),
        resource("aws_vpc.g", ["something-new"]),
        resource("data.aws_ami.h", ["read"]),
    )
    assert [c.address for c in summary.adds] == ["aws_vpc.a"]
    assert [c.address for c in summary.changes] == ["aws_vpc.b"]
    assert [c.address for c in summary.replaces] == ["aws_vpc.c", "aws_vpc.d"]
    assert [c.address for c in summary.destroys] == ["aws_vpc.e"]
    assert summary.line() == "1 to add, 1 to change, 2 to replace, 1 to destroy"
    assert summary.steps == 7


def test_no_changes_is_empty_and_outputs_alone_are_not() -> None:
    assert show().empty
    summary = show(output_changes={"a": {"actions": ["update"]}, "b": {"actions": ["no-op"]}})
    assert not summary.empty
    assert summary.line() == "only outputs change"


def test_destroying_or_replacing_a_protected_resource_is_found_inside_modules() -> None:
    summary = show(
        resource("module.db.aws_db_instance.this", ["delete", "create"]),
        resource("aws_s3_bucket.logs", ["delete"]),
        resource("aws_s3_bucket.new", ["create"]),
        resource("aws_iam_role.r", ["delete"]),
    )
    assert summary.protected() == ["module.db.aws_db_instance.this", "aws_s3_bucket.logs"]


def test_a_change_shows_both_values_and_only_what_differs() -> None:
    summary = show(
        resource(
            "aws_autoscaling_group.w",
            ["update"],
            before={"min_size": 2, "name": "w", "tags": {"a": "1", "b": "2"}},
            after={"min_size": 3, "name": "w", "tags": {"a": "1", "b": "3"}},
            after_unknown={"arn": True},
        )
    )
    assert summary.changes[0].fields == (planned.Field("min_size", "2", "3"), planned.Field("tags.b", "2", "3"))


def test_a_secret_is_never_shown() -> None:
    summary = show(
        resource(
            "aws_db_instance.d",
            ["update"],
            before={"password": "old", "x": "[1]", "nested": [{"token": "t1"}]},
            after={"password": "new", "x": "[2]", "nested": [{"token": "t2"}]},
            before_sensitive={"password": True, "nested": [{}]},
            after_sensitive={"password": True, "nested": [{"token": True}]},
        )
    )
    shown = str(summary.as_json())
    assert "[1]" in shown
    assert not any(secret in shown for secret in ("old", "new", "t1", "t2"))


def test_an_unknown_major_format_is_refused_and_a_minor_one_is_not() -> None:
    with pytest.raises(SluiceError, match=r"speaks plan format 2\.0"):
        planned.from_show({"format_version": "2.0"})
    assert planned.from_show({"format_version": "1.99"}).empty


def test_what_means_the_same_to_a_reader_is_no_change() -> None:
    summary = show(
        resource(
            "aws_autoscaling_group.w",
            ["update"],
            before={"a": [{"x": None}], "b": None, "c": {}, "n": 0},
            after={"a": [{"x": ""}], "b": "", "c": None, "n": None},
        )
    )
    assert summary.changes[0].fields == (planned.Field("n", "0", "null"),)


def test_the_stream_of_a_plan_tells_the_same_but_for_the_fields() -> None:
    def message(address: str, action: str) -> dict[str, Any]:
        about = {"addr": address, "resource_type": address.split(".")[-2]}
        return {"type": "planned_change", "change": {"resource": about, "action": action}}

    streamed = planned.from_stream(
        [
            message("aws_vpc.e", "delete"),
            message("aws_vpc.a", "create"),
            message("aws_vpc.b", "update"),
            message("aws_vpc.c", "replace"),
            message("aws_vpc.f", "move"),
            {"type": "outputs", "outputs": {"x": {"action": "create"}, "y": {"action": "noop"}}},
        ]
    )
    assert streamed == show(
        resource("aws_vpc.a", ["create"]),
        resource("aws_vpc.b", ["update"]),
        resource("aws_vpc.c", ["delete", "create"]),
        resource("aws_vpc.e", ["delete"]),
        resource("aws_vpc.f", ["no-op"]),
        output_changes={"x": {"actions": ["create"]}, "y": {"actions": ["no-op"]}},
    )


def test_a_replacement_shows_what_forces_it_and_nothing_else() -> None:
    entry = resource(
        "aws_subnet.s",
        ["delete", "create"],
        before={"cidr_block": "10.0.0.0/24", "tags": {"a": "1"}},
        after={"cidr_block": "10.0.1.0/24", "tags": {"a": "2"}},
        after_unknown={"arn": True, "id": True},
        replace_paths=[["cidr_block"]],
    )
    assert show(entry).replaces[0].fields == (planned.Field("cidr_block", "10.0.0.0/24", "10.0.1.0/24"),)
    tainted = show({**entry, "action_reason": "replace_because_tainted"})
    assert tainted.replaces[0].tainted


def test_drift_is_what_changed_and_not_what_was_filled_in_or_is_moved_by_design() -> None:
    def drifted(address: str, before: Any, after: Any, actions: Any = ("update",)) -> dict[str, Any]:
        return resource(address, list(actions), before=before, after=after)

    found = planned.drift(
        {
            "format_version": "1.2",
            "resource_drift": [
                drifted("aws_security_group.filled", {"ingress": []}, {"ingress": [1]}),
                drifted("aws_security_group.opened", {"ingress": [1]}, {"ingress": [1, 2]}),
                drifted("aws_iam_role.bounded", {"permissions_boundary": None}, {"permissions_boundary": "x"}),
                drifted(
                    "aws_autoscaling_group.w",
                    {"desired_capacity": 2, "tag": [1]},
                    {"desired_capacity": 9, "tag": [1, 2]},
                ),
                drifted("aws_autoscaling_group.v", {"max_size": 2}, {"max_size": 9}),
                drifted("aws_subnet.gone", {"id": "s"}, None, ("delete",)),
            ],
            "resource_changes": [drifted("aws_iam_role.bounded", {}, {})],
        }
    )
    assert [(c.address, [f.name for f in c.fields]) for c in found] == [
        ("aws_security_group.opened", ["ingress"]),
        ("aws_iam_role.bounded", ["permissions_boundary"]),
        ("aws_autoscaling_group.v", ["max_size"]),
        ("aws_subnet.gone", []),
    ]
