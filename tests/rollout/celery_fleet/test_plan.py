"""The fleet's file and the plan: one line for each mistake, and each step as data."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.rollout.celery_fleet.journal import Journal, alone, journal_of
from runner.rollout.celery_fleet.plan import Action, Record, Target, actions, plan, remaining
from runner.rollout.celery_fleet.spec import FleetSpec, RollOptions, SpecError, batch_size, load
from runner.settings import RefusedError, UsageError

WHOLE = """\
fleet: shop
broker:
  url: redis://broker:6379/0
hosts:
  - web-1
  - {address: web-2, workers: ["big@{hostname}"]}
commands:
  stop: systemctl stop shop
  update: pip install shop=={release} && awk '{print $1}'
  start: systemctl start shop
roll:
  batch: 50%
  drain_deadline: 10m
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "shop.yaml"


def read(file: Path, text: str = WHOLE) -> FleetSpec:
    file.write_text(text)
    return load(file)


def test_a_whole_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER", "redis://elsewhere:6379/0")
    spec = read(file, WHOLE.replace("redis://broker:6379/0", "${BROKER}"))
    assert spec.broker.url == "redis://elsewhere:6379/0"
    assert [h.address for h in spec.hosts] == ["web-1", "web-2"]
    assert spec.roll.drain_deadline == 600 and spec.workers == ("celery@{hostname}",)


