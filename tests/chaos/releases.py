"""Old and new code in one queue while a roll is under way."""

from __future__ import annotations

from .fleet import Fleet
from .registry import scenario

VERSIONED = '''"""Says which version of this bundle it is, twice: in the module, and in what its tasks return."""

import time

from ledger import recorded

from runner.authoring import Context, dag, task

VERSION = {version!r}


@task
@recorded
def name(before: list[str], context: Context) -> str:
    time.sleep(0.1)
    assert set(before) <= {{VERSION}}, before
    return VERSION


@dag
def versioned() -> None:
    name([name([name([])]) for _ in range(10)])
'''
# run, what its tasks returned (each once), which release's nodes ran them
RETURNED = """
    SELECT x.run_id, array_agg(DISTINCT x.value #>> '{}') AS versions FROM xcom x JOIN dag_run r ON r.id = x.run_id
    WHERE r.dag_id = 'versioned' GROUP BY x.run_id"""
RAN = """
    SELECT r.bundle_version, n.release FROM event e JOIN dag_run r ON r.id = e.run_id JOIN node n USING (node_id)
    WHERE e.kind = 'task' AND e.state = 'running' AND r.dag_id = 'versioned' GROUP BY 1, 2"""


@scenario("old-and-new", 18, takes=20)
def old_and_new(f: Fleet) -> None:
    """Two bundle versions in one queue, a node of the old release beside one of the new, and a roll between them."""
    folder = f.pipelines()

    def publish(version: str) -> None:
        (folder / "versioned.py").write_text(VERSIONED.format(version=version))
        f.publish(folder)

    publish("old")
    f.registered(f.spawn("scheduler", "s1"))
    f.registered(f.spawn("worker", "old-1", SLUICE_RELEASE="old"))
    wanted: dict[int, str] = {}

    def run(version: str) -> None:
        publish(version)
        wanted.update(dict.fromkeys(f.run("versioned", 2), version))

    for i in f.rounds(1):
        run("old")
        f.registered(f.spawn("worker", f"new-{i + 1}", SLUICE_RELEASE=f"new-{i + 1}"))

        def mixed(round_: int = i) -> bool:
            """Both versions have run on both releases; until then there is more to run."""
            if f.over():
                run("old")
                run("new")
            current = "old" if round_ == 0 else f"new-{round_}"
            ran = [row.release for row in f.all(RAN)]
            return ran.count(current) >= 2 and ran.count(f"new-{round_ + 1}") >= 2

        run("new")
        f.wait(mixed, "both releases run both versions")
        run("new")
        leaving = f.workers()[0]
        f.cordon(leaving.node_id)
        f.wait(lambda n=leaving.node_id: f.state(n) == "drained", "the old node is drained")
        f.terminate(leaving)
        f.wait(f.over, "all runs end")
    found = {row.run_id: row.versions for row in f.all(RETURNED)}
    wrong = {run: found.get(run) for run, version in wanted.items() if found.get(run) != [version]}
    if wrong:
        f.problems.append(f"runs whose tasks were not all of the version that they began with: {wrong}")
