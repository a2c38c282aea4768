"""Two schedulers and four workers on a real database, moved one step at a time in an order that a seed decides.

Each step is a transaction as a scheduler or a worker makes it; between the steps messages are lost and doubled,
workers die, answers do not arrive, leases run out, nodes are cordoned.
"""

from __future__ import annotations

import datetime as dt
import json
import random
import uuid
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, text

from runner.authoring.spec import DagSpec, TaskSpec
from runner.settings import RefusedError
from runner.state import bundles, nodes, transitions
from runner.state.nodes import NodeInfo
from runner.state.transitions import LEGAL, Claim, Lease, Message, Outcome, Result

from .oracle import Behaviour, States

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
QUEUES = {"n1": ("default",), "n2": ("default", "cpu"), "n3": ("cpu",), "n4": ("default", "cpu")}

# psycopg sends all of these at once.
_EMPTY = """
DELETE FROM event; DELETE FROM task_instance; DELETE FROM dag_run; DELETE FROM dag_version; DELETE FROM dag;
DELETE FROM bundle; DELETE FROM node; DELETE FROM pool; DELETE FROM deploy
"""
_AT_WORK = """
SELECT t.dag_id, t.task_id, g.max_active_tasks, d.max_active, d.pool, d.pool_slots, p.slots
FROM task_instance t JOIN dag_task d USING (dag_id, bundle_version, task_id) JOIN dag g USING (dag_id)
LEFT JOIN pool p ON p.name = d.pool
WHERE t.limited AND (t.state IN ('queued', 'running') OR (t.state = 'ready' AND t.admitted))
"""
# What the counters say and what is so, where the two differ.
_MISCOUNTED = """
SELECT r.id, r.unfinished, r.failed_leaves, c.unfinished, c.failed FROM dag_run r JOIN (
    SELECT run_id,
           count(*) FILTER (WHERE state NOT IN ('success', 'failed', 'skipped', 'upstream_failed')) AS unfinished,
           count(*) FILTER (WHERE leaf AND state IN ('failed', 'upstream_failed')) AS failed
    FROM task_instance WHERE map_index = -1 AND kind <> 'callback' GROUP BY run_id) c ON c.run_id = r.id
WHERE (r.unfinished, r.failed_leaves) <> (c.unfinished, c.failed) OR (r.state = 'running') <> (c.unfinished > 0)
"""


@dataclass
class Node:
    """A worker: what it believes to run, and what it believes to be."""

    name: str
    boot: int = 0
    held: dict[uuid.UUID, Claim] = field(default_factory=dict)


