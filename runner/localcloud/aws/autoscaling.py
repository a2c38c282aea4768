"""The Auto Scaling API over groups that act (`autoscaling_group`) and hooks that hold (`lifecycle`).

Stock moto 5.2.1 has no CompleteLifecycleAction and no RecordLifecycleActionHeartbeat, ignores hooks given
at creation, never checks the bounds, and reports no scaling activity. Left as moto has it, because nothing
here uses it: instance refresh, warm pools, scheduled actions, scaling policies.
"""

from __future__ import annotations

import threading
import time
import traceback
from typing import Any

from moto.autoscaling import models, urls
from moto.autoscaling.exceptions import AutoscalingClientError, ValidationError
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult, EmptyResult

from runner.localcloud.aws import lifecycle
from runner.localcloud.aws.autoscaling_group import COUNTED, Group, Member
from runner.localcloud.aws.lifecycle import Action, Hook

# The server is threaded and moto locks nothing: one request, or one tick, at a time.
LOCK = threading.RLock()
TICK_SECONDS = 0.2


def install(clock_rate: float = 1.0) -> None:
    """Put ours in the place of moto's and start the hooks' clock."""
    lifecycle.set_clock_rate(clock_rate)
    models.FakeAutoScalingGroup = Group
    models.InstanceState = Member
    models.AutoScalingBackend.notify_terminate_instances = replace_terminated
    models.AutoScalingBackend.update_attached_target_groups = register_in_service
    urls.url_paths = dict.fromkeys(urls.url_paths, Api.dispatch)
    threading.Thread(target=_tick_forever, name="lifecycle-hooks", daemon=True).start()


