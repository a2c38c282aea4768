"""The instance metadata service answers as EC2 documents it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from runner.localcloud import metadata
from runner.localcloud.cloud import Instance

ONE = "i-0123456789abcdef0"
OTHER = "i-0fedcba9876543210"


@dataclass
class Facts:
    """Two instances, of which the first has a Release tag that is empty."""

    account: str = "123456789012"
    region: str = "us-east-1"
    states: dict[str, str] = field(default_factory=lambda: {ONE: "Pending:Wait"})

    def get(self, instance_id: str) -> Instance | None:
        if instance_id not in (ONE, OTHER):
            return None
        tags = {"Release": "", "Pool": "cpu", "aws:autoscaling:groupName": "sluice-local-worker-cpu", "a/b": "slash"}
        return Instance(
            instance_id, "running", tags, "us-east-1b", "10.0.1.7", "m7i.large", "ami-1", "x86_64",
            datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), spot=instance_id == OTHER,
        )  # fmt: skip

    def lifecycle_state(self, instance_id: str) -> str:
        return self.states.get(instance_id, "")

    def at(self, address: str) -> str:
        return {"127.0.0.2": ONE, "127.0.0.3": OTHER}.get(address, "")

    def user_data(self, instance_id: str) -> bytes:
        return b"#cloud-config\n" if instance_id == ONE else b""


Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture
def server(facts: Facts) -> Iterator[metadata.Server]:
    server = metadata.Server(facts)
    thread = server.serve()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ask(server: metadata.Server) -> Ask:
    def call(method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    return call


@pytest.fixture
def get(ask: Ask) -> Callable[..., tuple[int, str]]:
    def call(path: str, instance: str = ONE) -> tuple[int, str]:
        _, token = ask("PUT", f"/{instance}/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="60")
        return ask("GET", f"/{instance}/latest/{path}", X_aws_ec2_metadata_token=token)

    return call


def test_without_a_valid_token_nothing_is_told(ask: Ask) -> None:
    path = f"/{ONE}/latest/meta-data/instance-id"
    assert ask("GET", path)[0] == 401
    assert ask("GET", path, X_aws_ec2_metadata_token="made-up")[0] == 401
    # Another instance's token is worth nothing here
    _, token = ask("PUT", f"/{OTHER}/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="60")
    assert ask("GET", path, X_aws_ec2_metadata_token=token)[0] == 401


@pytest.mark.parametrize("ttl", ["", "0", "21601", "-1", "soon"])
def test_a_token_needs_a_time_to_live_from_one_second_to_six_hours(ask: Ask, ttl: str) -> None:
    headers = {"X_aws_ec2_metadata_token_ttl_seconds": ttl} if ttl else {}
    assert ask("PUT", f"/{ONE}/latest/api/token", **headers)[0] == 400


def test_a_token_runs_out_and_is_not_given_through_a_proxy(server: metadata.Server, ask: Ask) -> None:
    assert server.valid(ONE, server.issue(ONE, 1))
    assert not server.valid(ONE, server.issue(ONE, 0))
    forwarded = {"X_aws_ec2_metadata_token_ttl_seconds": "60", "X_Forwarded_For": "10.0.0.1"}
    assert ask("PUT", f"/{ONE}/latest/api/token", **forwarded)[0] == 403


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("meta-data/instance-id", ONE),
        ("meta-data/instance-life-cycle", "on-demand"),
        ("meta-data/local-ipv4", "10.0.1.7"),
        ("meta-data/placement/availability-zone", "us-east-1b"),
        ("meta-data/placement/region", "us-east-1"),
        ("meta-data/placement/", "availability-zone\nregion"),
        ("meta-data/tags/instance", "Pool\nRelease\na/b\naws:autoscaling:groupName"),
        ("meta-data/tags/instance/Pool", "cpu"),
        ("meta-data/tags/instance/Release", ""),
        ("meta-data/tags/instance/a/b", "slash"),
        ("meta-data/autoscaling/target-lifecycle-state", "InService"),
        ("user-data", "#cloud-config\n"),
    ],
)
def test_what_an_instance_is_told(get: Callable[..., tuple[int, str]], path: str, text: str) -> None:
    assert get(path) == (200, text)


@pytest.mark.parametrize(
    "path", ["meta-data/tags/instance/None", "meta-data/spot/instance-action", "meta-data/nothing", "dynamic/nothing"]
)
def test_what_is_not_there_is_404(get: Callable[..., tuple[int, str]], path: str) -> None:
    assert get(path)[0] == 404


def test_an_instance_that_is_not_there_gets_nothing_and_one_without_user_data_gets_404(
    ask: Ask, get: Callable[..., tuple[int, str]]
) -> None:
    assert ask("PUT", "/i-none/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="60")[0] == 404
    assert get("user-data", OTHER)[0] == 404
    assert get("meta-data/autoscaling/target-lifecycle-state", OTHER)[0] == 404  # in no group
    assert get("meta-data/instance-life-cycle", OTHER) == (200, "spot")


def test_the_listing_shows_directories_with_a_slash(get: Callable[..., tuple[int, str]]) -> None:
    names = get("meta-data/")[1].split("\n")
    assert {"instance-id", "placement/", "tags/", "autoscaling/"} <= set(names)


def test_the_identity_document(get: Callable[..., tuple[int, str]]) -> None:
    status, text = get("dynamic/instance-identity/document")
    document = json.loads(text)
    assert status == 200
    assert document["instanceId"] == ONE
    assert (document["accountId"], document["region"], document["availabilityZone"]) == (
        "123456789012",
        "us-east-1",
        "us-east-1b",
    )
    assert document["pendingTime"] == "2026-01-02T03:04:05Z"
    assert document["version"] == "2017-09-30"


@pytest.mark.parametrize(
    ("state", "target"),
    [
        ("Pending", "InService"),
        ("Pending:Proceed", "InService"),
        ("InService", "InService"),
        ("Terminating:Wait", "Terminated"),
        ("Terminating:Proceed", "Terminated"),
        ("EnteringStandby", "Standby"),
        ("Detaching", "Detached"),
        ("Warmed:Pending:Wait", "Warmed:Stopped"),
        ("Warmed:Terminating:Wait", "Warmed:Terminated"),
        ("", ""),
    ],
)
def test_target_lifecycle_states(state: str, target: str) -> None:
    assert metadata.target_lifecycle_state(state) == target


def test_a_spot_notice_is_shown_when_posted_and_due_once(
    server: metadata.Server, ask: Ask, get: Callable[..., tuple[int, str]]
) -> None:
    # When a notice is posted
    assert ask("PUT", f"/admin/{ONE}/spot", json.dumps({"action": "terminate", "seconds": 120}))[0] == 200
    # Then the instance sees it in EC2's words, two minutes ahead
    notice = json.loads(get("meta-data/spot/instance-action")[1])
    assert notice["action"] == "terminate"
    left = datetime.fromisoformat(notice["time"]) - datetime.now(UTC)
    assert timedelta(seconds=110) < left <= timedelta(seconds=120)
    assert get("meta-data/spot/instance-action", OTHER)[0] == 404
    # When it is withdrawn, it is gone
    assert ask("DELETE", f"/admin/{ONE}/spot")[0] == 200
    assert get("meta-data/spot/instance-action")[0] == 404
    # When its time has come, it is due once
    server.notices.post(ONE, "terminate", -1)
    assert server.notices.due() == [ONE]
    assert server.notices.due() == []


@pytest.mark.parametrize("body", ["nonsense", '{"action": "explode"}', "[1]", '{"seconds": "soon"}'])
def test_a_bad_notice_is_refused(ask: Ask, body: str) -> None:
    assert ask("PUT", f"/admin/{ONE}/spot", body)[0] == 400


def test_an_event_is_shown_until_it_is_taken_back(get: Callable[..., tuple[int, str]], ask: Ask) -> None:
    path = "events/recommendations/rebalance"
    assert get(f"meta-data/{path}")[0] == 404
    assert ask("PUT", f"/admin/{ONE}/{path}", "{}")[0] == 200
    assert get(f"meta-data/{path}") == (200, "{}") and get(f"meta-data/{path}", OTHER)[0] == 404
    assert ask("PUT", f"/admin/{ONE}/{path}", "")[0] == 200
    assert get(f"meta-data/{path}")[0] == 404
    assert ask("PUT", f"/admin/{ONE}/events/party", "{}")[0] == 404


# --- on a bridge ----------------------------------------------------------------------------------------------


@pytest.fixture
def bridged(server: metadata.Server) -> Iterator[metadata.BridgeServer]:
    found = metadata.BridgeServer(server, "127.0.0.1")
    thread = found.serve()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def call(bridged: metadata.BridgeServer, source: str, method: str, path: str, **headers: str) -> tuple[int, str]:
    host, port = str(bridged.server_address[0]), int(bridged.server_address[1])
    connection = http.client.HTTPConnection(host, port, timeout=5, source_address=(source, 0))
    connection.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_on_a_bridge_an_instance_is_known_by_its_address(bridged: metadata.BridgeServer) -> None:
    # Given two machines, each with an address of its own
    tokens = {
        source: call(bridged, source, "PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="60")[1]
        for source in ("127.0.0.2", "127.0.0.3")
    }
    # Then each sees itself, under the version it asks for
    for source, instance in (("127.0.0.2", ONE), ("127.0.0.3", OTHER)):
        for version in ("latest", "2021-03-23"):
            path = f"/{version}/meta-data/instance-id"
            assert call(bridged, source, "GET", path, X_aws_ec2_metadata_token=tokens[source]) == (200, instance)
    # But not with the other's token, nor is a stranger anybody
    path = "/latest/meta-data/instance-id"
    assert call(bridged, "127.0.0.2", "GET", path, X_aws_ec2_metadata_token=tokens["127.0.0.3"])[0] == 401
    assert call(bridged, "127.0.0.4", "GET", path)[0] == 404


@pytest.mark.parametrize("path", [f"/admin/{ONE}/reboot", f"/admin/{ONE}/spot", f"/{ONE}/latest/api/token"])
def test_a_machine_on_the_bridge_can_neither_reboot_nor_be_another(
    bridged: metadata.BridgeServer, server: metadata.Server, path: str
) -> None:
    assert call(bridged, "127.0.0.3", "PUT", path, X_aws_ec2_metadata_token_ttl_seconds="60")[0] == 405
    assert server.notices.get(ONE) is None


def test_what_cloud_init_walks_through_is_there(bridged: metadata.BridgeServer) -> None:
    header = {"X_aws_ec2_metadata_token_ttl_seconds": "60"}
    token = {"X_aws_ec2_metadata_token": call(bridged, "127.0.0.2", "PUT", "/latest/api/token", **header)[1]}

    def get(path: str) -> str:
        status, text = call(bridged, "127.0.0.2", "GET", f"/2021-03-23/{path}", **token)
        assert status == 200, path
        return text

    assert get("dynamic/instance-identity") == get("dynamic/instance-identity/") == "document"
    mac = get("meta-data/mac")
    assert mac == "02:00:0a:00:01:07"  # 10.0.1.7
    assert get(f"meta-data/network/interfaces/macs/{mac}/local-ipv4s") == "10.0.1.7"
    role = get("meta-data/iam/security-credentials/")
    credentials = json.loads(get(f"meta-data/iam/security-credentials/{role}"))
    assert {"AccessKeyId", "SecretAccessKey", "Token", "Expiration"} <= credentials.keys()
    assert datetime.fromisoformat(credentials["Expiration"]) > datetime.now(UTC) + timedelta(hours=1)
