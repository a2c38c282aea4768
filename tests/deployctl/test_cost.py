from __future__ import annotations

from typing import Any

import pytest

from runner.deployctl import cost

TABLE = {
    **cost.prices(),
    "hours_per_month": 100,
    "spot_share": 0.5,
    "date": "2020-01-01",
    "ec2_large_hour": {"m9": 1.0},
    "rds_postgres_large_hour": {"m9": 2.0},
    "gb_month": {"gp3": 0.1, "rds": 0.2},
}


def resource(address: str, **values: Any) -> dict[str, Any]:
    kind, name = address.split(".")[-2:]
    return {"address": address, "mode": "managed", "type": kind, "name": name, "values": values}


def document(*after: dict[str, Any], before: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        "prior_state": {"values": {"root_module": {"resources": list(before)}}},
        "planned_values": {"root_module": {"child_modules": [{"resources": list(after)}]}},
    }


def test_sizes_double_from_large_on() -> None:
    assert cost.hourly("m9.large", {"m9": 1.0}) == 1.0
    assert cost.hourly("db.m9.xlarge", {"m9": 1.0}) == 2.0
    assert cost.hourly("cache.m9.4xlarge", {"m9": 1.0}) == 8.0
    assert cost.hourly("m9.micro", {"m9": 1.0}) == 1 / 8


def test_a_database_costs_its_hours_and_gigabytes_and_twice_with_a_standby() -> None:
    one = resource("aws_db_instance.d", instance_class="db.m9.large", allocated_storage=100)
    two = resource("aws_db_instance.d", instance_class="db.m9.large", allocated_storage=100, multi_az=True)
    found = cost.estimate(document(two, before=(one,)), TABLE)
    assert (found.before, found.after, found.at_most) == (220.0, 440.0, 440.0)


def test_a_group_costs_what_it_has_and_at_most_its_maximum_with_spot_and_disks() -> None:
    group = resource(
        "module.p.aws_autoscaling_group.this",
        min_size=2,
        max_size=10,
        mixed_instances_policy=[
            {
                "launch_template": [{"override": [{"instance_type": "m9.xlarge"}]}],
                "instances_distribution": [
                    {"on_demand_base_capacity": 2, "on_demand_percentage_above_base_capacity": 0}
                ],
            }
        ],
    )
    template = resource(
        "module.p.aws_launch_template.this",
        instance_type="m9.large",
        block_device_mappings=[{"ebs": [{"volume_size": 30, "volume_type": "gp3"}]}],
    )
    (item,) = cost.estimate(document(group, template), TABLE).items
    assert item.monthly == pytest.approx(2 * 200 + 2 * 3)
    assert item.at_most == pytest.approx((2 + 8 * 0.5) * 200 + 10 * 3)


def test_what_is_not_in_the_table_is_named_and_not_guessed() -> None:
    found = cost.estimate(document(resource("aws_instance.i", instance_type="zz1.large")), TABLE)
    assert found.unpriced == ("aws_instance.i",)
    assert found.after == 0


def test_what_costs_nothing_by_being_there_is_left_out() -> None:
    endpoint = resource("aws_vpc_endpoint.e", vpc_endpoint_type="Gateway")
    found = cost.estimate(document(resource("aws_iam_role.r"), endpoint, resource("aws_nat_gateway.n")))
    assert [i.address for i in found.items] == ["aws_nat_gateway.n"]
    assert found.as_json()["prices_of"] == found.date and len(found.date) == 10
