"""Carries a roll out: batch by batch, the hosts of a batch side by side, each step written down before and after.

On each host: its workers are told to take no more tasks, and waited for until they have none, twice in a row; only
then is its unit stopped. A first failure lets the hosts of its batch come to an end and stops the roll there.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from runner.rollout.celery_fleet import hosts
from runner.rollout.celery_fleet.control import Control
from runner.rollout.celery_fleet.hosts import HostsError, each
from runner.rollout.celery_fleet.journal import Journal
from runner.rollout.celery_fleet.plan import Action, Target, actions, batches, remaining, text
from runner.rollout.celery_fleet.spec import FleetSpec
from runner.rollout.celery_fleet.ssh import Shell
from runner.settings import RefusedError, SluiceError

_POLL_SECONDS = 0.5
_SILENT_SECONDS = 15.0  # after its stop a worker may still answer for a moment
T = TypeVar("T")
NOT_BEGUN = "not begun"
CALLED_OFF = "its drain was called off: it takes tasks again"
_DEADLINE_HINT = "roll.drain_deadline gives tasks longer; the same command goes on"


@dataclass(frozen=True)
class Event:
    """A step of one host, for whoever shows the progress. state: running, done or failed."""

    host: str
    action: Action
    state: str
    text: str = ""


class Stopped(SluiceError):
    """The roll was told to stop: this host takes tasks as before."""


class Roll:
    """One roll of a fleet. `stop` is set from another thread to end it: drains are called off, other steps end."""

    def __init__(
        self,
        spec: FleetSpec,
        targets: Sequence[Target],
        release: str,
        journal: Journal,
        *,
        shell: Shell,
        on_event: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        self.spec = spec
        self.targets = list(targets)
        self.release = release
        self.journal = journal
        self.shell = shell
        self.stop = threading.Event()
        self._on_event = on_event

    def left(self) -> dict[str, list[Action]]:
        """Host → what is left to be done on it. Raises HostsError, exit code 3, if a worker is silent that should not.

        A roll begins only where every worker answers: of one that is silent nobody knows what it does.
        """

        def look(target: Target) -> list[Action]:
            record = self.journal.of(target.name)
            answering = self._ask(target, lambda c: c.answering())
            todo = remaining(actions(self.spec), record, answers=bool(answering))
            silent = [w for w in target.workers if w not in answering]
            if silent and todo[:1] == ["drain"] and not record.stopping:
                raise RefusedError(
                    f"{', '.join(silent)} {'does' if len(silent) == 1 else 'do'} not answer",
                    "start what is not running, or correct `workers`: of a silent worker nobody knows what it does",
                )
            return todo

        found, failed = each(self.targets, look)
        if failed:
            raise HostsError("nothing was done", {h: "ready" for h in found}, failed)
        return found

    def run(self, left: Mapping[str, Sequence[Action]]) -> dict[str, str]:
        """Do all that is left; host → how it went. Raises HostsError if it did not go well everywhere."""
        for target in self.targets:  # also those that come last: what joins the group later is known as new
            if target.name not in self.journal.hosts:
                self.journal.mark(target.name, None, over=False)
        results = {t.name: "was done before" for t in self.targets if not left[t.name]}
        todo = [t for t in self.targets if left[t.name]]
        for batch in batches(self.spec, todo):
            if self.stop.is_set():
                break
            done, failed = each(batch, lambda t: self._host(t, left[t.name]))
            results |= done | {h: e.message for h, e in failed.items()}
            real = {h: e for h, e in failed.items() if not isinstance(e, Stopped)}
            if real:
                results |= {t.name: NOT_BEGUN for t in todo if t.name not in results}
                raise HostsError("the roll stopped", results, real)
        if self.stop.is_set():
            return results | {t.name: NOT_BEGUN for t in todo if t.name not in results}
        self.journal.close()
        return results

    def take_back(self) -> dict[str, str]:
        """Leave every host that is in the middle of something healthy, and forget the roll; host → how it went.

        Workers that were told to stop taking tasks take them again; what was stopped is started. Raises HostsError.
        """

        def back(target: Target) -> str:
            record = self.journal.of(target.name)
            if record.action is None or record.result:
                return record.result or "was not begun"
            if self._ask(target, lambda c: c.answering()):
                self._ask(target, lambda c: c.consume(record.queues))
            elif self.spec.commands is not None:
                self._step(target, "start")
            else:
                return "terminated; its group starts another"
            self._step(target, "back")
            return "takes tasks again"

        results, failed = each(self.targets, back)
        if failed:
            raise HostsError("not all hosts are back", results, failed)
        self.journal.close()
        return results

    def _host(self, target: Target, todo: Sequence[Action]) -> str:
        began = time.monotonic()
        for action in todo:
            if self.stop.is_set() and action == "drain":
                raise Stopped(NOT_BEGUN)
            self._step(target, action)
        result = f"rolled in {time.monotonic() - began:.0f} s"
        self.journal.mark(target.name, todo[-1], over=True, result=result)
        return result

    def _step(self, target: Target, action: Action) -> None:
        self._on_event(Event(target.name, action, "running"))
        self.journal.mark(target.name, action, over=False)
        try:
            if action == "drain":
                said = self._drain(target)
            elif action == "terminate":
                said = self._terminate(target)
            elif action == "back":
                said = self._back(target)
            else:
                self._command(target, action)
                said = ""
        except SluiceError as e:
            self._on_event(Event(target.name, action, "failed", e.message))
            raise
        self.journal.mark(target.name, action, over=True)
        self._on_event(Event(target.name, action, "done", said))

    # --- the steps ------------------------------------------------------------------------------------------------

    def _drain(self, target: Target) -> str:
        """No worker consumes and none has a task, twice in a row. One that was stopped before is not waited for."""
        if self.journal.of(target.name).stopping:
            answering = self._ask(target, lambda c: c.answering())
            if not answering:
                return "stopped before"
            target = replace(target, workers=tuple(w for w in target.workers if w in answering))
        with self._control(target) as control:
            return self._wait_idle(target, control)

    def _wait_idle(self, target: Target, control: Control) -> str:
        began = time.monotonic()
        late = False
        idle_since: float | None = None
        shown = ""
        while True:
            if self.stop.is_set():
                self._call_off(target)
                raise Stopped(CALLED_OFF)
            try:
                consumed, at_hand = self._look(target, control)
                said = _summary(target, consumed, at_hand)
            except SluiceError as e:  # the broker may come back
                consumed, at_hand, said = {}, {}, e.message
            waited = time.monotonic() - began
            if not said:
                if idle_since is None:
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since >= self.spec.roll.idle_gap:
                    return f"idle after {waited:.0f} s"
            else:
                idle_since = None
            if waited > self.spec.roll.drain_deadline and said:
                if self.spec.roll.on_deadline == "abort":
                    self._call_off(target)
                    raise SluiceError(f"not idle within {self.spec.roll.drain_deadline:g} s: {said}", _DEADLINE_HINT)
                said = said if late else f"past its deadline, still waiting: {said}"
                late = True
            if said and said != shown:
                shown = said
                self._on_event(Event(target.name, "drain", "running", said))
            self.stop.wait(_POLL_SECONDS)

    def _look(self, target: Target, control: Control) -> tuple[dict[str, list[str]], dict[str, int]]:
        """What the workers consume and have at hand; those that consume are told to stop, again after a restart."""
        consumed = control.queues(target.workers)
        if any(consumed.values()):
            self.journal.queues(target.name, consumed)
            control.cancel(consumed)
        return consumed, control.at_hand(target.workers, scheduled=self.spec.replaces)

    def _call_off(self, target: Target) -> None:
        queues = self.journal.of(target.name).queues
        self._ask(target, lambda c: c.consume(queues))
        self.journal.mark(target.name, None, over=False)

    def _command(self, target: Target, action: Action) -> None:
        self.shell.run(target, text(self.spec, target, action, self.release), self.spec.roll.command_timeout)
        if action != "stop":
            return
        end = time.monotonic() + _SILENT_SECONDS
        while answering := self._ask(target, lambda c: c.answering()):
            if time.monotonic() > end:
                raise SluiceError(
                    f"{', '.join(sorted(answering))} still answers after `stop`", "does the command stop all workers?"
                )
            time.sleep(_POLL_SECONDS)

    def _terminate(self, target: Target) -> str:
        from runner.rollout.cloud import Cloud

        assert self.spec.autoscaling_group is not None
        cloud = Cloud(self.spec.autoscaling_group.region)
        cloud.terminate(target.instance, decrement=False)
        end = time.monotonic() + self.spec.roll.command_timeout
        while not cloud.dead(target.instance):
            if time.monotonic() > end:
                raise SluiceError(f"{target.instance} is not terminated yet", "is a lifecycle hook waiting?")
            time.sleep(_POLL_SECONDS)
        return "terminated"

    def _back(self, target: Target) -> str:
        began = time.monotonic()
        while True:
            missing = self._missing(target)
            waited = time.monotonic() - began
            if not missing:
                return f"after {waited:.0f} s"
            if waited > self.spec.roll.back_timeout:
                raise SluiceError(
                    f"not back within {self.spec.roll.back_timeout:g} s: {missing}",
                    "look at the worker's log; the same command goes on from here",
                )
            time.sleep(_POLL_SECONDS)

    def _missing(self, target: Target) -> str:
        """Who does not consume yet; empty once all do."""
        if not self.spec.replaces:
            before = self.journal.of(target.name).queues
            consumed = self._queues(target)
            deaf = [w for w in target.workers if not consumed.get(w) or set(before.get(w, ())) - set(consumed[w])]
            return (
                f"{', '.join(deaf)} {'does' if len(deaf) == 1 else 'do'} not take tasks from all queues" if deaf else ""
            )
        gone = sum(r.action == "back" or (r.action == "terminate" and r.over) for r in self.journal.hosts.values())
        new = hosts.new_instances(self.spec, list(self.journal.hosts))
        ready = 0
        for other in new:
            consumed = self._queues(other)
            ready += all(consumed.get(w) for w in other.workers)
        return "" if ready >= gone else f"{ready} of {gone} new instances take tasks"

    def _queues(self, target: Target) -> dict[str, list[str]]:
        return self._ask(target, lambda c: c.queues(target.workers))

    def _ask(self, target: Target, ask: Callable[[Control], T]) -> T:
        with self._control(target) as control:
            return ask(control)

    @contextlib.contextmanager
    def _control(self, target: Target) -> Iterator[Control]:
        control = Control(self.spec.broker, target.workers)
        try:
            yield control
        finally:
            control.close()


def _summary(target: Target, consumed: Mapping[str, Sequence[str]], at_hand: Mapping[str, int]) -> str:
    """Why a host is not idle; empty if it is. Pure."""
    silent = [w for w in target.workers if w not in at_hand or w not in consumed]
    if silent:
        return f"{', '.join(silent)} {'does' if len(silent) == 1 else 'do'} not answer"
    tasks = sum(at_hand.values())
    if tasks:
        return f"{tasks} task{'s' * (tasks != 1)} left"
    return "told to take no more tasks" if any(consumed.values()) else ""
