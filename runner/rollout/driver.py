"""Carries rollouts out, one recorded step after another.

A step is written down as running, with what it remembers, before it acts, and as done after. Whoever finds it running,
the same driver or another one on another machine, runs it again: actions look at what is and do what is missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import structlog
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, NoCredentialsError
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from runner.rollout.cloud import Cloud
from runner.rollout.fleet import LiveFleet
from runner.rollout.plan import Step, Wish, plan
from runner.rollout.protocol import Fleet
from runner.rollout.retreat import passed_batches, way_back
from runner.rollout.steps import ACTIONS, GATES, Context, Done, Failed, Outcome, Waiting, remember
from runner.settings import Settings, SluiceError
from runner.state import rollouts
from runner.state.views import RolloutRow, StepRow

log = structlog.get_logger("rollout")

MOST_ROUNDS = 5  # how often nodes that came with the old release meanwhile are gone after
_EXPIRED = (
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
)

Plan = Sequence[tuple[str, Mapping[str, Any]]]
# Something was done; the step under way needs time; the rollout has ended or is somebody else's to drive.
Turn = Literal["moved", "waits", "over"]


@dataclass(frozen=True)
class Progress:
    """A rollout and how far it is."""

    rollout: RolloutRow
    steps: Sequence[StepRow]


class Journal(Protocol):
    """Where a rollout's progress is kept. Each call is one transaction."""

    def load(self) -> Progress | None: ...

    def start(self, seq: int, detail: Mapping[str, Any]) -> None: ...

    def note(self, seq: int, detail: Mapping[str, Any]) -> None: ...

    def done(self, seq: int, detail: Mapping[str, Any]) -> None: ...

    def fail(self, seq: int, detail: Mapping[str, Any], error: str, undo: Plan) -> None: ...

    def turn_back(self, seq: int, error: str, undo: Plan) -> None: ...

    def extend(self, seq: int, steps: Plan) -> None: ...

    def finish(self, state: str, detail: Mapping[str, Any], then: tuple[Wish, Plan] | None) -> None: ...


class UnseatedError(Exception):
    """Somebody else drives this rollout by now: this driver was silent for too long."""


class DbJournal:
    """The journal in the database. load() also takes or keeps the driver's seat; None: it is not ours to drive.

    Every other call makes sure that the seat is still ours, and raises UnseatedError if not.
    """

    def __init__(self, engine: Engine, rollout_id: int, owner: str) -> None:
        self.engine = engine
        self.id = rollout_id
        self.owner = owner

    def load(self) -> Progress | None:
        with self.engine.begin() as c:
            if not rollouts.take(c, self.id, self.owner):
                return None
            return Progress(rollouts.get(c, self.id), rollouts.steps(c, self.id))

    @contextlib.contextmanager
    def _seated(self) -> Iterator[Connection]:
        with self.engine.begin() as c:
            if not rollouts.take(c, self.id, self.owner):
                raise UnseatedError(f"roll {self.id} is driven by another")
            yield c

    def check(self) -> None:
        """Raise UnseatedError unless the seat is still ours: asked before each thing that is done to the cloud."""
        with self._seated():
            pass

    def start(self, seq: int, detail: Mapping[str, Any]) -> None:
        with self._seated() as c:
            rollouts.start_step(c, self.id, seq, detail)

    def note(self, seq: int, detail: Mapping[str, Any]) -> None:
        with self._seated() as c:
            rollouts.note_step(c, self.id, seq, detail)

    def done(self, seq: int, detail: Mapping[str, Any]) -> None:
        with self._seated() as c:
            rollouts.finish_step(c, self.id, seq, detail)

    def fail(self, seq: int, detail: Mapping[str, Any], error: str, undo: Plan) -> None:
        with self._seated() as c:
            rollouts.fail_step(c, self.id, seq, detail, error=error, undo=undo)

    def turn_back(self, seq: int, error: str, undo: Plan) -> None:
        with self._seated() as c:
            rollouts.turn_back(c, self.id, seq, error=error, undo=undo)

    def extend(self, seq: int, steps: Plan) -> None:
        with self._seated() as c:
            rollouts.extend(c, self.id, seq, steps)

    def finish(self, state: str, detail: Mapping[str, Any], then: tuple[Wish, Plan] | None) -> None:
        with self._seated() as c:
            rollouts.finish(c, self.id, state, detail)
            if then is not None:
                rollouts.follow_up(c, self.id, vars(then[0]), then[1])