class Simulation:
    """One world. `by_hand`: people clear, mark, kill and end runs too, and nobody knows what it must come to."""

    def __init__(
        self,
        engine: Engine,
        dags: list[DagSpec],
        behaviour: dict[str, Behaviour],
        *,
        runs: int,
        pools: dict[str, int],
        seed: int,
        by_hand: bool = False,
    ) -> None:
        self.engine = engine
        self.reader = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self.dags = {d.dag_id: d for d in dags}
        self.behaviour = behaviour
        self.runs = runs
        self.dice = random.Random(seed)
        self.by_hand = by_hand
        self.cleared = False
        self.broker: list[Message] = []
        self.nodes = [Node(name) for name in QUEUES]
        self.zombies: list[Claim] = []  # of workers that died, or whose lease was taken away
        self.leases: set[Lease] = set()  # as somebody saw them a while ago
        self.used: dict[int, int] = {}  # task instance → how many of its outcomes have counted
        self.ids: dict[tuple[str, int], int] = {}  # (DAG, number of the run) → run
        with engine.begin() as c:
            c.exec_driver_sql(_EMPTY)
            for name, slots in pools.items():
                c.execute(text("INSERT INTO pool (name, slots) VALUES (:n, :s)"), {"n": name, "s": slots})
            bundles.register_and_activate(c, version="v", name="b", url="", size=1, specs=dags, who="t")
            for node in self.nodes:
                self._register(c, node)

    # --- steps -----------------------------------------------------------------------------------------------

    def step(self) -> None:
        ordinary = [self.schedule] * 6 + [self.deliver] * 8 + [self.end] * 10 + [self.heartbeat] * 2 + [self.sense]
        trouble = [self.pass_time, self.lose, self.double, self.die, self.cordon, self.uncordon, self.expire]
        trouble += [self.look, self.resend, self.zombie, self.clear_run]
        if self.by_hand:
            trouble += [self.meddle] * 4
        if len(self.ids) < len(self.dags) * self.runs:
            ordinary += [self.create] * 4
        self.dice.choice(ordinary if self.dice.random() < 0.75 else trouble)()

    def create(self) -> None:
        todo = [
            (d, n)
            for d in self.dags
            for n in range(self.runs)
            if (d, n) not in self.ids and (n == 0 or (d, n - 1) in self.ids)
        ]
        if todo:
            dag_id, n = self.dice.choice(todo)
            with self.engine.begin() as c:
                run = transitions.create_run(c, dag_id, START + dt.timedelta(days=n))
            assert run is not None
            self.ids[dag_id, n] = run

    def schedule(self) -> None:
        """Any duty of any scheduler."""
        duty = self.dice.choice(
            [transitions.wake_retries, transitions.release_past, transitions.admit, self._start_runs, self._dispatch]
        )
        self.duty(duty)

    def duty(self, duty: Any) -> Any:
        with self.engine.begin() as c:
            done = duty(c)
        self.check_limits()
        return done

    def _dispatch(self, c: Connection) -> int:
        messages = transitions.dispatch(c, fresh_seconds=3600)
        self.broker += messages
        return len(messages)

    def _start_runs(self, c: Connection) -> int:
        after, n = "", 0
        while found := transitions.start_runs(c, after):
            after, n = found[0], n + found[1]
        return n

    def resend(self) -> None:
        with self.engine.begin() as c:
            self.broker += [q.message for q in transitions.queued(c, fresh_seconds=3600)]

    def deliver(self, *, honest: bool = False) -> bool:
        """A worker answers a message. False: there is none."""
        if not self.broker:
            return False
        message = self.broker.pop(self.dice.randrange(len(self.broker)))
        node = self.dice.choice([n for n in self.nodes if message.queue in QUEUES[n.name]])
        with self.engine.begin() as c:
            claim = transitions.claim(c, message.task_instance, message.attempt, node_id=node.name, lease_seconds=300)
            if claim is None and nodes.is_ready(c, node.name):
                found = transitions.take(c, node_id=node.name, queues=QUEUES[node.name], n=1, lease_seconds=300)
                claim = found[0] if found else None
            elif claim is None:
                transitions.release(c, message.task_instance, message.attempt)
        if claim and (honest or self.dice.random() < 0.95):  # else its answer is lost
            self._took(node, claim)
        self.check_limits()
        return True

    def end(self, *, batch: int | None = None) -> bool:
        """A worker's tasks end, and their slots take the next. False: nothing runs."""
        busy = [n for n in self.nodes if n.held]
        if not busy:
            return False
        node = self.dice.choice(busy)
        claims = self.dice.sample(
            list(node.held.values()), min(len(node.held), batch or self.dice.choice([1, 1, 2, 3]))
        )
        interrupted = self.dice.random() < 0.05
        outcomes = [self._outcome(claim, interrupted=interrupted) for claim in claims]
        if self.dice.random() < 0.1:
            outcomes.append(self.dice.choice(outcomes))
        slots = self.dice.choice([0, len(claims), len(claims), 4])
        done = self._finish(outcomes, claims, node_id=node.name, queues=QUEUES[node.name], slots=slots)
        for claim in claims:
            del node.held[claim.token]
            if self.dice.random() < 0.1:
                self.zombies.append(claim)  # its outcome is sent again
        for claim in done.claims:
            self._took(node, claim)
        self.check_limits()
        return True

    def heartbeat(self, node: Node | None = None) -> None:
        node = node or self.dice.choice(self.nodes)
        with self.engine.begin() as c:
            orders = nodes.heartbeat(c, node.name, list(node.held))
        assert orders is not None
        assert orders.renewed == orders.held & set(node.held), "nobody else holds a row lock here"
        for token in set(node.held) - orders.held:
            self.zombies.append(node.held.pop(token))
        strange = orders.held - set(node.held)
        if strange:
            with self.engine.begin() as c:
                transitions.interrupt_tokens(c, list(strange), "the answer to its claim was lost")
        for token in orders.ended & set(node.held):
            claim = node.held.pop(token)
            self._finish([self._outcome(claim, interrupted=self.dice.random() < 0.5)], [claim])

    def sense(self) -> bool:
        rows = self.reader.execute(text("SELECT id, run_id, task_id FROM task_instance WHERE state = 'deferred'")).all()
        if not rows:
            return False
        row = self.dice.choice(rows)
        task, behaviour, run = self._who(row.run_id, row.task_id)
        (state,) = behaviour.outcomes(run, task, -1)
        n = behaviour.length(run, row.task_id)
        value = json.dumps([0] * n) if n is not None and state == "success" else None
        with self.engine.begin() as c:
            assert transitions.sensed(c, [(row.id, state, value, None)]) == 1
            assert transitions.sensed(c, [(row.id, state, value, None)]) == 0
        return True

    def pass_time(self) -> None:
        with self.engine.begin() as c:
            c.execute(text("UPDATE task_instance SET available_at = now() WHERE state = 'up_for_retry'"))

    def lose(self) -> None:
        if self.broker:
            self.broker.pop(self.dice.randrange(len(self.broker)))

    def double(self) -> None:
        if self.broker:
            self.broker.append(self.dice.choice(self.broker))

    def die(self) -> None:
        """A worker dies; it comes back, or its death is proven, or neither: its leases run out."""
        node = self.dice.choice(self.nodes)
        self.zombies += node.held.values()
        node.held.clear()
        how = self.dice.choice(["restart", "gone", "silent"])
        with self.engine.begin() as c:
            if how == "gone":
                nodes.gone(c, node.name, cause="spot")
                c.execute(text("DELETE FROM node WHERE node_id = :n"), {"n": node.name})
            if how != "silent":
                node.boot += 1
                self._register(c, node)

    def cordon(self) -> None:
        with self.engine.begin() as c:
            nodes.cordon(c, self.dice.choice(self.nodes).name, reason="roll", by="t", deadline_seconds=60)

    def uncordon(self) -> None:
        with self.engine.begin() as c:
            nodes.uncordon(c, self.dice.choice(self.nodes).name, by="t")

    def look(self) -> None:
        with self.engine.begin() as c:
            self.leases = transitions.leases(c)

    def expire(self) -> None:
        """Leases that were seen before are believed to be over: those that were renewed since are not."""
        believed = [lease for lease in self.leases if self.dice.random() < 0.5]
        with self.engine.begin() as c:
            before = transitions.leases(c)
            n = transitions.interrupt_leases(c, believed)
            held = {token for token, _ in before} - {token for token, _ in transitions.leases(c)}
        assert held <= {token for token, _ in set(believed) & before}
        assert n == len(held)

    def zombie(self) -> None:
        """An outcome arrives late, or once more."""
        if self.zombies:
            claim = self.zombies.pop(self.dice.randrange(len(self.zombies)))
            if all(claim.token not in n.held for n in self.nodes):
                self._finish([self._outcome(claim)], [claim])

    def clear_run(self) -> None:
        """All of a run again: it must come to the same."""
        if self.ids and self.dice.random() < 0.3:
            with self.engine.begin() as c:
                run = self.dice.choice(list(self.ids.values()))
                try:
                    transitions.clear(c, run, by="t")
                except RefusedError:
                    return
                # What runs is started over when it has ended, see `_finish`.
                rows = c.execute(
                    text("SELECT id FROM task_instance WHERE run_id = :r AND state <> 'running'"), {"r": run}
                )
                for row in rows:
                    self.used.pop(row.id, None)
            self.cleared = True

    def meddle(self) -> None:
        if not self.ids:
            return
        run = self.dice.choice(list(self.ids.values()))
        with self.engine.begin() as c:
            rows = c.execute(
                text("SELECT task_id, map_index FROM task_instance WHERE run_id = :r AND kind <> 'callback'"),
                {"r": run},
            ).all()
            names = [r.task_id if r.map_index < 0 else f"{r.task_id}[{r.map_index}]" for r in rows]
            if not names:
                return
            some = self.dice.sample(names, self.dice.randint(1, min(2, len(names))))
            what = self.dice.choice(["clear", "clear", "mark", "mark", "kill", "end"])
            try:
                if what == "clear":
                    flags = {k: self.dice.random() < 0.5 for k in ("upstream", "downstream", "only_failed")}
                    transitions.clear(c, run, some, by="t", **flags)
                elif what == "mark":
                    transitions.mark(c, run, some, self.dice.choice(["success", "failed", "skipped"]), by="t")
                elif what == "kill":
                    transitions.mark(c, run, some, "failed", by="t", only_unfinished=True)
                elif self.dice.random() < 0.4:
                    transitions.end_run(c, run, why="t")
            except RefusedError:
                return
        self.cleared = True

    # --- to the end ------------------------------------------------------------------------------------------

    def close(self) -> None:
        self.reader.close()

    def calm(self) -> None:
        """No more trouble: everything that can end ends."""
        while len(self.ids) < len(self.dags) * self.runs:
            self.create()
        for node in self.nodes:
            self.zombies += node.held.values()
            node.held.clear()
            with self.engine.begin() as c:
                nodes.uncordon(c, node.name, by="t")
                node.boot += 1
                self._register(c, node)
        for _ in range(2000):
            self.pass_time()
            for node in self.nodes:
                self.heartbeat(node)
            duties = (
                transitions.wake_retries,
                transitions.release_past,
                self._start_runs,
                transitions.admit,
                self._dispatch,
            )
            busy = [bool(self.duty(duty)) for duty in duties]
            self.resend()
            while self.deliver(honest=True):
                pass
            busy += [self.sense(), self.end(batch=100)]
            if not any(busy):
                return
        raise AssertionError("it does not come to an end")

    # --- what must hold --------------------------------------------------------------------------------------

    def check_limits(self) -> None:
        c = self.reader
        rows = c.execute(text(_AT_WORK)).all()
        by_dag: dict[str, list[Any]] = {}
        by_task: dict[tuple[str, str], list[Any]] = {}
        by_pool: dict[str, list[Any]] = {}
        for row in rows:
            by_dag.setdefault(row.dag_id, []).append(row)
            by_task.setdefault((row.dag_id, row.task_id), []).append(row)
            by_pool.setdefault(row.pool, []).append(row)
        for group in by_dag.values():
            assert group[0].max_active_tasks is None or len(group) <= group[0].max_active_tasks
        for group in by_task.values():
            assert group[0].max_active is None or len(group) <= group[0].max_active
        for pool, group in by_pool.items():
            if pool is not None and group[0].slots is not None and len(group) > 1:
                assert sum(row.pool_slots for row in group) <= group[0].slots

    def check_active_runs(self) -> None:
        c = self.reader
        n = dict(c.execute(text("SELECT dag_id, count(*) FROM dag_run WHERE state = 'running' GROUP BY 1")).all())
        for dag_id, dag in self.dags.items():
            assert dag.max_active_runs is None or n.get(dag_id, 0) <= dag.max_active_runs

    def check_counters(self) -> None:
        c = self.reader
        wrong = c.execute(text(_MISCOUNTED)).all()
        assert not wrong

    def check_events(self) -> set[tuple[str, str]]:
        """Every task instance went from state to state as it may; returns the pairs."""
        c = self.reader
        rows = c.execute(text("SELECT subject, state FROM event WHERE kind = 'task' ORDER BY id")).all()
        now: dict[str, str] = {}
        pairs = set()
        for subject, state in rows:
            if subject in now:
                pairs.add((now[subject], state))
            now[subject] = state
        illegal = {(a, b) for a, b in pairs if b not in LEGAL[a]}
        assert not illegal
        return pairs

    def check_over(self) -> None:
        """What is not over waits, all of it, for a run before."""
        c = self.reader
        rows = c.execute(
            text("""SELECT run_id, array_agg(state) AS states, bool_or(past_blocked) AS past FROM task_instance
                    WHERE state NOT IN ('success', 'failed', 'skipped', 'upstream_failed') GROUP BY run_id""")
        ).all()
        for row in rows:
            assert row.past and set(row.states) == {"waiting"}, row

    def seen(self, dag_id: str, n: int) -> tuple[str, States]:
        """What a run has come to."""
        run = {"run": self.ids[dag_id, n]}
        c = self.reader
        state = c.execute(text("SELECT state FROM dag_run WHERE id = :run"), run).scalar_one()
        rows = c.execute(
            text("SELECT task_id, map_index, state FROM task_instance WHERE run_id = :run AND kind <> 'callback'"),
            run,
        )
        return state, {(r.task_id, r.map_index): r.state for r in rows}

    def called_back(self, dag_id: str, n: int) -> dict[str, str]:
        c = self.reader
        rows = c.execute(
            text("SELECT task_id, state FROM task_instance WHERE run_id = :r AND kind = 'callback'"),
            {"r": self.ids[dag_id, n]},
        )
        return {r.task_id: r.state for r in rows}

    # --- inside ----------------------------------------------------------------------------------------------

    def _register(self, c: Connection, node: Node) -> None:
        info = NodeInfo(
            node_id=node.name,
            role="worker",
            pool="p",
            release="r",
            boot_id=str(node.boot),
            slots=2,
            queues=QUEUES[node.name],
        )
        nodes.register(c, info)

    def _took(self, node: Node, claim: Claim) -> None:
        assert all(claim.token not in n.held for n in self.nodes)
        node.held[claim.token] = claim

    def _who(self, run_id: int, task_id: str) -> tuple[TaskSpec, Behaviour, int]:
        ((dag_id, n),) = [key for key, run in self.ids.items() if run == run_id]
        dag = self.dags[dag_id]
        (task,) = [t for t in (*dag.tasks, *dag.callbacks) if t.task_id == task_id]
        return task, self.behaviour[dag_id], n

    def _outcome(self, claim: Claim, *, interrupted: bool = False) -> Outcome:
        task, behaviour, run = self._who(claim.run_id, claim.task_id)
        if interrupted:
            return Outcome(claim.task_instance, claim.token, "interrupted", error="spot")
        outcomes = behaviour.outcomes(run, task, claim.map_index)
        said = outcomes[min(self.used.get(claim.task_instance, 0), len(outcomes) - 1)]
        result: Result = "failed" if said == "fatal" else said  # type: ignore[assignment]
        more: dict[str, Any] = {}
        if said == "success":
            n = behaviour.length(run, claim.task_id)
            url = claim.task_instance % 3 == 0
            more = (
                {"url": f"values/{claim.task_instance}", "length": n}
                if url
                else {"value": json.dumps([0] * n) if n is not None else '{"a": 1}'}
            )
            if claim.map_index < 0:
                more["skip"] = tuple(sorted(behaviour.branches.get(claim.task_id, ())))
        return Outcome(
            claim.task_instance,
            claim.token,
            result,
            retry=said != "fatal",
            delay_seconds=claim.task_instance % 2 * 60.0,
            **more,
        )

    def _finish(self, outcomes: list[Outcome], claims: list[Claim], **taking: Any) -> transitions.Finished:
        with self.engine.begin() as c:
            orders = dict(
                c.execute(
                    text("SELECT lease_token, ordered FROM task_instance WHERE lease_token = ANY (:t)"),
                    {"t": [claim.token for claim in claims]},
                ).all()
            )
            done = transitions.finish(c, outcomes, **taking)
        assert done.accepted == set(orders), "exactly what holds its lease counts"
        results = {o.token: o.result for o in outcomes}
        for claim in claims:
            if claim.token in done.accepted:
                if orders[claim.token] == "restart":
                    self.used[claim.task_instance] = 0
                elif results[claim.token] != "interrupted":
                    self.used[claim.task_instance] = self.used.get(claim.task_instance, 0) + 1
        return done
