"""Lifecycle hooks of an Auto Scaling group: what an instance waits for, and how long.

Stock moto 5.2.1 stores hooks and never acts on them. As AWS documents it (Auto Scaling user guide,
"Amazon EC2 Auto Scaling lifecycle hooks"), a hook holds its instance in a wait state until it is
completed with CONTINUE or ABANDON; each heartbeat restarts the heartbeat timeout; the whole wait is
bounded by 48 hours or 100 heartbeat timeouts, whichever is shorter; on timeout the default result counts.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from moto.autoscaling import models
from moto.autoscaling.exceptions import ValidationError

LAUNCHING = "autoscaling:EC2_INSTANCE_LAUNCHING"
TERMINATING = "autoscaling:EC2_INSTANCE_TERMINATING"
CONTINUE = "CONTINUE"
ABANDON = "ABANDON"
MAX_WAIT_SECONDS = 48 * 3600

_clock_rate = 1.0


def set_clock_rate(rate: float) -> None:
    """Make hooks time out `rate` times faster than they say, so that a drill need not wait for them."""
    global _clock_rate
    _clock_rate = rate


def clock() -> float:
    """Seconds of the hooks' clock."""
    return time.monotonic() * _clock_rate


class Hook(models.LifecycleHook):
    """A hook as it was put; fields left out of an update keep their value."""

    def __init__(self, group: str, put: dict[str, Any], before: Hook | None = None) -> None:
        timeout = put.get("HeartbeatTimeout") or (before.heartbeat_timeout if before else None)
        super().__init__(
            name=put["LifecycleHookName"],
            as_name=group,
            transition=put.get("LifecycleTransition") or (before.lifecycle_transition if before else None),
            timeout=int(timeout) if timeout else None,
            result=put.get("DefaultResult") or (before.default_result if before else None),
        )
        if self.lifecycle_transition not in (LAUNCHING, TERMINATING):
            raise ValidationError(f"Invalid lifecycle transition: {self.lifecycle_transition}")
        if not 30 <= self.heartbeat_timeout <= 7200:
            raise ValidationError("Heartbeat timeout must be between 30 and 7200 seconds, inclusive")
        self.lifecycle_hook_name = self.name
        self.global_timeout = min(MAX_WAIT_SECONDS, 100 * self.heartbeat_timeout)
        # Stock moto makes these two up; the provider would see a drift.
        self.role_arn = put.get("RoleARN") or None
        self.notification_target_arn = put.get("NotificationTargetARN") or None
        self.notification_metadata = put.get("NotificationMetadata") or None


class Action:
    """One instance waiting for one hook."""

    def __init__(self, hook: Hook) -> None:
        self.hook = hook
        self.token = str(uuid.uuid4())
        self.result: str | None = None
        self._latest_end = clock() + hook.global_timeout
        self.heartbeat()

    def heartbeat(self) -> None:
        self._deadline = min(clock() + self.hook.heartbeat_timeout, self._latest_end)

    def expire(self) -> bool:
        """Take the default result if the time is up; True if this call did."""
        if self.result is None and clock() >= self._deadline:
            self.result = self.hook.default_result
            return True
        return False
