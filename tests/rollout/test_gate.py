"""The gate: the exact test against its definition, and what an operator adds to it."""

from __future__ import annotations

import http.server
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.rollout import checks, gate
from runner.rollout.gate import Tally, failure_error, fisher


def by_definition(new: Tally, old: Tally) -> float:
    total, failures = new.ended + old.ended, new.failed + old.failed
    ways = sum(
        math.comb(failures, k) * math.comb(total - failures, new.ended - k)
        for k in range(new.failed, min(failures, new.ended) + 1)
    )
    return ways / math.comb(total, new.ended)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.data())
def test_the_exact_test_is_what_its_definition_says(new_ended: int, old_ended: int, data: st.DataObject) -> None:
    new = Tally(new_ended, data.draw(st.integers(0, new_ended)))
    old = Tally(old_ended, data.draw(st.integers(0, old_ended)))
    assert fisher(new, old) == pytest.approx(by_definition(new, old), abs=1e-9)


def test_a_known_table() -> None:
    # The lady tasting tea: 3 of 4 cups right by chance.
    assert fisher(Tally(4, 3), Tally(4, 1)) == pytest.approx(17 / 70)


def test_millions_of_tasks_take_no_time() -> None:
    began = time.monotonic()
    assert fisher(Tally(200_000, 200), Tally(3_000_000, 3_000)) == pytest.approx(0.5, abs=0.05)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("new", "old", "final", "fails"),
    [
        (Tally(40, 30), Tally(400, 1), True, True),
        (Tally(40, 30), Tally(400, 1), False, True),  # beyond doubt: the rest of the bake is spared
        (Tally(40, 4), Tally(400, 10), True, False),  # chance does that
        (Tally(40, 5), Tally(400, 8), True, True),
        (Tally(40, 5), Tally(400, 8), False, False),  # not before the bake is over
        (Tally(19, 19), Tally(400, 0), True, False),  # too few to say anything
        (Tally(40, 0), Tally(400, 400), True, False),  # better than before
        (Tally(40, 40), Tally(0, 0), True, False),  # nothing to compare with
    ],
)
def test_when_a_release_fails_too_many_tasks(new: Tally, old: Tally, final: bool, fails: bool) -> None:
    error = failure_error(new, old, final=final)
    assert bool(error) == fails
    if error:
        assert f"{new.failed} of {new.ended} tasks failed on the new release" in error and "p = " in error


def test_a_release_that_is_no_worse_is_seldom_taken_for_worse() -> None:
    import random

    rng = random.Random(1)
    alarms = 0
    for _ in range(500):
        new, old = (Tally(n, sum(rng.random() < 0.05 for _ in range(n))) for n in (60, 300))
        alarms += failure_error(new, old, final=True) is not None
    assert alarms / 500 <= gate.ALPHA


def test_commands_are_run_without_a_shell_and_say_why() -> None:
    env = {"SLUICE_ROLL_RELEASE": "new"}
    assert checks.failing(["true", """sh -c '[ "$SLUICE_ROLL_RELEASE" = new ]'"""], [], env) == []
    said = checks.failing(["sh -c 'echo late >&2; exit 3'", "no-such-program-here", "echo '"], [], env)
    assert said[0] == "`sh -c 'echo late >&2; exit 3'` exited with 3: late"
    assert "cannot be run" in said[1] and "cannot be run" in said[2]


def test_a_command_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "COMMAND_SECONDS", 0.2)
    assert checks.failing(["sleep 60"], [], {}) == ["`sleep 60` did not end within 0.2 s"]


@pytest.fixture
def prometheus() -> Iterator[str]:
    """What Prometheus answers to a few queries."""
    answers = {
        "one": {"resultType": "vector", "result": [{"metric": {}, "value": [0, "1"]}]},
        "two": {"resultType": "vector", "result": [{"value": [0, "1"]}, {"value": [0, "0"]}]},
        "none": {"resultType": "vector", "result": []},
        "scalar": {"resultType": "scalar", "result": [0, "0"]},
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)["query"][0]
            self.send_response(200 if query in answers else 400)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "success", "data": answers.get(query)}).encode())

        log_message: Callable[..., None] = lambda *_: None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_queries(prometheus: str) -> None:
    assert checks.failing([], [(prometheus, "one")], {}) == []
    asked = [(prometheus, q) for q in ("two", "none", "scalar", "nonsense")]
    said = checks.failing([], [*asked, ("http://127.0.0.1:9", "up")], {})
    assert said[:3] == ["`two` is 0 for 1 of 2 series", "`none` returns nothing", "`scalar` is 0 for 1 of 1 series"]
    assert "answers 400" in said[3] and "does not answer" in said[4]