def turn(journal: Journal, fleet: Fleet) -> Turn:
    """Do the next step, or look whether the one under way is over."""
    progress = journal.load()
    if progress is None:
        return "over"
    rollout, steps = progress.rollout, progress.steps
    current = next((s for s in steps if s.state in ("pending", "running")), None)
    aborting = rollout.wish.get("abort")
    if aborting and rollout.error is None and current is not None:
        _abort(journal, progress, current, str(aborting))
        return "moved"
    if current is None:
        if rollout.error is None and (more := _left_over(fleet, progress)):
            journal.extend(len(steps), more)
            return "moved"
        # A heartbeat run on the queue of a node that hangs would wait for long.
        fleet.end_runs([run for s in steps for run in s.detail.get("runs", {}).values()])
        journal.finish(_final_state(rollout), _summary(steps), _taken_back(fleet, progress))
        return "over"
    if current.state == "pending":
        detail = remember(fleet, current.action, current.args, rollout.release, _earlier(steps, current))
        journal.start(current.seq, detail)
        return "moved"  # the clock of the step runs from what was written: read it back
    match _act(fleet, progress, current):
        case Done(detail):
            journal.done(current.seq, detail)
        case Waiting(detail):
            if detail != current.detail:
                journal.note(current.seq, detail)
            return "waits"
        case Failed(error, detail, blame):
            undo = [] if rollout.wish.get("stay") else _way_back(progress, current, failed=blame)
            if not blame:
                error = f"stopped: {error}; run it again to go on"
            log.error("gate failed", rollout=rollout.id, step=current.action, error=error)
            journal.fail(current.seq, {**(detail or current.detail), "blame": blame}, error, undo)
    return "moved"


def _leaving(progress: Progress, step: StepRow) -> list[str] | None:
    """The machines that the batches before this step have told to go; None while others are to follow."""
    goings = [s for s in progress.steps if s.action == "terminate"]
    if any(s.seq > step.seq for s in goings):
        return None
    return [i for s in goings if s.seq < step.seq for i in (*s.args["instances"], *s.detail.get("instead", []))]


def _act(fleet: Fleet, progress: Progress, step: StepRow) -> Outcome:
    earlier = _earlier(progress.steps, step)
    marks = [int(s.detail["mark"]) for s in progress.steps if "mark" in s.detail]
    assert step.started_at is not None
    context = Context(
        rollout_id=progress.rollout.id,
        release=progress.rollout.release,
        by=progress.rollout.created_by,
        args=step.args,
        detail=step.detail,
        batch=earlier,
        started_at=step.started_at,
        age=step.age or 0.0,
        # A node that changes in place did its earlier work on the old release, under the same name.
        mark=int(earlier["order"]["mark"]) if "order" in earlier else min(marks, default=0),
        leaving=_leaving(progress, step),
    )
    try:
        return ACTIONS[step.action](fleet, context)
    except SluiceError as e:
        if step.action in GATES and progress.rollout.error is None:
            return Failed(e.message, dict(step.detail), blame=step.action != "surge")
        return Waiting({**step.detail, "trouble": e.message})


def _earlier(steps: Sequence[StepRow], step: StepRow) -> dict[str, Mapping[str, Any]]:
    """What the steps before this one of its batch remembered, by action."""
    batch = step.args.get("batch")
    return {s.action: s.detail for s in steps if s.seq < step.seq and s.args.get("batch") == batch}


