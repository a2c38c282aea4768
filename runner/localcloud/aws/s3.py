"""Conditional writes with one winner, and access logs into a bucket with more than one statement in its policy.

Stock moto 5.2.1 checks `If-None-Match` and `If-Match` and then writes, with other threads in between: two
of them can both create a state lock. AWS documents that exactly one concurrent conditional write succeeds.
And its PutBucketLogging fails on a target whose policy also has a statement for everybody (`"Principal": "*"`), such
as the usual TLS-only one. AWS (S3 user guide, "Enabling server access logging") asks for one that lets
logging.s3.amazonaws.com in, whatever else there is.
"""

from __future__ import annotations

import functools
import json
import threading
from types import SimpleNamespace

from moto.s3.models import FakeBucket
from moto.s3.responses import S3Response

WRITES = ("put_object", "copy_object", "delete_object", "_key_response_post")

LOGGING = "logging.s3.amazonaws.com"

_lock = threading.RLock()
_stock_logging_allowed = FakeBucket._log_permissions_enabled_policy


def install() -> None:
    for name in WRITES:
        setattr(S3Response, name, one_at_a_time(getattr(S3Response, name)))
    FakeBucket._log_permissions_enabled_policy = staticmethod(logging_allowed)


def one_at_a_time(write):
    @functools.wraps(write)
    def wrapped(*args, **kwargs):
        with _lock:
            return write(*args, **kwargs)

    return wrapped


def logging_allowed(target_bucket, target_prefix):
    """Moto's own question, asked of the statements about the logging service alone."""
    if not target_bucket.policy:
        return False
    policy = json.loads(target_bucket.policy)
    kept = []
    for statement in policy["Statement"]:
        principal = statement.get("Principal")
        services = principal.get("Service", []) if isinstance(principal, dict) else []
        if LOGGING in (services if isinstance(services, list) else [services]):
            kept.append({**statement, "Principal": {"Service": LOGGING}})
    view = SimpleNamespace(
        policy=json.dumps({**policy, "Statement": kept}).encode(),
        partition=target_bucket.partition,
        name=target_bucket.name,
    )
    return _stock_logging_allowed(view, target_prefix)
