"""What a saved Terraform plan would do, as data that can be printed, tested and refused. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from runner.settings import SluiceError

Action = Literal["add", "change", "replace", "destroy", "import"]

# Losing one of these loses data or the ground everything stands on.
PROTECTED = frozenset(
    {
        "aws_db_instance",
        "aws_rds_cluster",
        "aws_redshiftserverless_namespace",
        "aws_elasticache_replication_group",
        "aws_ebs_volume",
        "aws_s3_bucket",
        "aws_vpc",
        "aws_kms_key",
        "aws_secretsmanager_secret",
        "aws_route53_zone",
        "aws_autoscaling_group",
    }
)

# What is no drift: how many nodes the autoscaler or a roll wants at the moment and of which release, a clock, and what
# a group, a bucket or a topic repeats of resources of their own, which would tell it themselves.
MOVED_BY_DESIGN = frozenset(
    {
        ("aws_autoscaling_group", "desired_capacity"),
        ("aws_autoscaling_group", "tag"),
        ("aws_db_instance", "latest_restorable_time"),
        ("aws_sns_topic", "policy"),
        *(
            ("aws_s3_bucket", field)
            for field in ("lifecycle_rule", "logging", "policy", "server_side_encryption_configuration", "versioning")
        ),
    }
)

SUPPORTED_FORMAT = 1
_ACTIONS: dict[tuple[str, ...], Action] = {
    ("create",): "add",
    ("update",): "change",
    ("delete",): "destroy",
    ("delete", "create"): "replace",
    ("create", "delete"): "replace",
}
_STREAM_ACTIONS: dict[str, Action] = {
    "create": "add",
    "update": "change",
    "delete": "destroy",
    "replace": "replace",
}
_SHOWN_CHARACTERS = 60
_EMPTY = ("null", '""', "[]", "{}")


@dataclass(frozen=True)
class Field:
    """One attribute that changes: its name and both values as short text, secrets never shown."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Change:
    """One resource that a plan touches."""

    address: str
    type: str
    action: Action
    fields: tuple[Field, ...] = ()
    tainted: bool = False  # replaced because its creation did not finish
    id: str = ""  # for one that exists and is taken into the state: what the provider knows it by


@dataclass(frozen=True)
class PlanSummary:
    """All that a plan touches. `outputs` counts changed outputs: a plan can change nothing but those."""

    items: tuple[Change, ...] = ()
    outputs: int = 0

    @property
    def adds(self) -> tuple[Change, ...]:
        return self._of("add")

    @property
    def changes(self) -> tuple[Change, ...]:
        return self._of("change")

    @property
    def replaces(self) -> tuple[Change, ...]:
        return self._of("replace")

    @property
    def destroys(self) -> tuple[Change, ...]:
        return self._of("destroy")

    @property
    def imports(self) -> tuple[Change, ...]:
        """What exists and is only taken into the state; one that is also changed is among the changes."""
        return self._of("import")

    @property
    def empty(self) -> bool:
        """Whether applying it would do nothing."""
        return not self.items and not self.outputs

    @property
    def steps(self) -> int:
        """How many resource operations an apply reports; a replacement is two."""
        return len(self.items) - len(self.imports) + len(self.replaces)

    def protected(self, types: Collection[str] = PROTECTED) -> list[str]:
        """Addresses of protected resources that the plan would destroy or replace."""
        return [c.address for c in self.items if c.action in ("destroy", "replace") and c.type in types]

    def line(self, *, done: bool = False) -> str:
        """The plan in a few words: `3 to add, 1 to replace`; once done, `3 added, 1 replaced`."""
        counts = [
            (len(self.imports), "taken in" if done else "to take in"),
            (len(self.adds), "added" if done else "to add"),
            (len(self.changes), "changed" if done else "to change"),
            (len(self.replaces), "replaced" if done else "to replace"),
            (len(self.destroys), "destroyed" if done else "to destroy"),
        ]
        said = [f"{n} {what}" for n, what in counts if n]
        return ", ".join(said) or ("only outputs change" if self.outputs else "no changes")

    def as_json(self) -> dict[str, Any]:
        """The plan for `--json`."""
        return {
            "add": [c.address for c in self.adds],
            "change": [
                {"address": c.address, "fields": {f.name: [f.before, f.after] for f in c.fields}} for c in self.changes
            ],
            "replace": [c.address for c in self.replaces],
            "destroy": [c.address for c in self.destroys],
            "import": {c.address: c.id for c in self.items if c.id},
            "outputs": self.outputs,
        }

    def _of(self, action: Action) -> tuple[Change, ...]:
        return tuple(c for c in self.items if c.action == action)


