"""An Auto Scaling group that launches, drains and replaces its instances.

Stock moto 5.2.1 puts every instance into the group's first subnet and the template's default version,
calls it InService at once, and terminates at once. AWS spreads over zones, remembers the version each
instance was launched from, takes instances through Pending, Pending:Wait, InService, Terminating:Wait
and Terminated, and keeps a list of scaling activities.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from moto.autoscaling import models
from moto.autoscaling.exceptions import ValidationError

from runner.localcloud.aws.lifecycle import ABANDON, LAUNCHING, TERMINATING, Action

COUNTED = ("Pending", "Pending:Wait", "InService")  # what AWS holds against the desired capacity
ACTIVITIES_KEPT = 200


class Member(models.InstanceState):
    """An instance of a group. `launch_template` is what it was launched from, not what is current."""

    launch_template: dict[str, str] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.actions: list[Action] = []


class Group(models.FakeAutoScalingGroup):
    """Every public method expects the caller to hold `autoscaling.LOCK`."""

    instance_states: list[Member]
    mixed_instances_policy: dict[str, Any] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.activities: list[models.Activity] = []
        super().__init__(*args, **kwargs)

    # -- capacity -------------------------------------------------------------------------------

    def update(self, *, min_size, max_size, desired_capacity, mixed_instances_policy, launch_template, **rest):
        """UpdateAutoScalingGroup: moving a bound past the desired capacity moves the desired capacity.

        Stock moto compares the bounds with the number of instances, and forgets the mixed instances
        policy on every update that does not repeat it.
        """
        low = self.min_size if min_size is None else min_size
        high = self.max_size if max_size is None else max_size
        if low > high:
            raise ValidationError(f"Min bound, {low}, must be less than or equal to max bound, {high}")
        if desired_capacity is None:
            desired_capacity = min(max(self.desired_capacity, low), high)
        elif not low <= desired_capacity <= high:
            raise ValidationError(
                f"Desired capacity:{desired_capacity} must be between the specified min size:{low} and max size:{high}"
            )
        policy_before = self.mixed_instances_policy
        super().update(
            min_size=min_size,
            max_size=max_size,
            desired_capacity=self.desired_capacity,
            mixed_instances_policy=mixed_instances_policy,
            launch_template=launch_template,
            **rest,
        )
        if mixed_instances_policy is None and not launch_template:
            self.mixed_instances_policy = policy_before
        self.set_desired_capacity(desired_capacity)

    def set_desired_capacity(self, new_capacity: int | None) -> None:
        self.desired_capacity = self.min_size if new_capacity is None else new_capacity
        if self.name in self.autoscaling_backend.autoscaling_groups:
            self.reconcile()

    def reconcile(self) -> None:
        """Launch or terminate until the counted instances are as many as desired."""
        surplus = len(self.counted()) - self.desired_capacity
        if surplus < 0 and "Launch" not in self._suspended_processes:
            for _ in range(-surplus):
                self._launch()
        elif surplus > 0 and "Terminate" not in self._suspended_processes:
            for _ in range(surplus):
                victim = self._scale_in_victim()
                if victim:
                    self.terminate(victim, f"the desired capacity is now {self.desired_capacity}")

    def counted(self) -> list[Member]:
        return [m for m in self.instance_states if m.lifecycle_state in COUNTED]

    def _scale_in_victim(self) -> Member | None:
        """The default termination policy: the fullest zone, an old template version, the oldest."""
        free = [m for m in self.counted() if not m.protected_from_scale_in]
        if not free:
            return None
        zones = Counter(m.availability_zone for m in self.counted())
        current = self._current_template()
        age = {id(m): i for i, m in enumerate(self.instance_states)}
        return min(free, key=lambda m: (-zones[m.availability_zone], m.launch_template == current, age[id(m)]))

    # -- one instance ---------------------------------------------------------------------------

    def _launch(self) -> None:
        template = self._current_template()
        subnet = self._emptiest_subnet()
        # The group's tags win over the template's.
        tags = {**self.instance_tags, **self.get_propagated_tags(), models.ASG_NAME_TAG: self.name}
        launched_from = None
        if template:
            tags["aws:ec2launchtemplate:id"] = template["LaunchTemplateId"]
            tags["aws:ec2launchtemplate:version"] = template["Version"]
            launched_from = {k: template[k] for k in ("LaunchTemplateId", "Version")}
        reservation = self.ec2_backend.run_instances(
            self.image_id,
            1,
            self.user_data,
            self.security_groups,
            instance_type=self._instance_type(),
            tags={"instance": tags, "volume": {}},
            placement=subnet.availability_zone if subnet else self.availability_zones[0],
            launch_config=self.launch_config,
            launch_template=launched_from,
            is_instance_type_default=False,
            associate_public_ip=None,
            subnet_id=subnet.id if subnet else None,
        )
        instance = reservation.instances[0]
        instance.autoscaling_group = self
        member = Member(
            instance,
            lifecycle_state="Pending",
            protected_from_scale_in=self.new_instances_protected_from_scale_in,
        )
        member.launch_template = template
        self.instance_states.append(member)
        self._log(f"Launching a new EC2 instance: {instance.id}", "desired capacity above actual", "InProgress")
        if not self._wait_for_hooks(member, LAUNCHING, "Pending:Wait"):
            self._in_service(member)

    def _in_service(self, member: Member) -> None:
        member.lifecycle_state = "InService"
        self._log(f"Launching a new EC2 instance: {member.instance_id}", "the instance is in service")
        self.autoscaling_backend.update_attached_target_groups(self.name)

    def terminate(self, member: Member, cause: str) -> models.Activity:
        """Take a member out of service: through its terminate hooks if there are any, else at once."""
        if member.lifecycle_state.startswith("Terminating"):
            raise ValidationError(f"The instance {member.instance_id} is already terminating.")
        self._leave_target_groups(member)
        activity = self._log(f"Terminating EC2 instance: {member.instance_id}", cause, "InProgress")
        if not self._wait_for_hooks(member, TERMINATING, "Terminating:Wait"):
            self.remove(member, cause)
        return activity

    def remove(self, member: Member, cause: str) -> None:
        """The end of a member, hooks or not."""
        member.actions = []
        member.lifecycle_state = "Terminated"
        self._leave_target_groups(member)
        self.instance_states = [m for m in self.instance_states if m is not member]
        if member.instance.state != "terminated":
            self.ec2_backend.terminate_instances([member.instance_id])
        self._log(f"Terminating EC2 instance: {member.instance_id}", cause)

    # -- hooks ----------------------------------------------------------------------------------

    def _wait_for_hooks(self, member: Member, transition: str, state: str) -> bool:
        hooks = self.autoscaling_backend.describe_lifecycle_hooks(self.name)
        member.actions = [Action(h) for h in hooks if h.lifecycle_transition == transition]
        if member.actions:
            member.lifecycle_state = state
        return bool(member.actions)

    def settle(self, member: Member) -> None:
        """Move a waiting member on once all its hooks are answered, or one of them with ABANDON."""
        results = [a.result for a in member.actions]
        abandoned = ABANDON in results
        if not results or (None in results and not abandoned):
            return
        member.actions = []
        if member.lifecycle_state == "Pending:Wait" and not abandoned:
            self._in_service(member)
        else:
            self.remove(member, "its lifecycle action was abandoned" if abandoned else "its hooks are done")
            self.reconcile()

    def tick(self) -> None:
        """Let the hooks whose time is up take their default result."""
        for member in list(self.instance_states):
            if any([action.expire() for action in member.actions]):
                self.settle(member)

    # -- helpers --------------------------------------------------------------------------------

    def _current_template(self) -> dict[str, str] | None:
        """What the next instance is launched from, `$Latest` and `$Default` resolved."""
        template = self.ec2_launch_template
        if template is None:
            return None
        version = template.get_version(self.launch_template_version)
        return {
            "LaunchTemplateId": template.id,
            "LaunchTemplateName": template.name,
            "Version": str(version.number),
        }

    def _instance_type(self) -> str:
        """The first override of a mixed instances policy (AWS: `prioritized`), else the template's type."""
        policy = self.mixed_instances_policy or {}
        overrides = policy.get("LaunchTemplate", {}).get("Overrides") or [{}]
        return overrides[0].get("InstanceType") or self.instance_type

    def _emptiest_subnet(self) -> Any | None:
        if not self.vpc_zone_identifier:
            return None
        used = Counter(m.instance.subnet_id for m in self.instance_states)
        subnets = self.ec2_backend.describe_subnets(subnet_ids=self.vpc_zone_identifier.split(","))
        return min(subnets, key=lambda s: (used[s.id], s.availability_zone))

    def _leave_target_groups(self, member: Member) -> None:
        known = self.autoscaling_backend.elbv2_backend.target_groups
        for arn in self.target_group_arns:
            if arn in known and member.instance_id in known[arn].targets:  # it leaves when its drain begins
                known[arn].deregister([{"Id": member.instance_id}])

    def _log(self, description: str, cause: str, status: str = "Successful") -> models.Activity:
        activity = models.Activity(description, cause, self, status_code=status)
        activity.progress = 100 if status == "Successful" else 50
        self.activities.insert(0, activity)
        del self.activities[ACTIVITIES_KEPT:]
        return activity
