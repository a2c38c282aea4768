"""Every change of a rollout's state, and the releases it moves a fleet to.

A rollout is `running` until its last step is done. Its driver is whoever holds it now: a name and a heartbeat, taken
over when the heartbeat stops. A rollout with an `error` that still runs is on its way back.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from runner.settings import RefusedError, UsageError
from runner.state.transitions import notify
from runner.state.views import RolloutDetail, RolloutRow, StepRow

DRIVER_SECONDS = 15.0  # a driver that was silent for this long may be replaced


@dataclass(frozen=True)
class ReleaseView:
    """A published release."""

    id: str
    label: str
    git_commit: str
    url: str
    size: int
    created_at: dt.datetime
    created_by: str


# --- releases -------------------------------------------------------------------------------------------------

_ADD_RELEASE = text("""
INSERT INTO release (id, label, git_commit, url, size, created_by)
VALUES (:id, :label, :git_commit, :url, :size, :who) ON CONFLICT (id) DO NOTHING RETURNING id
""")
_RELEASES = "SELECT id, label, git_commit, url, size, created_at, created_by FROM release "


def add_release(
    connection: Connection, *, release: str, label: str, git_commit: str, url: str, size: int, who: str
) -> bool:
    """Write down a published release; False if it was known."""
    values = {"id": release, "label": label, "git_commit": git_commit, "url": url, "size": size, "who": who}
    return connection.execute(_ADD_RELEASE, values).one_or_none() is not None


def releases(connection: Connection, limit: int = 50) -> list[ReleaseView]:
    """The published releases, newest first."""
    rows = connection.execute(text(_RELEASES + "ORDER BY created_at DESC, id LIMIT :n"), {"n": limit})
    return [ReleaseView(*row) for row in rows]


def find_release(connection: Connection, name: str) -> ReleaseView:
    """The release with this id, or `newest`. Raises UsageError if there is none."""
    if name == "newest":
        newest = releases(connection, 1)
        if not newest:
            raise UsageError("no release has been published", "`deployctl release build` publishes one")
        return newest[0]
    row = connection.execute(text(_RELEASES + "WHERE id = :id"), {"id": name}).one_or_none()
    if row is None:
        raise UsageError(f"no release {name!r}", "`deployctl release list --env ENV` shows those there are")
    return ReleaseView(*row)


# --- rollouts -------------------------------------------------------------------------------------------------

_SELECT = """
SELECT id, role, pool, release, strategy, wish, state, error, driver, driver_at,
       CAST(extract(epoch FROM clock_timestamp() - driver_at) AS float) AS driver_age,
       created_by, created_at, ended_at
FROM rollout
"""
_RECENT = text(f"""
{_SELECT} WHERE id < coalesce(CAST(:before AS bigint), 9223372036854775807) ORDER BY id DESC LIMIT :limit
""")
_STEPS = text("""
SELECT rollout_id, seq, action, args, state, detail, started_at, ended_at,
       CAST(extract(epoch FROM clock_timestamp() - started_at) AS float) AS age