def _abort(journal: Journal, progress: Progress, current: StepRow, who: str) -> None:
    undo = _way_back(progress, current, failed=False)
    error = f"aborted by {who} at step {current.seq} ({current.action})"
    if current.state == "running":
        journal.fail(current.seq, current.detail, error, undo)
    else:
        journal.turn_back(current.seq - 1, error, undo)


def _way_back(progress: Progress, current: StepRow, *, failed: bool) -> Plan:
    done = [(Step(s.action, s.args), s.detail) for s in progress.steps if s.state == "done"]
    at = (Step(current.action, current.args), current.detail) if current.state == "running" else None
    if at is None and done and done[-1][0].args.get("batch") == current.args.get("batch"):
        at = done.pop()  # stopped between two steps of a batch: its surge stands
    drain_seconds = float(progress.rollout.wish.get("drain_seconds", 3600.0))
    return [(s.action, s.args) for s in way_back(done, at, failed=failed, drain_seconds=drain_seconds)]


def _left_over(fleet: Fleet, progress: Progress) -> Plan:
    """Another round for nodes of the old release that came after the plan was made; nobody waits for them twice."""
    rollout = progress.rollout
    rounds = {s.args.get("round", 0) for s in progress.steps}
    facts = fleet.facts()
    if max(rounds, default=0) >= MOST_ROUNDS or not facts.outdated(rollout.release):
        return []
    wish = dataclasses.replace(Wish.of({**rollout.wish, "release": rollout.release}), canary=0, bake_seconds=0.0)
    last = max((int(s.args.get("batch", 0)) for s in progress.steps), default=0)
    try:
        steps = plan(facts, dataclasses.replace(wish, force=True))
    except SluiceError as e:
        log.warning("left over", rollout=rollout.id, error=e.message)
        return []
    return [
        (
            s.action,
            {**s.args, "round": max(rounds) + 1, **({"batch": last + s.args["batch"]} if "batch" in s.args else {})},
        )
        for s in steps
    ]


def _taken_back(fleet: Fleet, progress: Progress) -> tuple[Wish, Plan] | None:
    """The rollout that brings the old release back to what earlier batches have changed, if that is wanted."""
    rollout = progress.rollout
    wish = Wish.of({**rollout.wish, "release": rollout.release})
    if rollout.error is None or not wish.before or not _wants_all_back(progress):
        return None
    back = Wish(
        wish.before,
        batch=wish.batch,
        ready_seconds=wish.ready_seconds,
        heartbeat_seconds=wish.heartbeat_seconds,
        drain_seconds=wish.drain_seconds,
        strategy=wish.strategy,
        surge=wish.surge,
        wait=wish.wait,
        stay=True,  # there is nothing to go back to
        force=True,
    )
    try:
        steps = plan(fleet.facts(), back)
    except SluiceError as e:
        log.error("cannot be taken back", rollout=rollout.id, error=e.message)
        return None
    return (back, [(s.action, s.args) for s in steps]) if steps else None


def _wants_all_back(progress: Progress) -> bool:
    if "abort" in progress.rollout.wish:
        return bool(progress.rollout.wish.get("revert"))
    failed = next((s for s in progress.steps if s.state == "failed"), None)
    done = [Step(s.action, s.args) for s in progress.steps if s.state == "done"]
    if failed is None or not failed.detail.get("blame") or progress.rollout.wish.get("stay"):
        return False
    return passed_batches(done, Step(failed.action, failed.args))


def _final_state(rollout: RolloutRow) -> str:
    if rollout.error is None:
        return "succeeded"
    return "aborted" if rollout.error.startswith("aborted by ") else "failed"


def _summary(steps: Sequence[StepRow]) -> dict[str, Any]:
    replaced = sum(len(s.args["instances"]) for s in steps if s.action == "terminate" and s.state == "done")
    before = next((s.args["before"] for s in steps if s.action == "tag"), None)
    return {"before": before, "nodes": replaced}