class Api(AutoScalingResponse):
    """One request. What is not here is answered by moto."""

    def call_action(self) -> Any:
        with LOCK:
            return super().call_action()

    # -- groups ---------------------------------------------------------------------------------

    def create_auto_scaling_group(self) -> ActionResult:
        name = self._get_param("AutoScalingGroupName")
        if name in self._groups:
            raise AutoscalingClientError("AlreadyExists", f"AutoScalingGroup by this name already exists: {name}")
        result = super().create_auto_scaling_group()
        for hook in self._get_param("LifecycleHookSpecificationList", []):
            self._put_hook(name, hook)
        self._groups[name].reconcile()
        return result

    def delete_auto_scaling_group(self) -> ActionResult:
        """Refused while there are instances, unless forced. Stock moto terminates them."""
        group = self._group()
        if group.instance_states and not self._get_bool_param("ForceDelete", False):
            raise AutoscalingClientError(
                "ResourceInUse", "You cannot delete an AutoScalingGroup while there are instances in the group."
            )
        for member in list(group.instance_states):
            group.remove(member, "the group was deleted")
        del self._groups[group.name]
        hooks = self.autoscaling_backend.lifecycle_hooks
        for key in [k for k, hook in hooks.items() if hook.auto_scaling_group_name == group.name]:
            del hooks[key]
        return EmptyResult()

    def set_desired_capacity(self) -> ActionResult:
        group, wanted = self._group(), self._get_int_param("DesiredCapacity")
        if wanted > group.max_size:
            raise ValidationError(
                f"New SetDesiredCapacity value {wanted} is above max value {group.max_size} for the AutoScalingGroup."
            )
        if wanted < group.min_size:
            raise ValidationError(
                f"New SetDesiredCapacity value {wanted} is below min value {group.min_size} for the AutoScalingGroup."
            )
        group.set_desired_capacity(wanted)
        return EmptyResult()

    def describe_scaling_activities(self) -> ActionResult:
        """Newest first."""
        name = self._get_param("AutoScalingGroupName")
        found = [a for g in self._groups.values() if not name or g.name == name for a in g.activities]
        return ActionResult({"Activities": found[: self._get_int_param("MaxRecords", 100)]})

    # -- instances ------------------------------------------------------------------------------

    def terminate_instance_in_auto_scaling_group(self) -> ActionResult:
        group, member = self._member()
        if self._get_bool_param("ShouldDecrementDesiredCapacity", False):
            if member.lifecycle_state in COUNTED and group.desired_capacity <= group.min_size:
                raise ValidationError(
                    f"Currently, desiredSize equals minSize ({group.min_size}). Terminating instance without "
                    "replacement will violate group's min size constraint. Either set "
                    "shouldDecrementDesiredCapacity flag to false or lower group's min size."
                )
            if member.lifecycle_state in COUNTED:
                group.desired_capacity -= 1
        activity = group.terminate(member, "user request")
        group.reconcile()
        return ActionResult({"Activity": activity})

    def set_instance_health(self) -> ActionResult:
        """An unhealthy instance is replaced, protected or not. Stock moto only stores the status."""
        group, member = self._member()
        member.health_status = self._get_param("HealthStatus")
        if member.health_status == "Unhealthy" and "ReplaceUnhealthy" not in group._suspended_processes:
            group.terminate(member, "the instance was reported unhealthy")
            group.reconcile()
        return EmptyResult()

    def set_instance_protection(self) -> ActionResult:
        """Checks the ids, refuses more than 50 of them, and lets a scale-in go on that waited for this, as on AWS."""
        wanted, group = self._get_param("InstanceIds", []), self._group()
        if len(wanted) > 50:
            raise ValidationError("The number of instance IDs must not exceed 50.")
        unknown = set(wanted) - {m.instance_id for m in group.instance_states}
        if unknown:
            raise ValidationError(f"The instance {min(unknown)} is not part of Auto Scaling group {group.name}.")
        result = super().set_instance_protection()
        group.reconcile()
        return result

    # -- hooks ----------------------------------------------------------------------------------

    def put_lifecycle_hook(self) -> ActionResult:
        self._put_hook(self._group().name, self._get_params())
        return EmptyResult()

    def complete_lifecycle_action(self) -> ActionResult:
        group, member, action = self._waiting()
        result = self._get_param("LifecycleActionResult")
        if result not in (lifecycle.CONTINUE, lifecycle.ABANDON):
            raise ValidationError(f"Lifecycle action result must be CONTINUE or ABANDON, not {result}")
        action.result = result
        group.settle(member)
        return EmptyResult()

    def record_lifecycle_action_heartbeat(self) -> ActionResult:
        self._waiting()[2].heartbeat()
        return EmptyResult()

    # -- lookups --------------------------------------------------------------------------------

    @property
    def _groups(self) -> dict[str, Group]:
        return self.autoscaling_backend.autoscaling_groups

    def _group(self) -> Group:
        name = self._get_param("AutoScalingGroupName")
        if name not in self._groups:
            raise ValidationError(f"AutoScalingGroup name not found - AutoScalingGroup '{name}' not found")
        return self._groups[name]

    def _member(self) -> tuple[Group, Member]:
        wanted = self._get_param("InstanceId")
        for group in self._groups.values():
            for member in group.instance_states:
                if member.instance_id == wanted:
                    return group, member
        raise ValidationError(f"Instance Id not found - No managed instance found for instance ID: {wanted}")

    def _put_hook(self, group: str, put: dict[str, Any]) -> None:
        key = f"{group}_{put['LifecycleHookName']}"
        hooks = self.autoscaling_backend.lifecycle_hooks
        hooks[key] = Hook(group, put, before=hooks.get(key))

    def _waiting(self) -> tuple[Group, Member, Action]:
        """The unanswered action that instance id, or token, and hook name point at."""
        group, hook = self._group(), self._get_param("LifecycleHookName")
        instance, token = self._get_param("InstanceId"), self._get_param("LifecycleActionToken")
        for member in group.instance_states:
            for action in member.actions:
                named = (member.instance_id == instance) if instance else (action.token == token)
                if named and action.hook.name == hook and action.result is None:
                    return group, member, action
        sought = f"instance ID {instance}" if instance else f"token {token}"
        raise ValidationError(f"No active Lifecycle Action found with {sought}")


def replace_terminated(backend, instance_ids: list[str]) -> None:
    """EC2 TerminateInstances on members: they are gone without a drain, and the group replaces them."""
    with LOCK:
        for group in list(backend.autoscaling_groups.values()):
            for member in [m for m in group.instance_states if m.instance_id in instance_ids]:
                group.remove(member, "EC2 says that the instance has been terminated or stopped")
                group.reconcile()


def register_in_service(backend, group_name: str) -> None:
    """Only instances in service are targets of a load balancer. Stock moto registers all of them."""
    group = backend.autoscaling_groups[group_name]
    known = backend.elbv2_backend.target_groups
    for target_group in [known[arn] for arn in group.target_group_arns if arn in known]:
        targets = [{"Id": m.instance_id, "Port": target_group.port} for m in group.active_instances()]
        if targets:
            target_group.register(targets)


def _tick_forever() -> None:
    while True:
        time.sleep(TICK_SECONDS)
        try:
            with LOCK:
                for account in list(models.autoscaling_backends.values()):
                    for backend in list(account.values()):
                        for group in list(backend.autoscaling_groups.values()):
                            group.tick()
        except Exception:  # a hook that is never timed out would hang a fleet without a word
            traceback.print_exc()