FROM rollout_step WHERE rollout_id = ANY (:ids) ORDER BY rollout_id, seq
""")


def create(
    connection: Connection,
    *,
    role: str,
    pool: str,
    release: str,
    strategy: str,
    wish: Mapping[str, Any],
    steps: Sequence[tuple[str, Mapping[str, Any]]],
    who: str,
) -> int:
    """File a wish with its plan; the driver takes it from here. Returns the rollout's id.

    Raises RefusedError if this pool is being rolled already.
    """
    values = {
        "role": role,
        "pool": pool,
        "release": release,
        "strategy": strategy,
        "wish": json.dumps(dict(wish)),
        "who": who,
    }
    try:
        with connection.begin_nested():
            rollout_id: int = connection.execute(
                text("""
                INSERT INTO rollout (role, pool, release, strategy, wish, created_by)
                VALUES (:role, :pool, :release, :strategy, CAST(:wish AS jsonb), :who) RETURNING id"""),
                values,
            ).scalar_one()
    except IntegrityError:
        refuse_second(connection, role, [pool])
        # It ended between the two statements.
        raise RefusedError(f"{role} pool {pool} was being rolled a moment ago", "run it again") from None
    _append(connection, rollout_id, 1, steps)
    _event(connection, rollout_id, "running", f"{pool} to {release}, {len(steps)} steps, by {who}")
    notify(connection)
    return rollout_id


def refuse_second(connection: Connection, role: str, pools: Sequence[str]) -> None:
    """Raise RefusedError if one of these pools is being rolled: by whom, since when, and how to watch."""
    for pool in pools:
        other = _running(connection, role, pool)
        if other is not None:
            raise RefusedError(
                f"{role} pool {pool} is being rolled to {other.release} by {other.created_by} "
                f"since {other.created_at.astimezone():%H:%M:%S} (roll {other.id})",
                f"`deployctl watch {other.id}` shows it, `deployctl roll --abort {other.id}` stops it",
            )


def get(connection: Connection, rollout_id: int) -> RolloutRow:
    """One rollout. Raises UsageError if there is none with this id."""
    found = connection.execute(text(f"{_SELECT} WHERE id = :id"), {"id": rollout_id}).mappings().one_or_none()
    if found is None:
        raise UsageError(f"no roll {rollout_id}", "`deployctl roll --env ENV --watch` shows the latest")
    return RolloutRow(**found)


def recent(connection: Connection, limit: int = 20, *, before_id: int | None = None) -> list[RolloutDetail]:
    """The last rollouts with their steps, newest first. `before_id` is the last id of the page before."""
    rows = connection.execute(_RECENT, {"limit": limit, "before": before_id}).mappings().all()
    found = _steps(connection, [row["id"] for row in rows])
    return [RolloutDetail(**row, steps=found[row["id"]]) for row in rows]


def brings(connection: Connection, role: str, pool: str, release: str) -> bool:
    """Whether a rollout is under way that brings this release to the pool, and is not on its way back."""
    statement = text("""
    SELECT 1 FROM rollout
    WHERE state = 'running' AND role = :role AND pool = :pool AND release = :release AND error IS NULL""")
    values = {"role": role, "pool": pool, "release": release}
    return connection.execute(statement, values).scalar() is not None


def running(connection: Connection) -> list[int]:
    """Ids of the rollouts under way, oldest first."""
    return list(connection.execute(text("SELECT id FROM rollout WHERE state = 'running' ORDER BY id")).scalars())


def steps(connection: Connection, rollout_id: int) -> list[StepRow]:
    """All steps of a rollout in order."""
    return _steps(connection, [rollout_id])[rollout_id]


def take(connection: Connection, rollout_id: int, owner: str, *, silent_seconds: float = DRIVER_SECONDS) -> bool:
    """Become its driver, or say that one still drives it. False if somebody else does, or if it has ended."""
    row = connection.execute(
        text("""
        UPDATE rollout SET driver = :owner, driver_at = clock_timestamp()
        WHERE id = :id AND state = 'running' AND (driver IS NULL OR driver = :owner OR driver_at IS NULL
              OR driver_at < clock_timestamp() - make_interval(secs => :silent))
        RETURNING id"""),
        {"id": rollout_id, "owner": owner, "silent": silent_seconds},
    ).one_or_none()
    return row is not None


def let_go(connection: Connection, rollout_id: int, owner: str) -> None:
    """Give the rollout back, so that another driver need not wait for a silence."""
    connection.execute(
        text("UPDATE rollout SET driver = NULL, driver_at = NULL WHERE id = :id AND driver = :owner"),
        {"id": rollout_id, "owner": owner},
    )


def let_all_go(connection: Connection, owner: str) -> None:
    """Give back every rollout this driver has: it leaves."""
    connection.execute(
        text("UPDATE rollout SET driver = NULL, driver_at = NULL WHERE driver = :owner AND state = 'running'"),
        {"owner": owner},
    )


def start_step(connection: Connection, rollout_id: int, seq: int, detail: Mapping[str, Any]) -> None:
    """pending → running, with what the step has to remember, before anything is done."""
    moved = connection.execute(
        text("""
        UPDATE rollout_step SET state = 'running', started_at = clock_timestamp(), detail = CAST(:detail AS jsonb)
        WHERE rollout_id = :id AND seq = :seq AND state = 'pending' RETURNING action, args"""),
        {"id": rollout_id, "seq": seq, "detail": json.dumps(dict(detail))},
    ).one_or_none()
    if moved:
        _event(connection, rollout_id, "step", _step_text(seq, moved.action, "started"))


def note_step(connection: Connection, rollout_id: int, seq: int, detail: Mapping[str, Any]) -> None:
    """Write down how far a running step is."""
    connection.execute(
        text("""
        UPDATE rollout_step SET detail = CAST(:detail AS jsonb)
        WHERE rollout_id = :id AND seq = :seq AND state = 'running'"""),
        {"id": rollout_id, "seq": seq, "detail": json.dumps(dict(detail))},
    )


def finish_step(connection: Connection, rollout_id: int, seq: int, detail: Mapping[str, Any]) -> None:
    """running → done."""
    _end_step(connection, rollout_id, seq, "done", detail)


def fail_step(
    connection: Connection,
    rollout_id: int,
    seq: int,
    detail: Mapping[str, Any],
    *,
    error: str,
    undo: Sequence[tuple[str, Mapping[str, Any]]],
) -> None:
    """running → failed: the rest of the plan is dropped and the way back takes its place."""
    _end_step(connection, rollout_id, seq, "failed", detail)
    turn_back(connection, rollout_id, seq, error=error, undo=undo)


def turn_back(
    connection: Connection, rollout_id: int, seq: int, *, error: str, undo: Sequence[tuple[str, Mapping[str, Any]]]
) -> None:
    """Drop all steps after `seq` and append the way back; the rollout goes on running until it is done."""
    connection.execute(
        text("DELETE FROM rollout_step WHERE rollout_id = :id AND seq > :seq"), {"id": rollout_id, "seq": seq}
    )
    _append(connection, rollout_id, seq + 1, undo)
    connection.execute(
        text("UPDATE rollout SET error = :error WHERE id = :id AND state = 'running'"),
        {"id": rollout_id, "error": error},
    )
    _event(connection, rollout_id, "step", f"turning back: {error}")


def extend(connection: Connection, rollout_id: int, seq: int, steps: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Append steps behind step `seq`, the last there is."""
    _append(connection, rollout_id, seq + 1, steps)
    _event(connection, rollout_id, "step", f"{len(steps)} more steps: nodes of another release came meanwhile")