def from_stream(messages: Iterable[Mapping[str, Any]]) -> PlanSummary:
    """Read the `planned_change` and `outputs` messages of `terraform plan -json`: all but the changed fields.

    It costs nothing, where `terraform show` starts every provider once more to learn its schemas.
    """
    items = []
    outputs = 0
    for message in messages:
        if message.get("type") == "outputs":
            actions = [o.get("action", "noop") for o in message.get("outputs", {}).values()]
            outputs = sum(1 for a in actions if a != "noop")
        elif message.get("type") == "planned_change":
            change = message.get("change", {})
            imported = str((change.get("importing") or {}).get("id", ""))
            action = _STREAM_ACTIONS.get(change.get("action", "")) or ("import" if imported else None)
            if action:
                resource = change.get("resource", {})
                tainted = change.get("reason") == "tainted"
                kind = resource.get("resource_type", "")
                items.append(Change(resource["addr"], kind, action, tainted=tainted, id=imported))
    items.sort(key=lambda c: c.address)
    return PlanSummary(tuple(items), outputs)


def from_show(document: Mapping[str, Any]) -> PlanSummary:
    """Read what `terraform show -json <plan>` printed.

    Raises SluiceError for a major format version this code does not know; unknown keys are ignored.
    """
    check_format("plan", str(document.get("format_version", "")), SUPPORTED_FORMAT)
    items = [c for c in map(_change, document.get("resource_changes", ())) if c is not None]
    outputs = sum(1 for o in document.get("output_changes", {}).values() if o.get("actions", ["no-op"]) != ["no-op"])
    return PlanSummary(tuple(items), outputs)


def drift(document: Mapping[str, Any]) -> tuple[Change, ...]:
    """What a saved plan found to be other than the state says; errors as from_show().

    No drift is what something of ours moves by design, and what was empty and AWS has filled in since (the rules of a
    group, the routes of a table, which are resources of their own), unless the plan would undo it.
    """
    check_format("plan", str(document.get("format_version", "")), SUPPORTED_FORMAT)
    undone = {c.address for c in map(_change, document.get("resource_changes", ())) if c is not None}
    out = []
    for change in map(_change, document.get("resource_drift", ())):
        if change is None:
            continue
        fields = tuple(
            f
            for f in change.fields
            if (change.type, f.name) not in MOVED_BY_DESIGN and (change.address in undone or f.before not in _EMPTY)
        )
        if fields or change.action == "destroy":
            out.append(replace(change, fields=fields))
    return tuple(out)


def _change(entry: Mapping[str, Any]) -> Change | None:
    """One entry of `resource_changes` or `resource_drift`; None if nothing is done to it."""
    change = entry.get("change", {})
    imported = str((change.get("importing") or {}).get("id", ""))
    action = _ACTIONS.get(tuple(change.get("actions", ()))) or ("import" if imported else None)
    if action is None or entry.get("mode") == "data":
        return None
    fields = tuple(_fields(change)) if action in ("change", "replace") else ()
    if action == "replace":
        # Everything about the new one is new; what matters is which attributes cannot change in place.
        forced = {str(path[0]) for path in change.get("replace_paths", ()) if path}
        fields = tuple(f for f in fields if f.name.partition(".")[0] in forced)
    tainted = entry.get("action_reason") == "replace_because_tainted"
    return Change(entry["address"], entry.get("type", ""), action, fields, tainted, imported)


def check_format(what: str, version: str, supported: int) -> None:
    """Raise SluiceError unless the version's major number is the one supported (the text is `major.minor`)."""
    major = version.partition(".")[0]
    if major != str(supported):
        raise SluiceError(
            f"this terraform speaks {what} format {version or '(none)'}, this deployctl knows {supported}.x",
            "use a terraform release of this project's series, or a newer deployctl",
        )


def _fields(change: Mapping[str, Any]) -> Iterator[Field]:
    before, after = change.get("before") or {}, change.get("after") or {}
    unknown, secret_before = change.get("after_unknown") or {}, change.get("before_sensitive") or {}
    secret_after = change.get("after_sensitive") or {}
    for name in sorted({*before, *after, *unknown}):
        coming = "(known after apply)" if unknown.get(name) is True else None
        if coming is None and _same(before.get(name), after.get(name)):
            continue
        if _holds_secret(secret_before.get(name)) or _holds_secret(secret_after.get(name)):
            yield Field(name, "(sensitive)", "(sensitive)")
            continue
        old = before.get(name)
        if coming is not None and old is None:
            continue
        new = after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            for key in sorted({*old, *new}):
                if not _same(old.get(key), new.get(key)):
                    yield Field(f"{name}.{key}", _short(old.get(key)), _short(new.get(key)))
        else:
            yield Field(name, _short(old), coming or _short(new))


def _holds_secret(marks: Any) -> bool:
    """Terraform marks a secret with `true` at its place, and has empty containers or `false` elsewhere."""
    if isinstance(marks, dict):
        return any(_holds_secret(v) for v in marks.values())
    if isinstance(marks, list):
        return any(_holds_secret(v) for v in marks)
    return marks is True


def _same(before: Any, after: Any) -> bool:
    """Equal to a reader: providers move between null, "" and empty containers without meaning anything by it."""
    if isinstance(before, dict) and isinstance(after, dict):
        return all(_same(before.get(k), after.get(k)) for k in {*before, *after})
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return all(map(_same, before, after))
    empty: tuple[Any, ...] = (None, "", [], {})
    return before == after or (before in empty and after in empty)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
