"""Tasks of a real worker ask for connections and variables."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.fernet import Fernet

from runner.objects import Cipher, Secret, apply
from runner.objects.file import Objects
from runner.storage import Storage
from runner.storage.logs import log_prefix, read_log
from tests.worker.conftest import Fleet

KEY = Fernet.generate_key().decode()
PIPELINE = """
    import json, os, subprocess, threading
    from runner.authoring import dag, task
    from runner.authoring.lookup import NotFoundError, connection, variable

    kept = []

    @task(queue="default")
    def use():
        db = connection("warehouse")
        kept.append(db.password)
        print("the password is", db.password, "at", db.host)
        subprocess.run(["echo", "child", db.url()], check=True)
        lake = connection("lake")
        print("lake", lake.password, lake.host)
        print("of the header:", variable("header").split()[1])
        found = {
            "password": db.password, "host": db.host, "lake": lake.password,
            "limits": variable("limits"), "default": variable("nothing", 7),
            "key": os.environ.get("SLUICE_SECRET_KEY"),
        }
        try:
            connection("nothing")
        except NotFoundError as e:
            found["missing"] = str(e)
        answers = []
        def ask():
            answers.append(ask_in(variable))
        from contextvars import copy_context
        ask_in = lambda f: f("limits")
        threads = [threading.Thread(target=copy_context().run, args=(ask,)) for _ in range(8)]
        for t in threads: t.start()
        for t in threads: t.join()
        found["threads"] = len([a for a in answers if a == found["limits"]])
        with open(os.environ["OUT"] + "/found", "w") as f:
            f.write(json.dumps(found))

    @task
    def later():
        print("kept:", kept)

    @task
    def leak():
        raise RuntimeError("cannot log in with " + connection("warehouse").password)

    @task
    def gone():
        connection("gone")

    @task
    def forked():
        pid = os.fork()
        if pid == 0:
            try:
                variable("limits")
            except RuntimeError as e:
                print("refused:", e, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)

    @dag
    def d():
        use() >> later()
        leak()
        gone()
        forked()
"""


def test_a_task_uses_what_it_asks_for_and_its_log_does_not_show_it(fleet: Fleet) -> None:
    # Given a password by reference, one that is stored, one that is nowhere, and a worker with one slot
    secret = fleet.directory / "password"
    secret.write_text("s3cret/by-reference\n")
    token = fleet.directory / "token"
    token.write_text("t0ken-of-the-api")
    wanted = Objects(
        connection={
            "warehouse": {"type": "postgresql", "host": "db", "login": "etl", "password": f"${{file:{secret}}}"},
            "lake": {"url": Secret("postgresql://reader:hunter22@lake/db")},
            "gone": {"type": "http", "password": "${env:NOT_SET_ANYWHERE}"},
        },
        variable={"limits": {"rows": 5}, "header": f"Bearer ${{file:{token}}}"},
    )
    with fleet.engine.begin() as c:
        apply(wanted, c, Cipher(KEY), source="test.yaml", who="test")
    fleet.push(PIPELINE)
    fleet.worker(slots=1, secret_key=KEY)
    fleet.ready()
    # When its tasks run
    run = fleet.run("d")
    fleet.wait(lambda: fleet.state(run) in ("success", "failed"), 60, dispatching=True)
    # Then they get what they ask for
    found = json.loads((fleet.directory / "out" / "found").read_text())
    assert found["password"] == "s3cret/by-reference" and found["lake"] == "hunter22"
    assert (found["host"], found["limits"], found["default"], found["threads"]) == ("db", {"rows": 5}, 7, 8)
    assert found["key"] is None
    assert "there is no connection 'nothing'" in found["missing"]
    # And neither logs nor errors show it, in whichever form
    storage = Storage.open(fleet.environment["SLUICE_STORAGE_URL"])

    def log(task: str) -> str:
        return read_log(storage, log_prefix("d", run, task, 1))[0]

    # (the log is uploaded after the outcome is known)
    assert fleet.wait(lambda: "lake *** lake" in log("use"), 60)
    assert "the password is *** at db" in log("use")
    assert "child postgresql+psycopg://etl:***@db/" in log("use")
    assert fleet.wait(lambda: "kept: ['***']" in log("later") or "kept: []" in log("later"), 60)
    assert fleet.task(run, "leak", "error") == "RuntimeError: cannot log in with ***"
    assert fleet.wait(lambda: "cannot log in with ***" in log("leak"), 60)
    assert "${env:NOT_SET_ANYWHERE}: it is not in the worker's environment" in fleet.task(run, "gone", "error")
    assert fleet.wait(
        lambda: "refused: variable 'limits' was asked for in a process that the task forked" in log("forked"), 60
    )
    everything = "".join(p.read_text(errors="replace") for p in Path(f"{fleet.directory}/storage").rglob("*.log"))
    for text in ("s3cret", "hunter22", "t0ken", "by-reference"):
        assert text not in everything
    assert "hunter22" not in "".join(p.read_text() for p in fleet.directory.glob("*.log"))


def test_without_the_key_the_task_says_so(fleet: Fleet) -> None:
    wanted = Objects(variable={"limits": Secret("hunter22")})
    with fleet.engine.begin() as c:
        apply(wanted, c, Cipher(KEY), source="test.yaml", who="test")
    fleet.push("""
        from runner.authoring import dag, task
        from runner.authoring.lookup import variable

        @task
        def use():
            variable("limits")

        @dag
        def d():
            use()
    """)
    fleet.worker(slots=1)
    fleet.ready()
    run = fleet.run("d")
    fleet.wait(lambda: fleet.state(run) == "failed", 60, dispatching=True)
    assert "SLUICE_SECRET_KEY is not set" in fleet.task(run, "use", "error")
