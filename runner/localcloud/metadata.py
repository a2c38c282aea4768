"""The instance metadata service of the local cloud: IMDSv2 as EC2 documents it, one path prefix per instance.

`http://127.0.0.1:<port>/<instance-id>` stands for an instance's own `http://169.254.169.254`. On a bridge, where each
instance has an address of its own, it is known by that as on AWS, and the prefix falls away. Beside the first lies what
is not an instance's to call: `PUT /admin/<instance-id>/spot` posts a spot notice, `PUT /admin/<instance-id>/events/…`
the text of an event, and `PUT /admin/<instance-id>/reboot` pulls the plug and puts it back. Only PUT and DELETE, which
a web page cannot send to another origin unasked.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol
from urllib.parse import unquote

from runner.localcloud.cloud import Instance

_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER = "X-aws-ec2-metadata-token"
_TTL_MAX_SECONDS = 21600
_MAX_TOKENS = 10_000
_CREDENTIAL_SECONDS = 6 * 3600
_VERSION = re.compile(r"^\d{4}-\d{2}-\d{2}(?=/|$)")  # every version EC2 ever had answers as the latest

# Lifecycle state in the group -> the state the instance is on its way to
# (EC2 Auto Scaling user guide, "Retrieve the target lifecycle state through instance metadata").
_TARGET = {
    "Pending": "InService",
    "InService": "InService",
    "Terminating": "Terminated",
    "Terminated": "Terminated",
    "EnteringStandby": "Standby",
    "Standby": "Standby",
    "Detaching": "Detached",
    "Detached": "Detached",
    "Warmed:Pending": "Warmed:Stopped",
    "Warmed:Stopped": "Warmed:Stopped",
    "Warmed:Running": "Warmed:Running",
    "Warmed:Hibernated": "Warmed:Hibernated",
    "Warmed:Terminating": "Warmed:Terminated",
}


EVENTS = ("events/maintenance/scheduled", "events/recommendations/rebalance")


class Facts(Protocol):
    """Where the answers come from; `runner.localcloud.cloud.Cloud` is one."""

    account: str
    region: str

    def get(self, instance_id: str) -> Instance | None: ...
    def lifecycle_state(self, instance_id: str) -> str: ...
    def user_data(self, instance_id: str) -> bytes: ...
    def at(self, address: str) -> str: ...


class Notices:
    """What was posted: spot notices, instance → (action, when), and events, instance → path → text."""

    def __init__(self) -> None:
        self._posted: dict[str, tuple[str, datetime]] = {}
        self._events: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def post(self, instance_id: str, action: str, seconds: float) -> datetime:
        """Announce that the instance will be reclaimed in so many seconds; EC2 gives 120."""
        when = datetime.now(UTC) + timedelta(seconds=seconds)
        with self._lock:
            self._posted[instance_id] = (action, when)
        return when

    def withdraw(self, instance_id: str) -> None:
        """Take a notice back."""
        with self._lock:
            self._posted.pop(instance_id, None)

    def announce(self, instance_id: str, path: str, text: str) -> None:
        """Make this the text of `events/…` of an instance; an empty one takes it back."""
        with self._lock:
            events = {**self._events.get(instance_id, {}), path: text}
            self._events[instance_id] = {p: t for p, t in events.items() if t}

    def events(self, instance_id: str) -> dict[str, str]:
        """The events of an instance, path → text."""
        with self._lock:
            return dict(self._events.get(instance_id, {}))

    def get(self, instance_id: str) -> tuple[str, datetime] | None:
        """The notice of an instance, if one was posted."""
        with self._lock:
            return self._posted.get(instance_id)

    def due(self) -> list[str]:
        """The instances whose time has come; each is returned once."""
        now = datetime.now(UTC)
        with self._lock:
            ready = [i for i, (_, when) in self._posted.items() if when <= now]
            for instance_id in ready:
                del self._posted[instance_id]
        return ready


def hardware_address(address: str) -> str:
    """The hardware address of the machine with this private address: a locally administered one."""
    return "02:00:" + ":".join(f"{int(part):02x}" for part in (address or "0.0.0.0").split("."))


def target_lifecycle_state(lifecycle_state: str) -> str:
    """The `autoscaling/target-lifecycle-state` of an instance in this lifecycle state; empty if it has none."""
    state = lifecycle_state
    while state:
        if state in _TARGET:
            return _TARGET[state]
        state = state.rpartition(":")[0]  # Terminating:Wait → Terminating
    return ""


def tree(instance: Instance, facts: Facts, notices: Notices) -> dict[str, str]:
    """Everything below `latest/meta-data/` of one instance, path → text."""
    leaves = {
        "ami-id": instance.image,
        "instance-id": instance.id,
        "instance-type": instance.type,
        "instance-life-cycle": "spot" if instance.spot else "on-demand",
        "local-hostname": f"ip-{instance.private_ip.replace('.', '-')}.ec2.internal",
        "local-ipv4": instance.private_ip,
        "mac": (mac := hardware_address(instance.private_ip)),
        f"network/interfaces/macs/{mac}/device-number": "0",
        f"network/interfaces/macs/{mac}/local-ipv4s": instance.private_ip,
        f"network/interfaces/macs/{mac}/mac": mac,
        "placement/availability-zone": instance.zone,
        "placement/region": facts.region,
    }
    leaves |= {f"tags/instance/{key}": value for key, value in instance.tags.items()}
    # On AWS the role is that of the instance's profile; the emulator takes any credentials, and everybody gets some.
    leaves["iam/security-credentials/local"] = credentials()
    if target := target_lifecycle_state(facts.lifecycle_state(instance.id)):
        leaves["autoscaling/target-lifecycle-state"] = target
    if notice := notices.get(instance.id):
        action, when = notice
        time_text = when.strftime("%Y-%m-%dT%H:%M:%SZ")
        leaves["spot/instance-action"] = json.dumps({"action": action, "time": time_text})
        if action == "terminate":
            leaves["spot/termination-time"] = time_text
    return leaves | notices.events(instance.id)


def credentials() -> str:
    """`iam/security-credentials/<role>`: what the emulated AWS takes from anybody, in the form EC2 gives it."""
    now = datetime.now(UTC)
    return json.dumps(
        {
            "Code": "Success",
            "LastUpdated": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "Type": "AWS-HMAC",
            "AccessKeyId": "local",
            "SecretAccessKey": "local",
            "Token": "local",
            "Expiration": (now + timedelta(seconds=_CREDENTIAL_SECONDS)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    )


def identity_document(instance: Instance, facts: Facts) -> str:
    """`latest/dynamic/instance-identity/document`: the fields EC2 documents, unsigned."""
    document = {
        "accountId": facts.account,
        "architecture": instance.architecture,
        "availabilityZone": instance.zone,
        "billingProducts": None,
        "devpayProductCodes": None,
        "imageId": instance.image,
        "instanceId": instance.id,
        "instanceType": instance.type,
        "kernelId": None,
        "marketplaceProductCodes": None,
        "pendingTime": instance.launched.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "privateIp": instance.private_ip,
        "ramdiskId": None,
        "region": facts.region,
        "version": "2017-09-30",
    }
    return json.dumps(document, indent=2)


def lookup(leaves: dict[str, str], path: str) -> str | None:
    """The text at a path, or the listing of a directory (its subdirectories end in a slash); None if neither."""
    if path in leaves:
        return leaves[path]
    prefix = path.strip("/") + "/" if path.strip("/") else ""
    below = [name[len(prefix) :] for name in leaves if name.startswith(prefix)]
    if not below:
        return None
    # A tag's key may itself hold slashes (aws:autoscaling:…/…): tags are a flat list.
    flat = prefix == "tags/instance/"
    return "\n".join(sorted({n if flat or "/" not in n else n.partition("/")[0] + "/" for n in below}))


class Server(ThreadingHTTPServer):
    """The service; serve() answers in a thread until shutdown()."""

    daemon_threads = True

    def __init__(self, facts: Facts, port: int = 0, reboot: Callable[[str], bool] | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.facts = facts
        self.notices = Notices()
        self.reboot = reboot or (lambda instance_id: False)
        self._tokens: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def serve(self) -> threading.Thread:
        """Answer requests in a thread of its own."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        thread.start()
        return thread

    def issue(self, instance_id: str, ttl_seconds: int) -> str:
        """A new session token, valid for this instance and so long."""
        token = secrets.token_urlsafe(40)
        with self._lock:
            if len(self._tokens) >= _MAX_TOKENS:
                now = time.monotonic()
                self._tokens = {t: v for t, v in self._tokens.items() if v[1] > now}
            self._tokens[token] = (instance_id, time.monotonic() + ttl_seconds)
        return token

    def valid(self, instance_id: str, token: str | None) -> bool:
        """Whether this token was issued to this instance and has not run out."""
        with self._lock:
            owner, until = self._tokens.get(token or "", ("", 0.0))
        return owner == instance_id and time.monotonic() < until


