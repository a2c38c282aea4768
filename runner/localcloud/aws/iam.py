"""Policy conditions: a statement whose condition does not hold says nothing.

Stock moto 5.2.1 takes "condition not met" for "denied" whatever the effect, and S3 hands it no condition
values, so the usual "deny unless aws:SecureTransport" bucket policy locks everybody out. AWS (IAM user
guide, "Policy evaluation logic") applies a statement only where its condition holds. Loopback stands in
for https here: `aws:SecureTransport` is true.
"""

from __future__ import annotations

from typing import Any

from moto.iam.access_control import IAMPolicyStatement, PermissionResult

ALWAYS = {"aws:SecureTransport": "true"}

_stock_is_action_permitted = IAMPolicyStatement.is_action_permitted


def install() -> None:
    IAMPolicyStatement.is_action_permitted = is_action_permitted


def is_action_permitted(self, action, resource="*", principal=None, incoming_condition_values=None):
    """Trust policies (no Resource) keep moto's own evaluation, which knows their conditions."""
    statement = self._statement
    if not (statement.get("Resource") and statement.get("Condition")):
        return _stock_is_action_permitted(self, action, resource, principal, incoming_condition_values)
    if not holds(statement["Condition"], {**ALWAYS, **(incoming_condition_values or {})}):
        return PermissionResult.NEUTRAL
    unconditional = IAMPolicyStatement({k: v for k, v in statement.items() if k != "Condition"})
    return _stock_is_action_permitted(unconditional, action, resource, principal, None)


def holds(condition: dict[str, dict[str, Any]], values: dict[str, str]) -> bool:
    """All operators and all keys of a condition block hold. Compares for equality, case-blind."""
    return all(
        _key_holds(operator.rpartition(":")[2], values.get(key), wanted)
        for operator, keys in condition.items()
        for key, wanted in keys.items()
    )


def _key_holds(operator: str, value: str | None, wanted: Any) -> bool:
    accepted = [str(w).lower() for w in (wanted if isinstance(wanted, list) else [wanted])]
    if operator == "Null":
        return (value is None) == (accepted == ["true"])
    negated = "Not" in operator
    if value is None:  # a missing key fails a positive match and passes a negated one
        return negated or operator.endswith("IfExists")
    return (value.lower() in accepted) != negated
