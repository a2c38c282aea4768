"""The instance metadata service (IMDSv2): what the cloud tells a machine about itself and its end."""

from __future__ import annotations

import datetime as dt
import http.client
import json
import time
import weakref
from dataclasses import dataclass
from urllib.parse import urlsplit

_TIMEOUT_SECONDS = 1.0  # it answers from the host itself; whatever takes longer is not going to come
_TOKEN_SECONDS = 300


@dataclass(frozen=True)
class Event:
    """A scheduled event that will end or reboot the machine, or what it runs on."""

    code: str  # instance-retirement, instance-stop, instance-reboot, system-reboot, system-maintenance
    not_before: dt.datetime


class Metadata:
    """A client of the metadata service under `url`. Methods raise OSError while the service does not answer.

    It is asked several things a second, so the connection is kept. No proxy of the environment is: it would see the
    node's credentials.
    """

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._connection = http.client.HTTPConnection(where.netloc, timeout=_TIMEOUT_SECONDS)
        self._prefix = where.path.rstrip("/")
        weakref.finalize(self, self._connection.close)
        self._token = ""
        self._token_until = 0.0

    def get(self, path: str) -> str | None:
        """The value under `latest/<path>`, None where there is none (404)."""
        status, text = self._fetch(path)
        if status == 401:
            self._token_until = 0.0  # the service was restarted and has forgotten the token
            status, text = self._fetch(path)
        if status not in (200, 404):
            raise OSError(f"metadata {path}: HTTP {status}")
        return text if status == 200 else None

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

    def _fetch(self, path: str) -> tuple[int, str]:
        if time.monotonic() >= self._token_until:
            header = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
            status, token = self._ask("PUT", "api/token", header)
            if status != 200:
                raise OSError(f"metadata api/token: HTTP {status}")
            self._token, self._token_until = token, time.monotonic() + _TOKEN_SECONDS / 2
        return self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and body. What was kept may have been closed by the other side: then once more, on a new one."""
        kept = self._connection.sock is not None
        try:
            self._connection.request(method, f"{self._prefix}/latest/{path}", headers=headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read().decode()
        except (ConnectionError, http.client.HTTPException) as e:
            self._connection.close()
            if kept:
                return self._ask(method, path, headers)
            raise OSError(f"metadata {path}: {e or type(e).__name__}") from None
        except OSError:
            self._connection.close()
            raise


def _event(found: dict[str, str]) -> Event | None:
    try:
        # As in "21 Jan 2026 09:00:43 GMT" (EC2 user guide, "View scheduled events").
        when = dt.datetime.strptime(found["NotBefore"], "%d %b %Y %H:%M:%S GMT").replace(tzinfo=dt.UTC)
    except (ValueError, KeyError, TypeError):
        return None
    return Event(str(found.get("Code", "maintenance")), when)
