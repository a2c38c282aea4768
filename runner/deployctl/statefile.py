"""What a Terraform state says that it holds. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Resource:
    """One managed resource instance of a state, with the id the provider knows it by ("" if it has none)."""

    address: str
    type: str
    id: str = ""


def resources(document: Mapping[str, Any]) -> list[Resource]:
    """The managed resource instances of a state document (`terraform state pull`, or the object in the bucket)."""
    found = []
    for entry in document.get("resources", ()):
        if entry.get("mode") != "managed":
            continue
        base = ".".join(filter(None, [entry.get("module", ""), entry["type"], entry["name"]]))
        for instance in entry.get("instances", ()):
            if "deposed" in instance:  # what a replacement has still to destroy: not the resource of this address
                continue
            key = instance.get("index_key")
            address = base if key is None else f"{base}[{json.dumps(key)}]"
            found.append(Resource(address, entry["type"], str((instance.get("attributes") or {}).get("id") or "")))
    return found


def outputs(document: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs of a state document, by name."""
    return {name: found["value"] for name, found in document.get("outputs", {}).items()}
