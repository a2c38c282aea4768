"""What a local cloud consists of and where: `<state dir>/local.json`, written by `deployctl local up`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from runner.localcloud import process
from runner.settings import SluiceError, UsageError

ENV = "local"
REGION = "us-east-1"
ACCOUNT = "123456789012"  # the account moto answers for
LOOPBACK = "127.0.0.1"

NodeKind = Literal["processes", "containers"]
_FILE = "local.json"


@dataclass(frozen=True)
class LocalState:
    """The endpoints of one local cloud. An empty value: that part has not been started yet.

    nodes: what an instance becomes. address: where everything listens; with containers the host's address in the VPC
    (cidr), and password is that of the engines there.
    """

    aws_endpoint: str = ""
    database_url: str = ""
    broker_url: str = ""
    warehouse_url: str = ""
    ledger: str = ""
    imds_port: int = 0
    release: str = ""
    env: str = ENV
    region: str = REGION
    account: str = ACCOUNT
    nodes: NodeKind = "processes"
    address: str = LOOPBACK
    cidr: str = ""
    bridge_port: int = 0  # of the metadata service on the bridge
    password: str = ""

    @property
    def artifacts_url(self) -> str:
        """Where releases/ and bundles/ are kept; the bucket is made by the data stack."""
        return f"s3://sluice-{self.env}-artifacts-{self.account}"

    @property
    def storage_url(self) -> str:
        """Where logs/ and files/ are kept; the bucket is made by the data stack."""
        return f"s3://sluice-{self.env}-storage-{self.account}"

    @property
    def state_bucket(self) -> str:
        """The bucket of Terraform's state."""
        return f"sluice-{self.env}-state-{self.account}"

    def machine_environment(self, imds_url: str) -> dict[str, str]:
        """What a container has in the environment of all its services, so that it finds the emulated AWS.

        The rest it learns as on AWS: from its user data, and its credentials from the metadata service.
        """
        return {
            "AWS_ENDPOINT_URL": self.aws_endpoint,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds_url,  # boto3
            "AWS_METADATA_ENDPOINT": imds_url,  # the storage layer
            "AWS_ALLOW_HTTP": "true",
            "SLUICE_IMDS_URL": imds_url,
            "SLUICE_CONN_WAREHOUSE": self.warehouse_url,
        }

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to take this local cloud for its AWS.

        Only variables; the code that reads them is the same on AWS. Parts not yet started are left out.
        """
        wanted = {
            "AWS_ENDPOINT_URL": self.aws_endpoint,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            # Plain http on this machine, which the S3 client of the storage layer refuses unless told.
            "AWS_ALLOW_HTTP": "true" if self.aws_endpoint else "",
            "SLUICE_ENV": self.env,
            "SLUICE_REGION": self.region,
            "SLUICE_DATABASE_URL": self.database_url,
            "SLUICE_BROKER_URL": self.broker_url,
            "SLUICE_ARTIFACTS_URL": self.artifacts_url,
            "SLUICE_STORAGE_URL": self.storage_url,
            "SLUICE_CONN_WAREHOUSE": self.warehouse_url,
            # Where the example pipelines record what they really ran.
            "SLUICE_LEDGER": self.ledger,
        }
        return {name: value for name, value in wanted.items() if value}


def directory() -> Path:
    """The state directory: SLUICE_LOCAL_DIR, or `.sluice/local` in the current directory."""
    return Path(os.environ.get("SLUICE_LOCAL_DIR") or Path.cwd() / ".sluice" / "local").absolute()


def load(state_dir: Path | None = None) -> LocalState:
    """Read the endpoints. Raises SluiceError if there is no local cloud in this directory."""
    found = find(state_dir)
    if found is None:
        raise SluiceError(f"no local cloud in {state_dir or directory()}", "run `deployctl local up`")
    return found


def find(state_dir: Path | None = None) -> LocalState | None:
    """As load(), but None if there is none. Raises SluiceError if the file is there and cannot be read."""
    path = (state_dir or directory()) / _FILE
    try:
        data: Any = json.loads(path.read_text())
        known = {f.name for f in fields(LocalState)}
        return LocalState(**{k: v for k, v in data.items() if k in known})
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise UsageError(
            f"{path.parent} is not a directory", "SLUICE_LOCAL_DIR names where the local cloud is kept"
        ) from None
    except (OSError, ValueError, AttributeError, TypeError) as e:
        raise SluiceError(
            f"{path} cannot be read: {e}", "run `deployctl local down`, then `deployctl local up`"
        ) from None


def save(state: LocalState, state_dir: Path | None = None) -> None:
    """Write the endpoints, whole or not at all."""
    home = state_dir or directory()
    home.mkdir(parents=True, exist_ok=True)
    # It may hold the engines' password.
    process.write_atomically(home / _FILE, json.dumps(asdict(state), indent=2) + "\n", mode=0o600)


def update(state_dir: Path | None = None, **changes: Any) -> LocalState:
    """Change some endpoints and keep the others, also when two threads do it at once; returns the result."""
    home = state_dir or directory()
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / ".json.lock"):
        state = replace(find(home) or LocalState(), **changes)
        save(state, home)
    return state


@contextlib.contextmanager
def locked(path: Path, busy: str = "") -> Iterator[None]:
    """Hold a lock file. With busy, do not wait for it but raise SluiceError with that text."""
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise SluiceError(busy, "wait for it, or interrupt it and run this again") from None
        yield
