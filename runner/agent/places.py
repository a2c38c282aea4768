"""Which services this machine has, or shall have, and what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from runner.agent.service import Service, Supervisor
from runner.state import orders, queries
from runner.state.orders import Order
from runner.state.views import NodeRow


@dataclass
class Place:
    """A service of this machine: the node it is, its row, and whether it runs.

    unknown: the database is away. others: another place is up, or has not drained. successor: the node of the release
    that this machine is ordered to run is ready.
    """

    release: str
    node_id: str
    service: Service
    row: NodeRow | None
    order: Order | None
    unknown: bool = False
    alive: bool = field(init=False)
    others: bool = False
    successor: bool = False

    def __post_init__(self) -> None:
        self.alive = self.service.alive()

    @property
    def ordered(self) -> bool:
        """Whether this is of the release that the machine is ordered to run."""
        return self.order is not None and self.order.release == self.release

    @property
    def ready(self) -> bool:
        """Whether its node takes tasks and is heard."""
        return self.row is not None and self.row.state == "ready" and self.row.live

    @property
    def over(self) -> bool:
        """Whether it has nothing more to do."""
        return not self.alive and (self.row is None or self.row.state in ("drained", "gone"))


def look(connection: Connection | None, machine: str, supervisor: Supervisor) -> list[Place]:
    """All places of this machine, the first one first. Without a connection (the database is away) those that run.

    Raises OSError if the supervisor does not answer.
    """
    rows = queries.machine(connection, machine) if connection is not None else []
    order = orders.find(connection, machine) if connection is not None else None
    if not supervisor.many:
        release = supervisor.release()
        row = next((r for r in rows if r.node_id == machine), None)
        return [Place(release, machine, supervisor.service(release), row, order, unknown=connection is None)]
    places = [
        Place(release, node_id, supervisor.service(release), row, order, unknown=connection is None)
        for release in _releases(rows, order, supervisor)
        for node_id in [supervisor.node_id(release)]
        for row in [next((r for r in rows if r.node_id == node_id), None)]
    ]
    for place in places:
        place.others = any(not other.over for other in places if other is not place)
        place.successor = any(other.ordered and other.ready for other in places if other is not place)
    return places


def _releases(rows: Sequence[NodeRow], order: Order | None, supervisor: Supervisor) -> list[str]:
    there = [row for row in rows if row.state != "gone"]
    # A node that was cordoned before it has registered has no release yet: it is the one that this machine boots.
    found = [row.release or supervisor.release() for row in there]
    found += supervisor.running()
    found += [order.release] if order is not None else []
    return list(dict.fromkeys(found)) or [supervisor.release()]
