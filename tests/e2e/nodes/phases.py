"""Where the time between the launch of an instance and its first task goes, by what each part has written down."""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Fleet

# What says in the journal that a phase is over.
_MARKS = {
    "cloud-init is done, boot starts": r"boot: .* looking for the release",
    "release fetched": r"boot: .* fetched, ",
    "release unpacked": r"boot: .* unpacked",
    "release installed": r"bootstrap: configuring with ansible",
    "agent started": r"Starting runner-agent\.service",
}


@dataclass(frozen=True)
class Phase:
    """The end of a phase: seconds since the launch."""

    name: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:6.1f} s  {self.name}"


def phases(fleet: Fleet, instance: str) -> list[Phase]:
    """The phases of a boot that are over, in order."""
    found = fleet.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
    launched = found["LaunchTime"].timestamp()
    ends: dict[str, float] = {}
    power = re.search(r"^(\S+)Z \[.*power on: ", fleet.said(instance), re.MULTILINE)
    if power:
        ends["container starts"] = dt.datetime.fromisoformat(power[1]).replace(tzinfo=dt.UTC).timestamp()
    journal = fleet.host(instance).run("journalctl --no-pager -b -o json --output-fields=MESSAGE").stdout
    for line in journal.splitlines():
        entry = json.loads(line)
        message = entry["MESSAGE"] if isinstance(entry.get("MESSAGE"), str) else ""
        for name, mark in _MARKS.items():
            if name not in ends and re.search(mark, message):
                ends[name] = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
    events = fleet.rows(
        "SELECT kind, min(extract(epoch FROM at)) FROM event WHERE node_id = :n"
        " AND (kind = 'node' AND state = 'ready' OR kind = 'task' AND state = 'running') GROUP BY kind ORDER BY 2",
        n=instance,
    )
    names = {"node": "registered", "task": "first task claimed"}
    ends |= {names[kind]: float(at) for kind, at in events}
    return [Phase(name, at - launched) for name, at in sorted(ends.items(), key=lambda item: item[1])]
