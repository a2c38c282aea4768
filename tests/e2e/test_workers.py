"""One line changes how many workers there are: measured in resources, requests and seconds."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from runner.deployctl import env as environments
from runner.deployctl import infra

from .conftest import Cloud

pytestmark = pytest.mark.environments

ENGINES = {"database_url": "postgresql://host:5432/db", "broker_url": "redis://host:6379/0"}
GROUP = "sluice-local-worker-default"


def pools(workers: int) -> dict[str, object]:
    return {"default": {"workers": workers, "max_workers": 120, "slots": 4, "drain_seconds": 120}}


@pytest.mark.timeout(900)
def test_the_number_of_workers_is_one_line_and_changes_one_resource(cloud: Cloud, tree: Path) -> None:
    # Given a fleet of two workers
    environments.begin("local", tree=tree)
    given = {"engines": ENGINES}
    infra.apply("local", ["network", "workers"], variables={**given, "pools": pools(2)})

    report = []
    for before, after in ((2, 3), (3, 1), (1, 100)):
        # When the one line is changed
        cloud.resting.set()
        time.sleep(1)  # what they were just asking
        requests, began = cloud.requests(), time.monotonic()
        (result,) = infra.apply("local", ["workers"], variables={**given, "pools": pools(after)})
        seconds = time.monotonic() - began
        # Then one resource is, and AWS launches or ends the rest
        calls = cloud.calls(requests)
        cloud.resting.clear()
        assert [c.address for c in result.summary.items] == ['module.pool["default"].aws_autoscaling_group.this']
        assert result.summary.line() == "1 to change"
        assert {f.name for f in result.summary.changes[0].fields} <= {"min_size", "max_size"}
        writes = Counter(
            c["operation"] for c in calls if not c["operation"].startswith(("Describe", "Get", "List", "HEAD"))
        )
        report.append(
            {
                "from": before,
                "to": after,
                "resources changed": len(result.summary.items),
                "requests": len(calls),
                "of which writes to Auto Scaling": writes["UpdateAutoScalingGroup"] + writes["SetDesiredCapacity"],
                "seconds": round(seconds, 1),
            }
        )
        assert writes["UpdateAutoScalingGroup"] == 1
        if after > before:
            deadline = time.monotonic() + 120
            while in_service(cloud) < after:
                assert time.monotonic() < deadline, f"{in_service(cloud)} of {after} workers came up"
                time.sleep(0.5)
    print("\n" + "\n".join(json.dumps(row) for row in report) + f"\n{os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")


def in_service(cloud: Cloud) -> int:
    found = cloud.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])
    return sum(i["LifecycleState"] == "InService" for i in found["AutoScalingGroups"][0]["Instances"])
