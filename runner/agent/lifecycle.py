"""The autoscaling group's lifecycle hooks of this instance: hold them open, then answer them.

Nothing here raises for an error of the cloud: it is logged and the caller asks again at its next turn.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import boto3
import structlog
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient

Hook = Literal["launch", "terminate"]
Result = Literal["CONTINUE", "ABANDON"]

log = structlog.get_logger("agent")

_ASK_AGAIN_SECONDS = 2.0
_LONGEST_BEAT_SECONDS = 30.0


class Lifecycle:
    """The hooks of one instance. The group's name and the hooks' time limits are looked up when first needed."""

    def __init__(self, instance_id: str, region: str, client: AutoScalingClient | None = None) -> None:
        config = Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "max_attempts": 3})
        self._client = client or boto3.client("autoscaling", region_name=region, config=config)
        self._instance_id = instance_id
        self._group = ""
        self._intervals: dict[str, float] = {}
        self._next_beat: dict[str, float] = {}
        self._state: str | None = None
        self._state_at = float("-inf")

    def state(self) -> str | None:
        """The lifecycle state of the instance (`Pending:Wait`, `InService`, …), "" outside any group.

        None while the cloud does not say. Asked at most every two seconds.
        """
        if time.monotonic() - self._state_at < _ASK_AGAIN_SECONDS:
            return self._state
        self._state_at = time.monotonic()
        try:
            found = self._client.describe_auto_scaling_instances(InstanceIds=[self._instance_id])
        except (ClientError, BotoCoreError) as e:
            log.warning("the cloud does not answer", action="describe_auto_scaling_instances", error=str(e))
            self._state = None
            return None
        rows = found["AutoScalingInstances"]
        self._group = rows[0]["AutoScalingGroupName"] if rows else self._group
        self._state = rows[0]["LifecycleState"] if rows else ""
        return self._state

    def beat(self, hook: Hook) -> None:
        """Keep the hook from running out; safe to call as often as you like."""
        if time.monotonic() < self._next_beat.get(hook, 0.0) or not self._known():
            return
        self._next_beat[hook] = time.monotonic() + self._interval(hook)
        try:
            self._client.record_lifecycle_action_heartbeat(
                AutoScalingGroupName=self._group, LifecycleHookName=hook, InstanceId=self._instance_id
            )
        except (ClientError, BotoCoreError) as e:
            self._next_beat[hook] = time.monotonic() + _ASK_AGAIN_SECONDS
            log.warning("lifecycle heartbeat failed", hook=hook, error=str(e))

    def complete(self, hook: Hook, result: Result) -> bool:
        """Answer the hook. True if it is answered now or was before; False: ask again."""
        if not self._known():
            return False
        try:
            self._client.complete_lifecycle_action(
                AutoScalingGroupName=self._group,
                LifecycleHookName=hook,
                InstanceId=self._instance_id,
                LifecycleActionResult=result,
            )
        except ClientError as e:
            if "No active Lifecycle Action" in str(e):
                # Answered before this process started, run out, or not yet open: the state tells which.
                self._state_at = float("-inf")
                waits = self.state()
                return waits is not None and not waits.endswith((":Wait", "Pending"))
            log.warning("completing the lifecycle action failed", hook=hook, error=str(e))
            return False
        except BotoCoreError as e:
            log.warning("completing the lifecycle action failed", hook=hook, error=str(e))
            return False
        self._state_at = float("-inf")
        log.info("lifecycle action completed", hook=hook, result=result)
        return True

    def terminate(self, *, decrement: bool) -> None:
        """End this instance through its group: the terminate hook opens, as for any scale-in.

        With `decrement` its place goes, too, unless the group is at its minimum: then another one comes.
        """
        state = self.state()
        if state is None or not state.startswith("InService"):
            return  # not known, or on its way out already
        self._state_at = float("-inf")
        try:
            try:
                self._client.terminate_instance_in_auto_scaling_group(
                    InstanceId=self._instance_id, ShouldDecrementDesiredCapacity=decrement
                )
            except ClientError as e:
                if not decrement or e.response["Error"]["Code"] != "ValidationError":
                    raise
                decrement = False
                self._client.terminate_instance_in_auto_scaling_group(
                    InstanceId=self._instance_id, ShouldDecrementDesiredCapacity=False
                )
        except (ClientError, BotoCoreError) as e:
            log.warning("the instance cannot be terminated", error=str(e))
            return
        log.info("instance terminated", decrement=decrement)

    def _known(self) -> bool:
        if not self._group:
            self.state()
        return bool(self._group)

    def _interval(self, hook: Hook) -> float:
        """Seconds between heartbeats: a third of the hook's time limit, so that two may fail."""
        if not self._intervals:
            try:
                found = self._client.describe_lifecycle_hooks(AutoScalingGroupName=self._group)["LifecycleHooks"]
                self._intervals = {h["LifecycleHookName"]: h["HeartbeatTimeout"] / 3 for h in found}
            except (ClientError, BotoCoreError) as e:
                log.warning("the cloud does not answer", action="describe_lifecycle_hooks", error=str(e))
        return min(_LONGEST_BEAT_SECONDS, self._intervals.get(hook, _LONGEST_BEAT_SECONDS))
