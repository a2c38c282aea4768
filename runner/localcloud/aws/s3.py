"""Conditional writes with one winner.

Stock moto 5.2.1 checks `If-None-Match` and `If-Match` and then writes, with other threads in between: two
of them can both create a state lock. AWS documents that exactly one concurrent conditional write succeeds.
"""

from __future__ import annotations

import functools
import threading

from moto.s3.responses import S3Response

WRITES = ("put_object", "copy_object", "delete_object", "_key_response_post")

_lock = threading.RLock()


def install() -> None:
    for name in WRITES:
        setattr(S3Response, name, one_at_a_time(getattr(S3Response, name)))


def one_at_a_time(write):
    @functools.wraps(write)
    def wrapped(*args, **kwargs):
        with _lock:
            return write(*args, **kwargs)

    return wrapped
