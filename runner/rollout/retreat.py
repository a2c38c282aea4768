"""The way back of a rollout that was stopped: a pure function of what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.rollout.plan import Step

Made = tuple[Step, Mapping[str, Any]]  # a step with what it remembered


def way_back(done: Sequence[Made], current: Made | None, *, failed: bool, drain_seconds: float) -> list[Step]:
    """The steps that leave the pool healthy after a failed gate or an abort.

    done: the steps that were done; current: the one that failed or was under way. failed: the release itself is no
    good, so new instances take the old one again; otherwise only if no new one is left.
    """
    tags = [s.args for s, _ in [*done, *([current] if current else [])] if s.action == "tag" and s.args["before"]]
    back = {"group": tags[0]["group"], "release": tags[0]["before"], "before": tags[0]["release"]} if tags else None
    if back and failed and tags[0].get("template_before"):
        back["template"] = tags[0]["template_before"]
    retreat = _retreat(done, current, drain_seconds, failed and back is not None)
    if failed:
        return [*([Step("tag", back)] if back else []), *retreat]
    return [*retreat, *([Step("untag", back)] if back else [])]


def passed_batches(done: Sequence[Step], current: Step | None) -> bool:
    """Whether earlier batches have replaced something: that is for another rollout to take back."""
    batch = current.args.get("batch") if current else None
    return any(s.action in ("terminate", "order") and s.args.get("batch") != batch for s in done)


def _retreat(done: Sequence[Made], current: Made | None, drain_seconds: float, failed: bool) -> list[Step]:
    if current is None:
        return []
    number = current[0].args.get("batch")
    same = [(s, d) for s, d in [*done, current] if number is not None and s.args.get("batch") == number]
    made = {s.action: (s, d) for s, d in same}
    if "order" in made:
        step, memory = made["order"]
        if not failed or not memory.get("before"):
            return []  # what a node was told it will do; both releases are good
        undo = {**step.args, "releases": dict(memory["before"])}
        return [Step("order", undo), Step("relieve", undo)]
    if "surge" not in made or "desired" not in made["surge"][1]:
        return []
    step, memory = made["surge"]
    args = {
        "group": step.args["group"],
        "keep": memory["before"],
        "desired": memory["desired"],
        "old": next((s.args["instances"] for s, _ in same if s.action in ("drain", "terminate")), []),
        "seconds": drain_seconds,
    }
    if failed:
        args["bad"] = next((s.args["release"] for s, _ in same if s.action in ("wait_ready", "heartbeat", "bake")), "")
    return [Step("retreat", args)]
