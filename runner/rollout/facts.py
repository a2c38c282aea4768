"""What a rollout knows of a fleet: plain data, read once, decided on by pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LEAVING = ("Terminating", "Terminated", "Detaching", "Detached")


@dataclass(frozen=True)
class Instance:
    """A member of an autoscaling group. `release` is its own tag: what it booted with.

    `template`: the version of the launch template it came from. `served`: a load balancer sends it requests; True also
    where there is none.
    """

    instance_id: str
    lifecycle: str
    release: str = ""
    template: str = ""
    served: bool = True

    @property
    def leaving(self) -> bool:
        """Whether the group is taking it out already."""
        return self.lifecycle.startswith(LEAVING)


@dataclass(frozen=True)
class Group:
    """An autoscaling group: its members, bounds and tags.

    release: its tag, what the next instance will boot with, from template `template`; tags: all of them.
    """

    name: str
    desired: int
    minimum: int
    maximum: int
    release: str
    instances: tuple[Instance, ...] = ()
    template: str = ""
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
class Schema:
    """What a release's migrations and a database say of each other, as revision names.

    pre, post: known to the release and not applied. ahead: `post` revisions that are applied and that the release does
    not know: what they took away it still uses. blocked: `post` revisions that its `pre` ones need first.
    """

    pre: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    ahead: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """One pool: its group and its nodes, and the schema they all share."""

    role: str
    pool: str
    group: Group
    nodes: tuple[NodeFact, ...] = ()
    schema: Schema = Schema()

    def on(self, instance_id: str) -> list[NodeFact]:
        """The nodes on this instance: one, or two while it changes its release in place; none before it registers."""
        return [n for n in self.nodes if n.instance_id == instance_id]

    def node(self, instance_id: str) -> NodeFact | None:
        """The node that this instance is: of two the one that serves, and the later one of two that do."""
        found = self.on(instance_id)
        return next((n for n in reversed(found) if n.state == "ready"), found[-1] if found else None)

    def runs(self, instance: Instance) -> str:
        """The release a member runs: what its node says, else what it booted with."""
        node = self.node(instance.instance_id)
        return node.release if node else instance.release

    def outdated(self, release: str) -> list[str]:
        """The members that do not run this release, or came from another template, oldest first."""
        return [
            i.instance_id
            for i in self.group.instances
            if not i.leaving and (self.runs(i) != release or i.template != (self.group.template or i.template))
        ]

    def serving(self) -> list[str]:
        """The members that do their work."""
        ready = {n.instance_id for n in self.nodes if n.state == "ready" and n.fresh}
        return [i.instance_id for i in self.group.instances if not i.leaving and i.instance_id in ready]

    def before(self, release: str) -> str:
        """What this pool runs now: the group's release, or what most of the outdated nodes run; "" if neither."""
        if self.group.release not in ("", release):
            return self.group.release
        left = [r for i in self.group.instances if not i.leaving and (r := self.runs(i)) not in ("", release)]
        return max(sorted(set(left)), key=left.count) if left else ""
