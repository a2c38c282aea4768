"""Which hosts a fleet has: those its file lists, or the instances of its autoscaling group."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from runner.rollout.celery_fleet.plan import Record, Target
from runner.rollout.celery_fleet.spec import AutoscalingGroup, FleetSpec, fill
from runner.rollout.celery_fleet.ssh import Shell
from runner.settings import SluiceError, UsageError

_MANY = 32  # hosts asked at once
_ASK_SECONDS = 30.0
T = TypeVar("T")


class HostsError(SluiceError):
    """Something failed on at least one host; `results` says for every host how it went."""

    def __init__(self, what: str, results: Mapping[str, str], failed: Mapping[str, SluiceError]) -> None:
        first, error = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more: {', '.join(list(failed)[1:])})" if len(failed) > 1 else ""
        super().__init__(f"{what}: {first}: {error.message}{more}", error.hint)
        self.exit_code = error.exit_code
        self.results = dict(results)
        self.failed = dict(failed)


def each(targets: Sequence[Target], work: Callable[[Target], T]) -> tuple[dict[str, T], dict[str, SluiceError]]:
    """Do this for every host at once: (host → what came out, host → what went wrong)."""
    done: dict[str, T] = {}
    failed: dict[str, SluiceError] = {}
    if not targets:
        return done, failed
    with concurrent.futures.ThreadPoolExecutor(min(_MANY, len(targets))) as pool:
        futures = {t.name: pool.submit(work, t) for t in targets}
    for name, future in futures.items():
        try:
            done[name] = future.result()
        except SluiceError as e:
            failed[name] = e
    return done, failed


def find(spec: FleetSpec, shell: Shell) -> list[Target]:
    """The hosts with the names of their workers, in the order in which they are rolled.

    Raises UsageError for a group that does not exist or is empty, HostsError where a host does not tell its name.
    """
    if spec.autoscaling_group:
        found = instances(spec.autoscaling_group)
        if not found:
            raise UsageError(f"the group {spec.autoscaling_group.name} has no instances", "there is nothing to roll")
        targets = [replace(t, port=spec.ssh.port) for t in found]
        own: dict[str, tuple[str, ...]] = {}
    else:
        targets = [Target(h.name, h.address, h.port or spec.ssh.port) for h in spec.hosts]
        own = {h.name: h.workers for h in spec.hosts}
    if spec.uses("hostname") and not spec.replaces:
        names, failed = each(targets, lambda t: shell.run(t, "hostname", _ASK_SECONDS).strip())
        if failed:
            raise HostsError("a host cannot be asked", names, failed)
        targets = [replace(t, hostname=names[t.name]) for t in targets]
    return [_with_workers(t, own.get(t.name) or spec.workers) for t in targets]


def known(spec: FleetSpec, shell: Shell, written: Mapping[str, Record]) -> list[Target]:
    """The hosts of a roll: those that are there, and of one that goes on what was written down of it.

    Where instances are replaced, a roll that goes on has only those that were there when it began: the others are new,
    and one that is not there any more may still be waited for. Errors as find().
    """
    found = find(spec, shell)
    if not spec.replaces or not written:
        return found
    gone = [Target(name, name, spec.ssh.port, instance=name) for name in written if name not in {t.name for t in found}]
    return [t for t in found if t.name in written] + [t for t in gone if written[t.name].stopping]


def instances(group: AutoscalingGroup) -> list[Target]:
    """The instances of a group that are not on their way out, oldest first; without the names of their workers."""
    import boto3

    from runner.rollout.cloud import Cloud

    members = [i for i in Cloud(group.region).group(group.name).instances if not i.leaving]
    if not members:
        return []
    ec2 = boto3.client("ec2", region_name=group.region)
    pages = ec2.get_paginator("describe_instances").paginate(InstanceIds=[i.instance_id for i in members])
    known = {i["InstanceId"]: i for page in pages for r in page["Reservations"] for i in r["Instances"]}
    field = "PrivateIpAddress" if group.address == "private" else "PublicIpAddress"
    targets = []
    for member in members:
        instance = known.get(member.instance_id, {})
        # EC2's own name of a machine, which it has as its host name unless told otherwise.
        hostname = str(instance.get("PrivateDnsName", "")).partition(".")[0]
        address = str(instance.get(field, "")) or member.instance_id
        targets.append(Target(member.instance_id, address, 22, hostname, member.instance_id))
    return targets


def new_instances(spec: FleetSpec, old: Sequence[str]) -> list[Target]:
    """The instances of the group that are none of these, with the names of their workers."""
    assert spec.autoscaling_group is not None
    return [_with_workers(t, spec.workers) for t in instances(spec.autoscaling_group) if t.name not in old]


def _with_workers(target: Target, names: Sequence[str]) -> Target:
    values = {"host": target.address, "hostname": target.hostname, "instance": target.instance}
    return replace(target, workers=tuple(fill(n, values) for n in names))