def test_the_file_in_the_documentation_is_a_whole_one(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_BROKER", "redis://broker")
    page = (Path(__file__).parents[3] / "docs" / "celery-fleets.md").read_text()
    whole, group = [block.partition("```")[0] for block in page.split("```yaml\n")[1:]]
    spec = read(file, whole)
    assert spec.commands and spec.commands.check and spec.roll == RollOptions()
    hosts = whole[whole.index("\nhosts:") : whole.index("\nworkers:")]
    in_group = read(file, whole.replace(hosts, f"\n{group.strip()}")).autoscaling_group
    assert in_group is not None and in_group.strategy == "in-place"


@pytest.mark.parametrize(
    ("wrong", "right", "line", "says"),
    [
        ("fleet: shop\n", "", 1, "fleet: is missing"),
        ("url: redis", "uri: redis", 2, "broker.url: is missing"),
        ("redis://broker", "broker", 3, "broker.url: a broker's URL begins like redis:// or amqp://"),
        ("redis://broker", "redis://$NOWHERE", 3, "broker.url: the environment variable NOWHERE is not set"),
        ("{address: web-2", "{adress: web-2", 6, "hosts.1.adress: there is no such field"),
        ("  - web-1\n", "  - web-1\n  - web-1\n", 1, "the host web-1 is named twice"),
        ("batch: 50%", "batch: 0", 12, "roll.batch: 0 is no batch"),
        ("batch: 50%", "batch: many", 12, "roll.batch: 'many' is no batch"),
        ("10m", "soon", 13, "roll.drain_deadline: 'soon' is no duration: write 90s, 10m or 2h"),
        ("  stop: systemctl stop shop\n", "", 7, "commands.stop: is missing"),
        ("roll:", "ssh: {port: 70000}\nroll:", 11, "ssh.port: Input should be less than or equal to 65535"),
        ("fleet: shop", "fleet: a b", 1, "fleet: String should match pattern"),
        ("fleet: shop\n", "fleet: [\n", 3, "not YAML"),
        ("big@{hostname}", "big@{hostame}", None, "{hostame}; there are {host}, {hostname}, {instance}, {release}"),
        ("fleet: shop\n", "fleet: shop\nworkers: [big]\n", 2, "workers: 'big' is no name of a Celery worker"),
    ],
)
def test_each_mistake_is_a_line_with_its_place(file: Path, wrong: str, right: str, line: int | None, says: str) -> None:
    assert wrong in WHOLE
    with pytest.raises(SpecError) as e:
        read(file, WHOLE.replace(wrong, right, 1))
    found = [p for p in e.value.problems if says in p]
    assert found, e.value.problems
    assert line is None or found[0].startswith(f"{file}:{line}: "), found
    assert e.value.exit_code == 2 and all("\n" not in p for p in e.value.problems)


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    with pytest.raises(SpecError) as e:
        read(file, WHOLE.replace("batch: 50%", "batch: 0").replace("10m", "soon"))
    assert len(e.value.problems) == 2 and "(and 1 more)" in e.value.message


def test_what_cannot_be_read(file: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load(file)
    for text in ("", "- 1\n"):
        with pytest.raises(SpecError, match="it begins with `fleet: NAME`"):
            read(file, text)


@pytest.mark.parametrize(
    ("batch", "hosts", "size"), [(1, 9, 1), ("3", 9, 3), ("50%", 9, 4), ("10%", 3, 1), ("100%", 5, 5)]
)
def test_a_batch_is_a_number_or_a_share(batch: int | str, hosts: int, size: int) -> None:
    assert batch_size(batch, hosts) == size


def test_the_plan_is_every_command_in_its_order(file: Path) -> None:
    spec = read(file, WHOLE.replace("50%", "1"))
    targets = [Target(n, n, 22, workers=(f"celery@{n}",)) for n in ("web-1", "web-2")]
    steps = plan(spec, targets, "2; rm -rf /", {t.name: actions(spec) for t in targets})
    assert [(s.batch, s.host, s.action) for s in steps] == [
        (batch, host, action)
        for batch, host in ((1, "web-1"), (2, "web-2"))
        for action in ("drain", "stop", "update", "start", "back")
    ]
    # Values are quoted for the shell, and braces of the command's own stay
    assert steps[2].text == "pip install shop=='2; rm -rf /' && awk '{print $1}'"
    assert "within 600 s" in steps[0].text and "celery@web-1" in steps[0].text
    # What is done needs no step, and the batches close up
    left: dict[str, list[Action]] = {"web-1": [], "web-2": ["start", "back"]}
    assert [(s.batch, s.action) for s in plan(spec, targets, "2", left)] == [(1, "start"), (1, "back")]


ORDER: tuple[Action, ...] = ("drain", "stop", "update", "start", "back")


@pytest.mark.parametrize(
    ("record", "answers", "left"),
    [
        (Record(), True, ORDER),
        (Record("drain", True), True, ORDER),  # nobody knows what it has taken since
        (Record("stop", False), False, ORDER[1:]),
        (Record("stop", False), True, ORDER),
        (Record("stop", True), False, ORDER[2:]),
        (Record("update", True), True, ORDER),  # somebody has started it
        (Record("update", False), False, ORDER[2:]),
        (Record("start", False), True, ORDER[3:]),
        (Record("back", False), True, ORDER[4:]),
        (Record("back", True), True, ()),
    ],
)
def test_what_is_left_after_a_roll_that_was_cut_off(record: Record, answers: bool, left: tuple[Action, ...]) -> None:
    assert tuple(remaining(ORDER, record, answers=answers)) == left


def test_the_journal_is_read_back_as_it_was_written(file: Path) -> None:
    file.touch()
    journal = Journal(journal_of(file))
    assert not journal.open
    journal.begin("2", "me@here")
    journal.queues("web-1", {"a@web-1": ["celery"], "b@web-1": []})
    journal.mark("web-1", "stop", over=False)
    journal.mark("web-1", "update", over=True)
    again = Journal(journal_of(file))
    assert again.open and (again.release, again.by) == ("2", "me@here")
    assert again.of("web-1") == Record("update", True, {"a@web-1": ["celery"]}, stopping=True)
    again.close()
    assert not Journal(journal_of(file)).open


def test_a_second_roll_of_a_fleet_is_refused(file: Path) -> None:
    file.touch()
    with alone(file), pytest.raises(RefusedError, match="is being rolled by"), alone(file):
        pass
    with alone(file):
        pass
