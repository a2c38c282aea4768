"""What a stack costs a month before and after a plan: an estimate from a small table of prices that has a date.

It counts what runs by the hour or lies there by the gigabyte. Traffic, requests, logs, snapshots, discounts and
other regions' prices are not in it, so it says by how much a change makes things dearer, not what the bill will be.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

# How much of a family's `large` each size is; AWS's prices double with each size.
_SIZES = {"nano": 1 / 16, "micro": 1 / 8, "small": 1 / 4, "medium": 1 / 2, "large": 1.0, "xlarge": 2.0}

Prices = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """One resource: US dollars a month as it is sized now, and at most (a group of machines at its `max_size`)."""

    address: str
    monthly: float
    at_most: float


@dataclass(frozen=True)
class Estimate:
    """A stack's cost in US dollars a month: as it stands, as planned, and with all groups at their maximum."""

    before: float
    items: tuple[Item, ...]
    unpriced: tuple[str, ...] = ()  # of a kind that costs, but of a type or size that is not in the table
    date: str = ""  # of the table

    @property
    def after(self) -> float:
        return sum(i.monthly for i in self.items)

    @property
    def at_most(self) -> float:
        return sum(i.at_most for i in self.items)

    def as_json(self) -> dict[str, Any]:
        """The estimate for `--json`."""
        return {
            "monthly_before": round(self.before, 2),
            "monthly_after": round(self.after, 2),
            "monthly_at_most": round(self.at_most, 2),
            "unpriced": list(self.unpriced),
            "prices_of": self.date,
            "resources": {i.address: round(i.monthly, 2) for i in self.items},
        }


@functools.cache
def prices() -> Prices:
    """The table that comes with the package."""
    return dict(json.loads(resources.files(__package__).joinpath("prices.json").read_text()))


def estimate(document: Mapping[str, Any], table: Prices | None = None) -> Estimate:
    """Price what `terraform show -json <plan>` says that there is and would be."""
    table = table or prices()
    before = list(_resources((document.get("prior_state") or {}).get("values")))
    after = list(_resources(document.get("planned_values")))
    items, unpriced = _price(after, table)
    return Estimate(sum(i.monthly for i in _price(before, table)[0]), tuple(items), tuple(unpriced), str(table["date"]))


def hourly(instance_type: str, family_prices: Mapping[str, float]) -> float:
    """Dollars an hour of `db.m7g.xlarge`, from what a `large` of its family costs. Raises KeyError if unknown."""
    family, _, size = instance_type.removeprefix("db.").removeprefix("cache.").removeprefix("dms.").partition(".")
    times = int(size.removesuffix("xlarge")) * 2.0 if size[:1].isdigit() else _SIZES[size]
    return family_prices[family] * times


def _price(found: Iterable[Mapping[str, Any]], table: Prices) -> tuple[list[Item], list[str]]:
    found = list(found)
    templates = {_module(r): r["values"] for r in found if r["type"] == "aws_launch_template"}
    items, unpriced = [], []
    for resource in found:
        address, values = resource["address"], resource["values"]
        try:
            if resource["type"] == "aws_autoscaling_group":
                count = float(values.get("desired_capacity") or values.get("min_size") or 0)
                most = float(values.get("max_size") or 0)
                cost = _group(values, templates.get(_module(resource), {}), table)
                items.append(Item(address, cost(count), cost(most)))
            else:
                cost_of_one = _single(resource["type"], values, table)
                if cost_of_one:
                    items.append(Item(address, cost_of_one, cost_of_one))
        except (KeyError, ValueError):
            unpriced.append(address)
    return items, unpriced


def _single(kind: str, v: Mapping[str, Any], table: Prices) -> float:
    """Dollars a month of one resource that is no group; 0 for what costs nothing by its mere existence."""
    hours, gb = table["hours_per_month"], table["gb_month"]
    match kind:
        case "aws_instance":
            disks = v.get("root_block_device") or []
            return float(hours) * hourly(v["instance_type"], table["ec2_large_hour"]) + _disks(disks, gb)
        case "aws_db_instance":
            one = float(hours) * hourly(v["instance_class"], table["rds_postgres_large_hour"])
            return (one + float((v.get("allocated_storage") or 0) * gb["rds"])) * (2 if v.get("multi_az") else 1)
        case "aws_elasticache_replication_group":
            nodes = v.get("num_cache_clusters") or 1
            return float(hours * nodes * hourly(v["node_type"], table["elasticache_large_hour"]))
        case "aws_dms_replication_instance":
            one = float(hours) * hourly(v["replication_instance_class"], table["dms_large_hour"])
            return (one + float((v.get("allocated_storage") or 0) * gb["dms"])) * (2 if v.get("multi_az") else 1)
        case "aws_ebs_volume":
            return _disks([{"volume_size": v.get("size"), "volume_type": v.get("type")}], gb)
        case "aws_vpc_endpoint":
            zones = len(v.get("subnet_ids") or []) if v.get("vpc_endpoint_type") == "Interface" else 0
            return float(hours * zones * table["each_hour"]["interface_endpoint_zone"])
    return float(hours * table["each_hour"].get(kind, 0.0) + table["each_month"].get(kind, 0.0))


def _group(v: Mapping[str, Any], template: Mapping[str, Any], table: Prices) -> Any:
    """What a number of machines of a group costs a month, as a function of the number."""
    policy = (v.get("mixed_instances_policy") or [{}])[0]
    launch = (policy.get("launch_template") or [{}])[0]
    kinds = [o["instance_type"] for o in launch.get("override") or [] if o.get("instance_type")]
    kind = kinds[0] if kinds else template["instance_type"]
    spread = (policy.get("instances_distribution") or [{}])[0]
    base = float(spread.get("on_demand_base_capacity") or 0)
    share = spread.get("on_demand_percentage_above_base_capacity")
    on_demand_share = 1.0 if share is None else float(share) / 100
    machine = table["hours_per_month"] * hourly(kind, table["ec2_large_hour"])
    mappings = template.get("block_device_mappings") or []
    disks = _disks([e for m in mappings for e in m.get("ebs") or []], table["gb_month"])

    def cost(count: float) -> float:
        on_demand = min(count, base) + max(0.0, count - base) * on_demand_share
        return float(machine * (on_demand + (count - on_demand) * table["spot_share"]) + count * disks)

    return cost


def _disks(disks: Iterable[Mapping[str, Any]], gb: Mapping[str, float]) -> float:
    return sum(float(d.get("volume_size") or 0) * gb[d.get("volume_type") or "gp3"] for d in disks)


def _module(resource: Mapping[str, Any]) -> str:
    """The module a resource is in, by its address: `module.pool["cpu"]`."""
    return str(resource["address"]).removesuffix(f"{resource['type']}.{resource['name']}" + _index(resource))


def _index(resource: Mapping[str, Any]) -> str:
    return f"[{json.dumps(resource['index'])}]" if "index" in resource else ""


def _resources(values: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    todo = [(values or {}).get("root_module") or {}]
    while todo:
        module = todo.pop()
        yield from (r for r in module.get("resources", ()) if r.get("mode") == "managed")
        todo += module.get("child_modules", ())
