"""What the tags of a pool's autoscaling group say about its scaling."""

from __future__ import annotations

from dataclasses import dataclass

from runner.rollout.autoscale.policy import Limits
from runner.rollout.facts import Group
from runner.settings import SluiceError

SLUICE, TARGET_TRACKING = "sluice", "target-tracking"  # the tag Scaling; anything else: by hand


@dataclass(frozen=True)
class ScaledPool:
    """A pool that is scaled by somebody: `by` is one of the two above."""

    name: str
    group: str
    by: str
    queues: frozenset[str]
    limits: Limits


def of_group(group: Group, prefix: str) -> ScaledPool | None:
    """The pool of a group whose name is the prefix and the pool's; None if nobody scales it.

    Raises SluiceError for tags that make no sense, with the group's name.
    """
    by = group.tags.get("Scaling", "")
    if by not in (SLUICE, TARGET_TRACKING):
        return None
    try:
        limits = Limits(
            minimum=group.minimum,
            # What is above it is for a rollout's surge.
            maximum=min(int(group.tags["MaxWorkers"]), group.maximum),
            slots=int(group.tags["Slots"]),
            cooldown_seconds=float(group.tags.get("CooldownSeconds", Limits.cooldown_seconds)),
            target_wait_seconds=float(group.tags.get("TargetWaitSeconds", Limits.target_wait_seconds)),
        )
        queues = frozenset(group.tags["Queues"].split())
    except KeyError as e:
        raise SluiceError(f"{group.name} has Scaling = {by} and no tag {e.args[0]}", _HINT) from None
    except ValueError as e:
        raise SluiceError(f"the tags of {group.name}: {e}", _HINT) from None
    return ScaledPool(group.name.removeprefix(prefix), group.name, by, queues, limits)


_HINT = "the workers stack sets the tags: `deployctl infra apply --stack workers` puts them right"
