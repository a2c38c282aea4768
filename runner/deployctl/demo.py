"""The tour of `make demo`: a fleet from nothing, a real pipeline, a roll and a scale-out under it, and a verdict.

Everything is done by what a user would use: the stacks, `dags push`, `release build`, `roll`, one variable. The
verdict comes from what the tasks themselves wrote down.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from runner.deployctl import environment, output
from runner.deployctl.background import Background
from runner.deployctl.job import CancelledError
from runner.deployctl.local_cloud import LocalCloud
from runner.deployctl.local_view import Display, Step
from runner.localcloud.judge import Verdict, judge
from runner.localcloud.state import ENV
from runner.rollout.fleet import HEARTBEAT_DAG
from runner.rollout.release import BuiltRelease
from runner.settings import SluiceError
from runner.state import nodes, transitions
from runner.state.db import connect

DAG = "temperatures"
POOL = "default"
NEW_WORKER_SECONDS = 120.0  # a new machine boots, registers and takes a task
RUN_SECONDS = 300.0
BEFORE_ROLL = 25  # tasks that have finished when the roll begins: it happens in the middle of the work

# Attempts that the platform itself ended; what an outside KILL ended is not its doing.
_CRASHED = text("""
SELECT count(*) FROM event WHERE run_id = :run AND kind = 'task' AND state = 'ready'
AND (detail LIKE '%worker was restarted%' OR detail LIKE '%was killed by SIGKILL%')
""")

_REPLACED = """
SELECT coalesce(sum(jsonb_array_length(s.args -> 'instances')), 0)
FROM rollout r JOIN rollout_step s ON s.rollout_id = r.id
WHERE r.release = :release AND s.action = 'terminate' AND s.state = 'done'
"""


class Tour:
    """The steps of the demo, each shown while it goes on."""

    def __init__(self, cloud: LocalCloud, say: Display, task_seconds: float) -> None:
        self.cloud = cloud
        self.say = say
        self.task_seconds = task_seconds
        self.began = time.monotonic()
        self.rolled = 0
        self.run_id = 0
        self.engine: Engine

    def take(self) -> Verdict:
        """The whole tour. Raises SluiceError for the first thing that is not as it should be."""
        _, data = self.cloud.launch()
        self.engine = connect(self.cloud.state.database_url)
        try:
            self.push()
            self.start_pipeline()
            pipeline = Background(self.watch_pipeline)
            self.wait_until_busy(pipeline)
            built = self.build()
            # Terraform with the AWS provider takes half a gigabyte: on a laptop not two of it beside a surge of nodes.
            data.wait()
            self.roll(built.id)
            self.scale_out(pipeline)
            pipeline.wait()
            return self.judge()
        finally:
            self.engine.dispose()

    def push(self) -> None:
        with self._step("pipelines", "publishing the bundle of examples") as say:
            self._deployctl("dags", "push", str(_examples()), "--env", ENV)
            say("bundle temperatures is active")

    def start_pipeline(self) -> None:
        """Create the run, with the time each load shall take."""
        with self.engine.begin() as connection:
            run_id = transitions.create_run(
                connection, DAG, dt.datetime.now(dt.UTC), params={"task_seconds": self.task_seconds}
            )
        if run_id is None:
            raise SluiceError(f"DAG {DAG} has a run of this very moment", "run the demo again")
        self.run_id = run_id

    def watch_pipeline(self) -> None:
        """Until the run ends. Raises SluiceError if it fails or takes too long."""
        with self._step("pipeline", "waiting for the first task") as say:
            first = 0.0
            deadline = time.monotonic() + RUN_SECONDS
            while True:
                counts = self._counts()
                total = sum(counts.values())
                done = counts.get("success", 0)
                if not first and done:
                    first = time.monotonic() - self.began
                state = self._one("SELECT state FROM dag_run WHERE id = :run", run=self.run_id)
                if state == "success":
                    say(f"{done} of {total} tasks; the first ended {first:.0f} s after the start; sums agree")
                    return
                if state == "failed":
                    raise SluiceError(f"run {self.run_id} failed: {self._why_failed()}")
                if time.monotonic() > deadline or self.cloud.cancel.wanted:
                    raise SluiceError(f"{done} of {total} tasks after {RUN_SECONDS:g} s", "see `runner run show`")
                running = counts.get("running", 0)
                say(f"{done} of {total} tasks, {running} running", done=False)
                time.sleep(0.25)

    def wait_until_busy(self, pipeline: Background[None]) -> None:
        while self._counts().get("success", 0) < BEFORE_ROLL and not pipeline.done:
            time.sleep(0.1)

    def build(self) -> BuiltRelease:
        """A new release. It differs from the first by its label: that is part of what names it."""
        with self._step("new release", "building") as say:
            built = self.cloud.release(f"demo {time.strftime('%Y-%m-%d %H:%M:%S')}")
            self.cloud.publish(built)
            say(f"{built.id} is published")
        return built

    def roll(self, release: str) -> None:
        """Every worker moved to this release while it works."""
        with self._step("roll", "planning") as say:
            done = threading.Event()
            watcher = threading.Thread(target=self._watch_roll, args=(say, release, done), daemon=True)
            watcher.start()
            try:
                self._deployctl(
                    "roll", "--workers", "--env", ENV, "--release", release, "--batch", "1", "--yes", "--json"
                )
            finally:
                done.set()
                watcher.join()
            self.rolled = self._one(_REPLACED, release=release)
            left = self._one(
                "SELECT count(*) FROM node WHERE role = 'worker' AND state <> 'gone' AND release <> :r", r=release
            )
            if left or not self.rolled:
                raise SluiceError(f"the roll replaced {self.rolled} workers and left {left} on the old release")
            say(f"{self.rolled} workers replaced, now on {release}")

    def scale_out(self, pipeline: Background[None]) -> None:
        """One variable, one more: and the new worker has done a task."""
        group = self._group()
        wanted = group["DesiredCapacity"] + 1
        before = {i["InstanceId"] for i in group["Instances"]}
        with self._step("scale out", f"workers of pool {POOL}: {wanted - 1} → {wanted}") as say:
            results = self.cloud.apply("workers", workers={POOL: wanted})
            changed = [item.address for r in results if r.summary for item in r.summary.items]
            if len(changed) != 1:
                raise SluiceError(f"changing the number of workers touched {', '.join(changed) or 'nothing'}")
            new = next((i["InstanceId"] for i in self._group()["Instances"] if i["InstanceId"] not in before), None)
            say(f"applied: one resource changed; waiting for {new} to take a task", done=False)
            deadline = time.monotonic() + NEW_WORKER_SECONDS
            asked = False
            while not self._one("SELECT count(*) FROM event WHERE node_id = :n AND kind = 'task'", n=new):
                if pipeline.done and not asked:
                    pipeline.wait()
                    asked = self._ask(str(new))  # the machine was slow: there is nothing left to take
                if time.monotonic() > deadline:
                    raise SluiceError(f"{new} took no task within {NEW_WORKER_SECONDS:g} s", "see `deployctl fleet`")
                time.sleep(0.1)
            say(f"{wanted} workers; {new} has taken its first task")

    def judge(self) -> Verdict:
        """What the ledger says of the run. Raises SluiceError if a promise was broken."""
        with self._step("verdict", "reading the ledger") as say:
            with self.engine.begin() as connection:
                expected = connection.execute(
                    text("SELECT run_id, task_id FROM task_instance WHERE run_id = :run"), {"run": self.run_id}
                ).all()
                crashed = connection.execute(_CRASHED, {"run": self.run_id}).scalar_one()
            ledger = Path(self.cloud.state.ledger) / "ledger.jsonl"
            verdict = judge(ledger.read_text().splitlines(), [(row.run_id, row.task_id) for row in expected])
            if not verdict.ok or len(verdict.killed) > crashed:
                raise SluiceError(verdict.summary(), f"see {ledger}")
            say(verdict.summary())
        return verdict

    # Inside

    def _ask(self, node: str) -> bool:
        """A heartbeat run on the queue of this node alone, once it is ready."""
        if self._one("SELECT state FROM node WHERE node_id = :n", n=node) != "ready":
            return False
        with self.engine.begin() as connection:
            transitions.create_run(
                connection, HEARTBEAT_DAG, dt.datetime.now(dt.UTC), run_type="heartbeat", queue=nodes.queue_of(node)
            )
        return True

    def _watch_roll(self, say: Any, release: str, done: threading.Event) -> None:
        statement = """
            SELECT string_agg(r.pool || ': ' || s.action || ' ' || s.seq || '/' || n.n, ', ' ORDER BY r.pool)
            FROM rollout r JOIN rollout_step s ON s.rollout_id = r.id AND s.state = 'running',
            LATERAL (SELECT count(*) AS n FROM rollout_step x WHERE x.rollout_id = r.id) n
            WHERE r.release = :release AND r.state = 'running'"""
        while not done.wait(0.3):
            under_way = self._one(statement, release=release)
            if under_way:
                say(under_way, done=False)

    def _deployctl(self, *words: str) -> None:
        command = [sys.executable, "-m", "runner.deployctl.main", *words]
        done = subprocess.run(command, env=self.cloud.environ(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            said = next((line for line in lines if line.startswith("error:")), lines[-1])
            raise SluiceError(f"deployctl {' '.join(words[:2])} exited with {done.returncode}: {said}")

    def _group(self) -> dict[str, Any]:
        autoscaling = environment.client("autoscaling", self.cloud.environment, self.cloud.environ())
        name = f"sluice-{ENV}-worker-{POOL}"
        found = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
        return dict(found[0])

    def _counts(self) -> dict[str, int]:
        statement = text("SELECT state, count(*) FROM task_instance WHERE run_id = :run GROUP BY state")
        with self.engine.begin() as connection:
            return {row[0]: row[1] for row in connection.execute(statement, {"run": self.run_id})}

    def _why_failed(self) -> str:
        return str(
            self._one(
                "SELECT task_id || ': ' || coalesce(error, '') FROM task_instance WHERE run_id = :run"
                " AND state = 'failed' ORDER BY ended_at LIMIT 1",
                run=self.run_id,
            )
        )

    def _one(self, statement: str, **values: Any) -> Any:
        with self.engine.begin() as connection:
            return connection.execute(text(statement), values).scalar()

    @contextlib.contextmanager
    def _step(self, name: str, what: str) -> Iterator[Any]:
        began = time.monotonic()

        def say(said: str, *, done: bool = True, failed: bool = False) -> None:
            self.say(Step(name, said, done and not failed, failed, time.monotonic() - began))

        say(what, done=False)
        try:
            yield say
        except BaseException as e:
            say(str(e) or type(e).__name__, failed=True)
            raise


def run(task_seconds: float) -> int:
    """The demo; prints its verdict as the last line and returns the exit status."""
    began = time.monotonic()
    interrupted = threading.Event()

    def said(first: bool) -> None:
        interrupted.set()
        output.note(
            "stopping; what runs stays: `make demo` goes on, `make demo-down` removes it" if first else "wait …"
        )

    try:
        with Display() as display:
            cloud = LocalCloud(on_step=display)
            with cloud.cancel.on_signals(said):
                tour = Tour(cloud, display, task_seconds)
                verdict = tour.take()
    except (SluiceError, CancelledError) as e:
        if interrupted.is_set():
            raise KeyboardInterrupt from None
        if isinstance(e, SluiceError) and e.hint:
            output.note(f"hint: {e.hint}")
        output.results.print(f"demo failed: {e}", markup=False)
        return 1
    seconds = time.monotonic() - began
    page = _page(cloud)
    if page:
        output.note(f"the pages are at {page}; `make demo-down` removes everything")
    output.results.print(
        f"demo ok: tasks={verdict.tasks} lost={len(verdict.lost)} killed={len(verdict.killed)} "
        f"overlapped={len(verdict.overlapped)} rolled={tour.rolled} seconds={seconds:.0f}",
        markup=False,
    )
    return 0


def _page(cloud: LocalCloud) -> str:
    for port in sorted((cloud.directory / "nodes").glob("*/web.port")):
        return f"http://127.0.0.1:{port.read_text().strip()}"
    return ""


def _examples() -> Path:
    return Path(__file__).parents[1] / "examples" / DAG
