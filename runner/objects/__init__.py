"""Connections, pools and variables as code: one YAML file an environment, applied as a whole; secrets by reference."""

from runner.objects.file import FileError, read
from runner.objects.plan import Change, apply, diff, rotate
from runner.objects.references import LookupFailed, Resolver
from runner.objects.secrets import Cipher, Secret, fields

__all__ = [
    "Change",
    "Cipher",
    "FileError",
    "LookupFailed",
    "Resolver",
    "Secret",
    "apply",
    "diff",
    "fields",
    "read",
    "rotate",
]
