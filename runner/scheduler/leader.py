"""A duty that one scheduler of all does, in a thread of its own: whoever waits for the cloud, nobody waits for it."""

from __future__ import annotations

import threading

import structlog
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from runner.settings import SluiceError
from runner.state import scaling

log = structlog.get_logger(__name__)


class Leader(threading.Thread):
    """Campaigns for its duty; who holds the lock looks every so many seconds, until its connection dies.

    Trouble with the database, the cloud or a setting is logged once, and the next look tries again.
    """

    def __init__(self, engine: Engine, duty: str, look_seconds: float) -> None:
        super().__init__(name=duty, daemon=True)
        self._engine = engine
        self._duty = duty
        self._look_seconds = look_seconds
        self._stopping = threading.Event()
        self._said: dict[str, str] = {}

    def begin(self, connection: Connection) -> None:
        """The lock is ours now."""

    def look(self, connection: Connection) -> None:
        """Do what there is to do. Each statement of the connection is a transaction of its own."""
        raise NotImplementedError

    def trouble(self) -> None:
        """A look ended in an error of the cloud or of a setting."""

    def run(self) -> None:
        """Work until `stop`."""
        while not self._stopping.is_set():
            try:
                self._campaign()
                self.quiet("database")
            except DBAPIError as e:
                self.once("database", str(e.orig))
            except Exception:
                log.exception("a duty is stuck", action=self._duty)
            self._stopping.wait(min(1.0, self._look_seconds))

    def stop(self) -> None:
        """End the thread; what it does at this moment is done first, for some seconds."""
        self._stopping.set()
        if self.is_alive():
            self.join(10)

    def _campaign(self) -> None:
        with self._engine.connect() as connection:
            # A transaction that is kept open between two looks would be in the way of others.
            connection.execution_options(isolation_level="AUTOCOMMIT")
            if not scaling.lead(connection, self._duty):
                return
            log.info("leads", action=self._duty)
            try:
                self.begin(connection)
                while not self._stopping.is_set():
                    self.turn(connection)
                    self._stopping.wait(self._look_seconds)
            finally:
                connection.invalidate()  # and with it the lock

    def turn(self, connection: Connection) -> None:
        """One look, whatever the cloud says."""
        try:
            self.look(connection)
            self.quiet("cloud")
        except (ClientError, BotoCoreError, SluiceError) as e:
            self.trouble()
            self.once("cloud", " ".join(str(e).split()))

    def once(self, what: str, error: str) -> None:
        """Log the first of a row of the same trouble."""
        if self._said.get(what) != error:
            self._said[what] = error
            log.warning("trouble", action=self._duty, what=what, error=error)

    def quiet(self, what: str) -> None:
        """That trouble is over."""
        self._said.pop(what, None)
