"""Waiting sensors: one loop a scheduler, one file for each kind of thing that is waited for."""

from runner.scheduler.sense.loop import Sensing

__all__ = ["Sensing"]
