"""What a rollout knows of a fleet: plain data, read once, decided on by pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LEAVING = ("Terminating", "Terminated", "Detaching", "Detached")


@dataclass(frozen=True)
class Instance:
    """A member of an autoscaling group. `release` is its own tag: what it booted with."""

    instance_id: str
    lifecycle: str
    release: str = ""

    @property
    def leaving(self) -> bool:
        """Whether the group is taking it out already."""
        return self.lifecycle.startswith(LEAVING)


@dataclass(frozen=True)
class Group:
    """An autoscaling group. `release` is its tag: what the next instance will boot with; `tags`: all of them."""

    name: str
    desired: int
    minimum: int
    maximum: int
    release: str
    instances: tuple[Instance, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def find(self, instance_id: str) -> Instance | None:
        """The member with this id."""
        return next((i for i in self.instances if i.instance_id == instance_id), None)


@dataclass(frozen=True)
class NodeFact:
    """A node as the database knows it. `fresh`: heard within the last seconds; `running`: its leases."""

    node_id: str
    instance_id: str
    state: str
    release: str
    fresh: bool = True
    running: int = 0


@dataclass(frozen=True)
class Facts:
    """One pool: its group and its nodes."""

    role: str
    pool: str
    group: Group
    nodes: tuple[NodeFact, ...] = ()

    def node(self, instance_id: str) -> NodeFact | None:
        """The node that runs on this instance, None if it has not registered."""
        return next((n for n in self.nodes if n.instance_id == instance_id), None)

    def runs(self, instance: Instance) -> str:
        """The release a member runs: what its node says, else what it booted with."""
        node = self.node(instance.instance_id)
        return node.release if node else instance.release

    def outdated(self, release: str) -> list[str]:
        """The members that do not run this release, oldest first."""
        return [i.instance_id for i in self.group.instances if not i.leaving and self.runs(i) != release]
