"""Versions of pipeline code: build, validate, publish, fetch, load."""

from runner.bundle.build import Archive, build
from runner.bundle.environment import interpreter
from runner.bundle.fetch import BUILTIN, fetch
from runner.bundle.load import load
from runner.bundle.problem import BundleError, Problem
from runner.bundle.publish import Published, publish
from runner.bundle.validate import validate

__all__ = [
    "BUILTIN",
    "Archive",
    "BundleError",
    "Problem",
    "Published",
    "build",
    "fetch",
    "interpreter",
    "load",
    "publish",
    "validate",
]
