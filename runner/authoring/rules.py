"""Trigger rules: what the ends of its upstream tasks mean for a task."""

from __future__ import annotations

from typing import Literal

Decision = Literal["run", "skip", "fail", "wait"]

TRIGGER_RULES = (
    "all_success",
    "all_failed",
    "all_done",
    "all_skipped",
    "one_success",
    "one_failed",
    "one_done",
    "none_failed",
    "none_skipped",
    "none_failed_min_one_success",
    "always",
)
# Those that start a task only after all its upstream tasks: what it is mapped over is there then.
MAPPED_RULES = ("all_success", "all_done", "none_failed", "none_skipped", "none_failed_min_one_success")


def decide(rule: str, *, total: int, success: int, failed: int, skipped: int) -> Decision:
    """What becomes of a task with `total` upstream tasks, of which these have ended.

    `failed` counts failed and upstream_failed alike. "skip" and "fail" (the task becomes upstream_failed) are
    final, "wait" is not. A rule is decided as soon as no later end can change it. Raises ValueError for an
    unknown rule.
    """
    if rule not in TRIGGER_RULES:
        raise ValueError(f"unknown trigger rule {rule!r}; one of {', '.join(TRIGGER_RULES)}")
    done = success + failed + skipped
    if rule == "always" or total == 0:
        return "run"
    # What ends the waiting early: the first upstream that makes the rule true, or false for good.
    if rule == "one_success" and success:
        return "run"
    if rule == "one_failed" and failed:
        return "run"
    if rule == "one_done" and success + failed:
        return "run"
    if rule in ("all_success", "none_failed", "none_failed_min_one_success") and failed:
        return "fail"
    if (rule == "none_skipped" and skipped) or (rule == "all_failed" and success + skipped):
        return "skip"
    if rule == "all_skipped" and success + failed:
        return "skip"
    if done < total:
        return "wait"
    if rule == "one_success":
        return "fail" if failed else "skip"
    if rule in ("one_failed", "one_done") or (rule == "none_failed_min_one_success" and not success):
        return "skip"
    if rule == "all_success" and skipped:  # only now: a failure that came later would have decided otherwise
        return "skip"
    return "run"