class BridgeServer(ThreadingHTTPServer):
    """The same service for machines with addresses of their own: an instance is known by where it asks from."""

    daemon_threads = True

    def __init__(self, origin: Server, address: str, port: int = 0) -> None:
        super().__init__((address, port), _BridgeHandler)
        self.origin = origin

    @property
    def url(self) -> str:
        """What stands for `http://169.254.169.254` on the bridge."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def serve(self) -> threading.Thread:
        """Answer requests in a thread of its own."""
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True)
        thread.start()
        return thread


class _Handler(BaseHTTPRequestHandler):
    server_version = "EC2ws"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = 60  # an idle connection holds a thread

    @property
    def origin(self) -> Server:
        """The server with the facts, the notices and the tokens."""
        assert isinstance(self.server, Server)
        return self.server

    def target(self) -> tuple[str, str]:
        """The instance (or `admin`) that the request is for, and the path."""
        who, _, path = unquote(self.path.partition("?")[0]).lstrip("/").partition("/")
        return who, _VERSION.sub("latest", path)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        who, path = self.target()
        if who == "admin":
            self._admin(path.rstrip("/"), body)
        elif path == "latest/api/token":
            self._token(who)
        else:
            self._answer(405, "Method Not Allowed")

    def do_DELETE(self) -> None:
        who, path = self.target()
        if who == "admin" and path.endswith("/spot"):
            self.origin.notices.withdraw(path.removesuffix("/spot"))
            self._answer(200, "withdrawn")
        else:
            self._answer(405, "Method Not Allowed")

    def do_GET(self) -> None:
        who, path = self.target()
        instance = self.origin.facts.get(who)
        if instance is None:
            return self._answer(404, "Not Found")
        if not self.origin.valid(who, self.headers.get(_TOKEN_HEADER)):
            return self._answer(401, "Unauthorized")
        facts = self.origin.facts
        if path == "latest/user-data":
            data = facts.user_data(who)
            return self._answer(200, data) if data else self._answer(404, "Not Found")
        text = None
        if path.rstrip("/") == "latest/meta-data" or path.startswith("latest/meta-data/"):
            text = lookup(tree(instance, facts, self.origin.notices), path[len("latest/meta-data/") :])
        elif path.startswith("latest/dynamic/"):
            document = {"instance-identity/document": identity_document(instance, facts)}
            text = lookup(document, path[len("latest/dynamic/") :])
        return self._answer(404, "Not Found") if text is None else self._answer(200, text)

    do_HEAD = do_GET

    def _token(self, who: str) -> None:
        if self.origin.facts.get(who) is None:
            return self._answer(404, "Not Found")
        if self.headers.get("X-Forwarded-For"):  # through a proxy: EC2 refuses, against forged requests
            return self._answer(403, "Forbidden")
        ttl = self.headers.get(_TTL_HEADER, "")
        if not ttl.isascii() or not ttl.isdigit() or not 1 <= int(ttl) <= _TTL_MAX_SECONDS:
            return self._answer(400, "Bad Request")
        return self._answer(200, self.origin.issue(who, int(ttl)), {_TTL_HEADER: ttl})

    def _admin(self, path: str, body: bytes) -> None:
        who, _, what = path.partition("/")
        if self.origin.facts.get(who) is None:
            return self._answer(404, f"no running instance {who}")
        if what == "reboot":
            return self._answer(200, "rebooting") if self.origin.reboot(who) else self._answer(409, "not up")
        if what in EVENTS:
            self.origin.notices.announce(who, what, body.decode(errors="replace"))
            return self._answer(200, "announced" if body else "withdrawn")
        if what != "spot":
            return self._answer(404, "Not Found")
        try:
            wish = json.loads(body or b"{}")
            action, seconds = str(wish.get("action", "terminate")), float(wish.get("seconds", 120))
        except (ValueError, AttributeError, TypeError):
            return self._answer(400, 'expected {"action": "terminate", "seconds": 120}')
        if action not in ("terminate", "stop", "hibernate"):
            return self._answer(400, f"action {action!r} is none of terminate, stop, hibernate")
        when = self.origin.notices.post(who, action, seconds)
        return self._answer(200, when.isoformat())

    def _answer(self, status: int, text: str | bytes, headers: dict[str, str] | None = None) -> None:
        data = text.encode() if isinstance(text, str) else text
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if status < 400 else "text/html")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """No line per request: agents ask several times a second."""


class _BridgeHandler(_Handler):
    @property
    def origin(self) -> Server:
        assert isinstance(self.server, BridgeServer)
        return self.server.origin

    def target(self) -> tuple[str, str]:
        path = unquote(self.path.partition("?")[0]).lstrip("/")
        return self.origin.facts.at(self.client_address[0]), _VERSION.sub("latest", path)