def follow_up(
    connection: Connection,
    rollout_id: int,
    wish: Mapping[str, Any],
    steps: Sequence[tuple[str, Mapping[str, Any]]],
) -> int:
    """File the rollout that takes back one that has just ended; its id."""
    ended = get(connection, rollout_id)
    return create(
        connection,
        role=ended.role,
        pool=ended.pool,
        release=str(wish["release"]),
        strategy=ended.strategy,
        wish={**wish, "reverts": rollout_id},
        steps=steps,
        who=ended.created_by,
    )


def next_of(connection: Connection, rollout_id: int) -> int | None:
    """The rollout that takes this one back, if there is one."""
    row: int | None = connection.execute(
        text("SELECT id FROM rollout WHERE id > :id AND wish ->> 'reverts' = CAST(:id AS text) ORDER BY id LIMIT 1"),
        {"id": rollout_id},
    ).scalar()
    return row


def due(connection: Connection, rollout_id: int) -> bool:
    """Whether its turn has come: those it was to wait for have succeeded. If one of them has not, it ends here."""
    row = connection.execute(
        text("""
        SELECT count(*) FILTER (WHERE o.state = 'running') AS running,
               min(o.id) FILTER (WHERE o.state NOT IN ('running', 'succeeded')) AS stopped
        FROM rollout r, jsonb_array_elements_text(coalesce(r.wish -> 'after', '[]')) a, rollout o
        WHERE r.id = :id AND r.state = 'running' AND o.id = CAST(a AS bigint)"""),
        {"id": rollout_id},
    ).one()
    aborted = connection.execute(
        text("SELECT wish ->> 'abort' FROM rollout WHERE id = :id AND state = 'running'"), {"id": rollout_id}
    ).scalar()
    if row.stopped is None and not (row.running and aborted):
        return not row.running
    why = f"aborted by {aborted}" if aborted else f"not begun: roll {row.stopped} before it did not succeed"
    connection.execute(text("UPDATE rollout SET error = :e WHERE id = :id"), {"id": rollout_id, "e": why})
    finish(connection, rollout_id, "aborted")
    return False


