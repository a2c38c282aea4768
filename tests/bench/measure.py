"""Figures from samples, and what processes use."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import psutil


def load() -> float:
    """The machine's load, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def line(case: str, unit: str, samples: Sequence[float], load: float, **more: Any) -> dict[str, Any]:
    """What is printed of a case. `load` is the one before its first sample."""
    return {
        "case": case,
        "unit": unit,
        "median": short(statistics.median(samples)),
        "min": short(min(samples)),
        "max": short(max(samples)),
        "n": len(samples),
        "load": load,
        **more,
    }


def short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def cpu_seconds(roots: Iterable[int]) -> float:
    """User and system time of these processes and their descendants, those that ended and were reaped included."""
    total = 0.0
    for process in _family(roots):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # its parent counts it now, in the next reading
        total += times.user + times.system + times.children_user + times.children_system
    return total


def pss_mib(roots: Iterable[int]) -> float:
    """Memory of these processes and their descendants; what several share is counted once."""
    total = 0
    for process in _family(roots):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def _family(roots: Iterable[int]) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for pid in roots:
        try:
            root = psutil.Process(pid)
            found += [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    return found
