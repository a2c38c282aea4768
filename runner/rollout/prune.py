"""Which published releases may go: none that anything runs, may soon run, or would go back to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Connection, text

from runner.rollout.release import archive_key, manifest_key, signature_key
from runner.storage import Storage


def kept(
    newest_first: Sequence[str], keep: int, used: Mapping[str, str], before: Mapping[str, Collection[str]]
) -> dict[str, str]:
    """The releases that stay, and why. Pure.

    `used` says of a release by what; `before` what ran before a release, to go back to. Where that is not known it is
    the one that was published before it.
    """
    why = {release: f"one of the newest {keep}" for release in newest_first[:keep]}
    for release in used:
        older = newest_first[newest_first.index(release) + 1 :][:1] if release in newest_first else []
        why |= {earlier: f"ran before {release}" for earlier in before.get(release) or older}
    why |= used
    return {release: why[release] for release in newest_first if release in why}


def hold(connection: Connection) -> None:
    """No roll begins until the end of this transaction."""
    connection.execute(text("LOCK TABLE rollout, node_order IN SHARE ROW EXCLUSIVE MODE"))


def used(connection: Connection, cloud: Mapping[str, str]) -> dict[str, str]:
    """Every release that is in use, and by what; `cloud` says that of groups' and machines' tags."""
    found = dict(cloud)
    for order in connection.execute(_ORDERS):
        found[order.release] = f"machine {order.machine} is ordered to run it"
    for rollout in connection.execute(_ROLLS):
        found |= {r: f"roll {rollout.id} is under way" for r in (rollout.before, rollout.tag, rollout.release) if r}
    for node in connection.execute(_NODES):
        found[node.release] = "1 node runs it" if node.nodes == 1 else f"{node.nodes} nodes run it"
    return found


def before(connection: Connection) -> dict[str, set[str]]:
    """What each release replaced when it came last to a pool, by the deploy history."""
    found: dict[str, set[str]] = {}
    for row in connection.execute(_HISTORY):
        found.setdefault(row.after, set()).add(row.before)
    return found


def remove(release: str, storage: Storage, connection: Connection) -> None:
    """Delete a release, its row last: what was interrupted is listed, and removed by the next attempt."""
    for key in (archive_key, signature_key, manifest_key):
        storage.delete(key(release))
    connection.execute(text("DELETE FROM release WHERE id = :id"), {"id": release})


_NODES = text("SELECT release, count(*) AS nodes FROM node WHERE state <> 'gone' GROUP BY release")
_ORDERS = text("SELECT machine, release FROM node_order")
_ROLLS = text("""
SELECT r.id, r.release, r.wish ->> 'before' AS before, s.args ->> 'before' AS tag
FROM rollout r LEFT JOIN rollout_step s ON s.rollout_id = r.id AND s.action = 'tag'
WHERE r.state = 'running'""")
_HISTORY = text("""
SELECT DISTINCT ON (target, after) before, after FROM deploy
WHERE kind = 'release' AND before <> after ORDER BY target, after, id DESC""")