def ask_abort(connection: Connection, rollout_id: int, who: str, *, revert: bool = False) -> bool:
    """Ask the driver to stop and leave the fleet healthy. False if the rollout has ended or is turning back.

    revert: another rollout shall then bring back what ran before.
    """
    row = connection.execute(
        text("""
        UPDATE rollout SET wish = wish || jsonb_build_object('abort', CAST(:who AS text), 'revert', CAST(:all AS bool))
        WHERE id = :id AND state = 'running' AND error IS NULL RETURNING id"""),
        {"id": rollout_id, "who": who, "all": revert},
    ).one_or_none()
    if row:
        notify(connection)
    return row is not None


def finish(connection: Connection, rollout_id: int, state: str, detail: Mapping[str, Any] | None = None) -> bool:
    """running → succeeded, failed or aborted; a success leaves a line in the deploy history. False if it had ended.

    `detail` is kept with the history: `before` names the release that was replaced.
    """
    facts = dict(detail or {})
    row = connection.execute(
        text("""
        UPDATE rollout SET state = :state, ended_at = clock_timestamp(), driver = NULL, driver_at = NULL
        WHERE id = :id AND state = 'running' RETURNING role, pool, release, created_by, error"""),
        {"id": rollout_id, "state": state},
    ).one_or_none()
    if row is None:
        return False
    if state == "succeeded":
        connection.execute(
            text("""
            INSERT INTO deploy (kind, target, before, after, who, detail)
            VALUES ('release', :target, :before, :after, :who, CAST(:detail AS jsonb))"""),
            {
                "target": f"{row.role}/{row.pool}",
                "before": facts.pop("before", None),
                "after": row.release,
                "who": row.created_by,
                "detail": json.dumps({"rollout": rollout_id, **facts}),
            },
        )
    _event(connection, rollout_id, state, row.error or f"{row.pool} to {row.release}")
    notify(connection)
    return True


def _running(connection: Connection, role: str, pool: str) -> RolloutRow | None:
    statement = text(f"{_SELECT} WHERE state = 'running' AND role = :role AND pool = :pool")
    found = connection.execute(statement, {"role": role, "pool": pool}).mappings().one_or_none()
    return RolloutRow(**found) if found else None


def _steps(connection: Connection, rollout_ids: Sequence[int]) -> dict[int, list[StepRow]]:
    found: dict[int, list[StepRow]] = {rollout_id: [] for rollout_id in rollout_ids}
    for row in connection.execute(_STEPS, {"ids": list(rollout_ids)}).mappings():
        values = dict(row)
        found[values.pop("rollout_id")].append(StepRow(**values))
    return found


def _append(connection: Connection, rollout_id: int, first: int, plan: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    for seq, (action, args) in enumerate(plan, first):
        connection.execute(
            text("""
            INSERT INTO rollout_step (rollout_id, seq, action, args)
            VALUES (:id, :seq, :action, CAST(:args AS jsonb))"""),
            {"id": rollout_id, "seq": seq, "action": action, "args": json.dumps(dict(args))},
        )


def _end_step(connection: Connection, rollout_id: int, seq: int, state: str, detail: Mapping[str, Any]) -> None:
    row = connection.execute(
        text("""
        UPDATE rollout_step SET state = :state, ended_at = clock_timestamp(), detail = CAST(:detail AS jsonb)
        WHERE rollout_id = :id AND seq = :seq AND state = 'running' RETURNING action"""),
        {"id": rollout_id, "seq": seq, "state": state, "detail": json.dumps(dict(detail))},
    ).one_or_none()
    if row:
        _event(connection, rollout_id, "step", _step_text(seq, row.action, state))


def _step_text(seq: int, action: str, state: str) -> str:
    return f"step {seq} {action}: {state}"


def _event(connection: Connection, rollout_id: int, state: str, detail: str) -> None:
    connection.execute(
        text("INSERT INTO event (kind, subject, state, detail) VALUES ('rollout', :id, :state, :detail)"),
        {"id": str(rollout_id), "state": state, "detail": detail},
    )