# --- for those who call it --------------------------------------------------------------------------------------

_LONGEST_RUN = 20  # steps in one go, so that nobody waits long for a rollout that never has to


class CredentialsError(SluiceError):
    """The credentials of this driver are no good any more; the rollout was let go, and goes on where others drive."""


def advance(engine: Engine, cloud: Cloud, rollout_id: int, owner: str, settings: Settings) -> bool:
    """Carry one rollout on as far as it goes without waiting. True as long as it runs, whoever drives it.

    Trouble with the cloud is written into the step and tried again with the next call; raises the database's errors,
    and CredentialsError once AWS does not know this driver any more.
    """
    with engine.begin() as c:
        if not rollouts.due(c, rollout_id):
            return rollouts.get(c, rollout_id).state == "running"
        rollout = rollouts.get(c, rollout_id)
    journal = DbJournal(engine, rollout_id, owner)
    fleet = LiveFleet(engine, cloud, settings, rollout.role, rollout.pool, guard=journal.check)
    try:
        for _ in range(_LONGEST_RUN):
            if turn(journal, fleet) != "moved":
                break
    except (ClientError, BotoCoreError) as e:
        _note_trouble(journal, e)
        code = e.response["Error"]["Code"] if isinstance(e, ClientError) else ""
        if code in _EXPIRED or isinstance(e, NoCredentialsError | CredentialRetrievalError):
            with engine.begin() as c:
                rollouts.let_go(c, rollout_id, owner)
            raise CredentialsError(
                f"AWS does not accept the credentials of this driver ({code or type(e).__name__})",
                f"get new ones, then `deployctl roll --env {settings.env} --resume {rollout_id}`",
            ) from None
    except UnseatedError as e:
        log.warning("unseated", rollout=rollout_id, error=str(e))
    except (SluiceError, OperationalError) as e:
        # A migration that must not wait for a lock, for one; a database that is away raises again below.
        _note_trouble(journal, e)
    with engine.connect() as c:
        return rollouts.get(c, rollout_id).state == "running"


def _note_trouble(journal: DbJournal, error: Exception) -> None:
    said = " ".join(str(error).split())
    log.warning("the cloud says no; trying again", rollout=journal.id, error=said)
    progress = journal.load()
    current = next((s for s in progress.steps if s.state == "running"), None) if progress else None
    if current is not None and current.detail.get("trouble") != said:
        with contextlib.suppress(UnseatedError):
            journal.note(current.seq, {**current.detail, "trouble": said})


class _Background:
    """At most one thread of this process drives, so that whoever calls drive_all never waits for the cloud."""

    lock = threading.Lock()
    cloud: Cloud | None = None


def drive_all(engine: Engine, settings: Settings, owner: str, *, wait: bool = False) -> None:
    """Carry on every rollout under way that nobody else drives. Returns at once; `wait` waits for the round."""
    with engine.connect() as c:
        ids = rollouts.running(c)
    if not ids or not _Background.lock.acquire(blocking=wait):
        return
    thread = threading.Thread(target=_drive, args=(engine, settings, owner, ids), name="rollouts", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        _Background.lock.release()
        raise
    if wait:
        thread.join()


def _drive(engine: Engine, settings: Settings, owner: str, ids: Sequence[int]) -> None:
    try:
        _Background.cloud = _Background.cloud or Cloud(settings.region)
        for rollout_id in ids:
            try:
                advance(engine, _Background.cloud, rollout_id, owner, settings)
            except CredentialsError as e:
                log.error("credentials", rollout=rollout_id, error=e.message)
                _Background.cloud = None  # a new session reads them anew
                return
            except SQLAlchemyError as e:
                log.warning("the database does not answer", rollout=rollout_id, error=str(e).splitlines()[0])
            except Exception:  # one rollout's bug must not keep the others from going on
                log.exception("rollout stuck", rollout=rollout_id)
    finally:
        _Background.lock.release()
