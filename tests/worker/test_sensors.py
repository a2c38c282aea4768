"""A sensor of the author's own, in a real worker: it holds no slot between its calls, and gives up in time."""

from __future__ import annotations

from runner.state import transitions
from tests.worker.conftest import Fleet


def wake(fleet: Fleet) -> None:
    with fleet.engine.begin() as c:
        transitions.wake_retries(c)


def test_a_poked_sensor_waits_without_a_slot_until_it_is_true(fleet: Fleet) -> None:
    fleet.push("""
        import os, pathlib
        from datetime import timedelta
        from runner.authoring import dag, task

        flag = pathlib.Path(os.environ.get("OUT", "")) / "flag"

        @task.sensor(poke_interval=timedelta(seconds=0.5), timeout=timedelta(hours=1))
        def there(context):
            print("since", context.waiting_since)
            return str(flag) if flag.exists() and context.waiting_since else False

        @task.sensor(poke_interval=timedelta(seconds=0.5), timeout=timedelta(seconds=1))
        def never():
            return False

        @task
        def use(path):
            return path

        @dag
        def d():
            use(there())
            never()
        """)
    fleet.worker(slots=2)
    fleet.ready()
    run = fleet.run("d")
    # Given both were looked at, neither holds a slot
    fleet.wait(lambda: fleet.task(run, "there") == "up_for_retry")
    first = fleet.task(run, "there", "waiting_since")
    assert first is not None

    # When it has waited for long enough, the one that waits in vain has failed, for good
    def ended() -> bool:
        wake(fleet)
        return bool(fleet.task(run, "never") == "failed")

    fleet.wait(ended, 60, dispatching=True)
    assert "waited 0:00:01 in vain" in fleet.task(run, "never", "error")
    # And the other one goes on, counting from its first look, until it is there
    assert fleet.task(run, "there", "waiting_since") == first
    (fleet.directory / "out" / "flag").touch()

    def used() -> bool:
        wake(fleet)
        return bool(fleet.task(run, "use") == "success")

    fleet.wait(used, 60, dispatching=True)
    assert fleet.task(run, "there", "tries") == 1
    assert fleet.task(run, "there", "attempt") >= 2
    assert fleet.task(run, "there", "waiting_since") is None
