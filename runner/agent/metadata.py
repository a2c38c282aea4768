"""The instance metadata service (IMDSv2): what the cloud tells a machine about itself and its end."""

from __future__ import annotations

import datetime as dt
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

_TIMEOUT_SECONDS = 1.0  # it answers from the host itself; whatever takes longer is not going to come
_TOKEN_SECONDS = 300
# Straight to the link-local address: a proxy from the environment would see the node's credentials.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Event:
    """A scheduled event that will end or reboot the machine, or what it runs on."""

    code: str  # instance-retirement, instance-stop, instance-reboot, system-reboot, system-maintenance
    not_before: dt.datetime


class Metadata:
    """A client of the metadata service under `url`. Methods raise OSError while the service does not answer."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._token = ""
        self._token_until = 0.0

    def get(self, path: str) -> str | None:
        """The value under `latest/<path>`, None where there is none (404)."""
        for attempt in (1, 2):
            try:
                return self._fetch(path)
            except urllib.error.HTTPError as e:
                code = e.code
                e.close()
            if code == 404:
                return None
            if code != 401 or attempt == 2:
                break
            self._token_until = 0.0  # the service was restarted and has forgotten the token
        raise OSError(f"metadata {path}: HTTP {code}")

    def terminating(self) -> bool:
        """Whether the autoscaling group wants this instance gone (target lifecycle state `Terminated`)."""
        return (self.get("meta-data/autoscaling/target-lifecycle-state") or "").strip() == "Terminated"

    def spot_end(self) -> dt.datetime | None:
        """When the spot interruption comes, None without a notice. Also for `hibernate` and `stop` notices."""
        notice = self.get("meta-data/spot/instance-action")
        if not notice:
            return None
        try:
            end = dt.datetime.fromisoformat(json.loads(notice)["time"].replace("Z", "+00:00"))
        except (ValueError, KeyError, TypeError, AttributeError):
            # A notice that cannot be read is still a notice: AWS gives two minutes.
            return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=120)
        return end if end.tzinfo else end.replace(tzinfo=dt.UTC)

    def rebalance(self) -> bool:
        """Whether EC2 recommends to replace this spot instance: an interruption is likelier than it was."""
        return self.get("meta-data/events/recommendations/rebalance") is not None

    def events(self) -> list[Event]:
        """The scheduled maintenance that is still to come, earliest first; what cannot be read is left out."""
        try:
            found = json.loads(self.get("meta-data/events/maintenance/scheduled") or "[]")
            events = [_event(e) for e in found if str(e.get("State", "active")) == "active"]
        except (ValueError, TypeError, AttributeError):
            return []
        return sorted((e for e in events if e is not None), key=lambda e: e.not_before)

    def _fetch(self, path: str) -> str:
        if time.monotonic() >= self._token_until:
            header = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
            self._token = self._open("PUT", "api/token", header)
            self._token_until = time.monotonic() + _TOKEN_SECONDS / 2
        return self._open("GET", path, {"X-aws-ec2-metadata-token": self._token})

    def _open(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self._url}/latest/{path}", method=method, headers=headers)
        with _OPENER.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            return str(answer.read().decode())


def _event(found: dict[str, str]) -> Event | None:
    try:
        # As in "21 Jan 2026 09:00:43 GMT" (EC2 user guide, "View scheduled events").
        when = dt.datetime.strptime(found["NotBefore"], "%d %b %Y %H:%M:%S GMT").replace(tzinfo=dt.UTC)
    except (ValueError, KeyError, TypeError):
        return None
    return Event(str(found.get("Code", "maintenance")), when)
