from __future__ import annotations

from dataclasses import replace

from runner.authoring.spec import DagSpec, TaskSpec
from runner.bundle.compare import Content, compare
from runner.bundle.wheels import MANIFEST, Manifest, Wheel

FETCH, SEND = TaskSpec(task_id="fetch"), TaskSpec(task_id="send", upstream=("fetch",))
REPORT = DagSpec(dag_id="report", schedule="@daily", tasks=(FETCH, SEND))


def test_nothing_differs() -> None:
    one = Content({"a.py": b"x"}, [REPORT])
    assert not compare(one, one)


def test_files_with_their_lines() -> None:
    before = Content({"a.py": b"one\ntwo\n", "gone.py": b"x", "logo.png": b"\xff\xfe"})
    after = Content({"a.py": b"one\nthree\n", "new.py": b"y\n", "logo.png": b"\xff\xff"})
    found = {f.path: (f.kind, f.diff) for f in compare(before, after).files}
    assert found == {
        "a.py": ("changed", "--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"),
        "gone.py": ("removed", "--- a/gone.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n\\ No newline at end of file\n"),
        "new.py": ("added", "--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+y\n"),
        "logo.png": ("changed", ""),
    }


def test_dags_tasks_and_schedules() -> None:
    # Given a DAG whose schedule, tags and tasks change, one that goes and one that comes
    changed = replace(
        REPORT,
        schedule="@hourly",
        tags=("x",),
        tasks=(replace(FETCH, retries=3), TaskSpec(task_id="mail", upstream=("fetch",))),
    )
    found = compare(
        Content(specs=[REPORT, DagSpec(dag_id="old"), DagSpec(dag_id="same")]),
        Content(specs=[changed, DagSpec(dag_id="new"), DagSpec(dag_id="same")]),
    )
    # Then each is in its place
    assert (found.dags_added, found.dags_removed) == (["new"], ["old"])
    [dag] = found.dags_changed
    assert dag.schedule == {"schedule": ("@daily", "@hourly")}
    assert dag.options == {"tags": ([], ["x"])}
    assert (dag.tasks_added, dag.tasks_removed) == (["mail"], ["send"])
    assert dag.tasks_changed == {"fetch": {"retries": (0, 3)}}


def test_packages_by_version_and_not_as_a_file() -> None:
    def with_packages(*files: str) -> Content:
        return Content({MANIFEST: Manifest("", tuple(Wheel(f, "0", 1) for f in files)).to_bytes()})

    found = compare(
        with_packages("six-1.15.0-py3-none-any.whl", "Old_Lib-1-py3-none-any.whl"),
        with_packages("six-1.16.0-py3-none-any.whl", "new-2-py3-none-any.whl"),
    )
    assert found.packages == {"new": (None, "2"), "old-lib": ("1", None), "six": ("1.15.0", "1.16.0")}
    assert found.files == []
