"""Queues whose attributes re-plan clean and whose policy stays.

Stock moto 5.2.1 drops a queue's policy on every SetQueueAttributes that does not repeat it, where AWS (SQS API
reference) changes the attributes that are named and no other; and it gives a redrive policy back with spaces that
nobody wrote.
"""

from __future__ import annotations

import json

from moto.sqs.models import Queue

COMPACT = ("RedrivePolicy", "RedriveAllowPolicy")

_stock_attributes = Queue.attributes.fget
_stock_set = Queue._set_attributes


def install() -> None:
    Queue.attributes = property(attributes)
    Queue._set_attributes = set_attributes


def attributes(self):
    found = _stock_attributes(self)
    return {k: json.dumps(json.loads(v), separators=(",", ":")) if k in COMPACT and v else v for k, v in found.items()}


def set_attributes(self, attributes, now=None):
    policy = getattr(self, "policy", None)
    _stock_set(self, attributes, now)
    if "Policy" not in attributes and policy:
        self.policy = policy
